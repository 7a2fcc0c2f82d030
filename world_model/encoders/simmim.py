"""SimMIM (arXiv:2111.09886): hidden patches are drawn again by one linear map, and judged on hidden pixels alone.

B batch, C channels, H x W pixels, N patches, D width, s stride: pixels along the side of what a token of the last grid stands for.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.settings import PixelError
from worldloom.world_model.encoders.swin import Swin
from worldloom.world_model.encoders.vit import ViT

UNIT, RATIO = 32, 0.6  # pixels along the side of what is hidden or not, and the share that is (section 3.2)

ERRORS: dict[PixelError, Callable[..., Tensor]] = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss}  # section 4.1.4


class Redrawn(NamedTuple):
    """What a masked picture became."""

    loss: Tensor
    pixels: Tensor  # [B, C, H, W]; zero in what is cropped


class SimMIM(nn.Module):
    """An encoder with a mask token and a linear head to s x s pixels; class tokens and registers are dropped before the head."""

    def __init__(self, encoder: ViT | Swin, generator: torch.Generator | None = None, error: PixelError = "l1") -> None:
        """The head is drawn from `generator`: N(0, 0.02), cut at two."""
        super().__init__()
        if encoder.mask_token is None:
            raise ValueError("masked image modelling needs an encoder with a mask token; set mask_token")
        self.encoder, self.stride, self.error = encoder, encoder.stride, error
        self.channels = encoder.patches.channels
        self.head = nn.Linear(encoder.width, self.channels * self.stride**2)
        with torch.no_grad():
            nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.04, b=0.04, generator=generator)
            self.head.bias.zero_()

    def forward(self, pixels: Tensor, hidden: Tensor) -> Redrawn:
        """`hidden`, bool [B, N], names the patches that the encoder does not see and has to draw."""
        tokens = self.encoder(pixels, hidden).tokens
        H, W = pixels.shape[-2:]
        merged = self.stride // self.encoder.patches.patch
        h, w = (-(-length // merged) for length in self.encoder.patches.grid(H, W))
        drawn = _sized(F.pixel_shuffle(self.head(tokens).transpose(1, 2).reshape(len(tokens), -1, h, w), self.stride), H, W)
        return Redrawn(masked_error(pixels, drawn, self.hidden_pixels(hidden, H, W), self.error), drawn)

    def hidden_pixels(self, hidden: Tensor, height: int, width: int) -> Tensor:
        """bool [B, N] -> float [B, 1, H, W], 1 where a pixel is hidden; what is cropped is not."""
        patch, grid = self.encoder.patches.patch, self.encoder.patches.grid(height, width)
        places = hidden.view(-1, 1, *grid).to(self.head.weight.dtype)
        return _sized(places.repeat_interleave(patch, 2).repeat_interleave(patch, 3), height, width)


def _sized(pixels: Tensor, height: int, width: int) -> Tensor:
    """What lies in no picture goes, and what lies in no patch is zero: at the right and the bottom, as patches are fitted."""
    return F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]))


def masked_error(pixels: Tensor, drawn: Tensor, mask: Tensor, error: PixelError = "l1") -> Tensor:
    """Sum of the errors of hidden pixels, by their number (`mask` is [B, 1, H, W], so the channels are divided by, too)."""
    return (ERRORS[error](drawn, pixels, reduction="none") * mask).sum() / (mask.sum() + 1e-5) / pixels.shape[1]


def hide_units(batch: int, grid: tuple[int, int], unit: int, ratio: float, generator: torch.Generator) -> Tensor:
    """bool [B, N]: of every picture ceil(ratio x units) squares of unit x unit patches, drawn on the CPU; those at the edge may be cut."""
    units = -(-grid[0] // unit) * -(-grid[1] // unit)
    return hide_by(torch.rand((batch, units), generator=generator), grid, unit, ratio)


def hide_by(chances: Tensor, grid: tuple[int, int], unit: int, ratio: float) -> Tensor:
    """The same where numbers [B, units] are drawn already: the smallest are hidden."""
    down, across = -(-grid[0] // unit), -(-grid[1] // unit)
    count = math.ceil(ratio * down * across)
    units = torch.zeros(chances.shape, dtype=torch.bool).scatter(1, chances.argsort(1)[:, :count], True).view(-1, down, across)
    return units.repeat_interleave(unit, 1).repeat_interleave(unit, 2)[:, : grid[0], : grid[1]].flatten(1)
