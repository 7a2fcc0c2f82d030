"""Positions of tokens on a grid: learned (arXiv:2010.11929) or sines and cosines (arXiv:1706.03762, in two dimensions).

h x w grid, counted row by row, P prefix tokens (class tokens), D width. Both give [P + h w, D], to be added to the tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.settings import Interpolation

THETA = 10_000.0


class LearnedPositions(nn.Module):
    """A table of one vector for each place of the grid it was made for; other grids get it interpolated, bicubically by default.

    Only the grid is interpolated: prefix tokens keep their vectors. Always in float32, because half precision shifts the values.
    """

    undecayed = ("table",)

    def __init__(
        self,
        grid: tuple[int, int],
        width: int,
        prefix: int = 1,
        generator: torch.Generator | None = None,
        antialias: bool = False,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        """The table is drawn from `generator`: N(0, 0.02). "bilinear" is the original's; `antialias` smooths the table on the way
        to a smaller grid."""
        super().__init__()
        self.grid, self.prefix, self.antialias, self.interpolation = grid, prefix, antialias, interpolation
        self.table = nn.Parameter(torch.empty(prefix + grid[0] * grid[1], width))
        with torch.no_grad():
            self.table.normal_(0, 0.02, generator=generator)

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """[P + h w, D] for a grid of h x w."""
        if grid == self.grid:
            return self.table
        places = self.table[self.prefix :].float().reshape(1, *self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(places, size=grid, mode=self.interpolation, align_corners=False, antialias=self.antialias)
        return torch.cat([self.table[: self.prefix], resized[0].flatten(1).T.to(self.table.dtype)])


class SinePositions(nn.Module):
    """Fixed: the first half of the width says the row, the second the column, each as sines, then cosines; prefix tokens get zeros."""

    def __init__(self, width: int, prefix: int = 1) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"positions of sines and cosines over two axes need a width that 4 divides, got {width}; choose another width")
        self.width, self.prefix = width, prefix

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """[P + h w, D] for a grid of h x w, float32 on the CPU; whoever adds them moves them."""
        h, w = grid
        row, column = sine_cosine(torch.arange(h), self.width // 2), sine_cosine(torch.arange(w), self.width // 2)
        both = torch.cat([row[:, None].expand(-1, w, -1), column[None].expand(h, -1, -1)], dim=-1)
        return torch.cat([torch.zeros(self.prefix, self.width), both.flatten(0, 1)])


def sine_cosine(positions: Tensor, width: int) -> Tensor:
    """[N] -> [N, width]: sines, then cosines, of position x theta^(-2i/width); taken in float64, because large angles lose digits."""
    frequencies = THETA ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
