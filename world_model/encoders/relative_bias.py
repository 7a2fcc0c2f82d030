"""Relative bias: one learnt number for every offset and head, added to the scores before the softmax.

`GridBias` has a table over two axes (arXiv:2103.14030, section 3.2; with entries for prefix tokens as in BEiT, arXiv:2106.08254),
`BucketBias` groups far offsets along the sequence (T5, arXiv:1910.10683).

B batch, K heads, T = P + N tokens of which P are prefix tokens, h x w grid, E width of a head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GridBias(nn.Module):
    """A table of (2 h - 1)(2 w - 1) offsets; other grids get it interpolated, bicubically, so that offsets keep their share of the grid."""

    undecayed = ("table", "prefix")

    def __init__(self, heads: int, grid: tuple[int, int], generator: torch.Generator | None = None) -> None:
        """Drawn from `generator`: N(0, 0.02), cut at two."""
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), heads))
        self.prefix = nn.Parameter(torch.empty(3, heads))  # of prefix on patch, of patch on prefix, among prefix tokens
        with torch.no_grad():
            for table in (self.table, self.prefix):
                nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04, generator=generator)

    def forward(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys as they are; bias [1, K, T, T]."""
        h, w = grid
        patches = self.resized(grid)[grid_offsets(grid, query.device)].permute(2, 0, 1)
        prefix, N = query.shape[2] - h * w, h * w
        if not prefix:
            return query, key, patches[None]
        on, of, among = self.prefix[:, :, None, None]
        above = torch.cat([among.expand(-1, prefix, prefix), on.expand(-1, prefix, N)], dim=2)
        below = torch.cat([of.expand(-1, N, prefix), patches], dim=2)
        return query, key, torch.cat([above, below], dim=1)[None]

    def resized(self, grid: tuple[int, int]) -> Tensor:
        """[(2 h - 1)(2 w - 1), K]: the table of a grid of h x w."""
        if grid == self.grid:
            return self.table
        (h, w), (wider, taller) = self.grid, (2 * grid[1] - 1, 2 * grid[0] - 1)
        image = self.table.float().view(1, 2 * h - 1, 2 * w - 1, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(image, size=(taller, wider), mode="bicubic", align_corners=False)
        return resized[0].flatten(1).T.to(self.table.dtype)


class BucketBias(nn.Module):
    """Offsets along the sequence of patches in buckets: one each while they are near, then ever wider ones."""

    undecayed = ("table",)

    def __init__(self, heads: int, buckets: int = 32, furthest: int = 128, generator: torch.Generator | None = None) -> None:
        """Drawn from `generator`: N(0, 0.02). Offsets beyond `furthest` share the last bucket."""
        super().__init__()
        self.furthest = furthest
        self.table = nn.Parameter(torch.empty(buckets, heads))
        with torch.no_grad():
            self.table.normal_(0, 0.02, generator=generator)

    def forward(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys as they are; bias [1, K, T, T], zero for pairs with a prefix token."""
        at = torch.arange(grid[0] * grid[1], device=query.device)
        bias = self.table[bucket(at[None] - at[:, None], len(self.table), self.furthest)].permute(2, 0, 1)[None]
        prefix = query.shape[2] - len(at)
        return query, key, F.pad(bias, (prefix, 0, prefix, 0))


def grid_offsets(grid: tuple[int, int], device: torch.device) -> Tensor:
    """int64 [N, N]: (dh + h - 1)(2 w - 1) + dw + w - 1, offsets from key to query."""
    h, w = grid
    cells = torch.arange(h * w, device=device)
    row, column = cells // w, cells % w
    return (row[:, None] - row[None] + h - 1) * (2 * w - 1) + column[:, None] - column[None] + w - 1


def bucket(offset: Tensor, buckets: int, furthest: int) -> Tensor:
    """Bucket of `offset` = key's place - query's: half of them for each direction, half of those exact, the rest in equal ratios."""
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) / math.log(furthest / exact) * (half - exact)).long()
    return torch.where(offset > 0, half, 0) + torch.where(distance < exact, distance, far.clamp(max=half - 1))
