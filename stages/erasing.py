"""Random erasing (arXiv:1708.04896): of some pictures a box becomes noise, so that no single part is what a class is known by.

B batch, C channels, H x W pixels.
"""

import math

import torch
from torch import Tensor

from worldloom.stages.view_draws import Draw, Draws

AREA = (0.02, 1 / 3)  # share of the picture that a box covers, from and to
ASPECT = 0.3  # of a box's width to its height at the least; at most one over it
ATTEMPTS = 10  # at a box that is smaller than the picture along both sides


def erased(x: Tensor, share: float, draws: Draws) -> Tensor:
    """[B, C, H, W], normalised -> the same; a share of the pictures has a box of noise, N(0, 1) for every number, on the CPU."""
    x = x.clone()
    for row, (top, left, down, across) in enumerate(boxes(x.shape[2], x.shape[3], share, draws).tolist()):
        if down:
            noise = torch.randn(x.shape[1], down, across, generator=draws.generator(Draw.NOISE, row))
            x[row, :, top : top + down, left : left + across] = noise
    return x


def boxes(height: int, width: int, share: float, draws: Draws) -> Tensor:
    """int64 [B, 4]: top, left, rows and columns of what is erased; four zeros where nothing is."""
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws.several(Draw.ERASED_AREA, ATTEMPTS)) * height * width
    stretch = torch.exp((2 * draws.several(Draw.ERASED_ASPECT, ATTEMPTS) - 1) * math.log(1 / ASPECT))
    down, across = (area * stretch).sqrt().round().clamp(min=1), (area / stretch).sqrt().round().clamp(min=1)
    top = (draws.several(Draw.ERASED_TOP, ATTEMPTS) * (height - down + 1)).floor()
    left = (draws.several(Draw.ERASED_LEFT, ATTEMPTS) * (width - across + 1)).floor()
    fits = (down < height) & (across < width)
    first = fits.int().argmax(1)
    found = torch.stack([top, left, down, across], -1)[torch.arange(len(fits)), first].long()
    return found * (fits.any(1) & (draws[Draw.ERASED] < share))[:, None]
