"""RandAugment (arXiv:1909.13719): a few operations a picture, drawn from fifteen, all about as strong.

In the form that DeiT (arXiv:2012.12877, table 9) and Swin train with (rand-m9-mstd0.5-inc1): strengths scatter about the magnitude, every
operation is the stronger the higher it is, and one that was drawn happens to half of the pictures only. Operations are Pillow's, on whole
batches; geometry is bilinear, and what comes in from outside is grey.

n pictures: x float32 [n, 3, H, W] of whole numbers 0 to 255, strength [n] in [0, 1], side [n], 1 or -1.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.stages.encoder_settings import RandAugment
from worldloom.stages.luma import luma
from worldloom.stages.view_draws import Draw, Draws

HIGHEST = 10.0  # magnitude
FILL = 128.0
FARTHEST = 0.9  # that colours, contrast, brightness and sharpness move from 1
LEAST = 0.1  # factor
SHEAR, TRANSLATION, DEGREES = 0.3, 0.45, 30.0  # at the highest magnitude; translation as a share of the side
SMOOTH = (1, 1, 1, 1, 5, 1, 1, 1, 1)  # over 13: Pillow's

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]


def rand_augment(x: Tensor, about: RandAugment, draws: Draws) -> Tensor:
    """float32 [B, 3, H, W] in [0, 1] -> the same, in steps of 1 / 255."""
    count = about.operations
    x = (x * 255).round().clamp(0, 255)
    which = (draws.several(Draw.OPERATION, count) * len(OPERATIONS)).long()
    happens = draws.several(Draw.OPERATED, count) < about.share
    normal = torch.special.ndtri(draws.several(Draw.STRENGTH, count).clamp(min=1e-9))
    strength = ((about.magnitude + about.spread * normal) / HIGHEST).clamp(0, 1).float()
    side = (2 * (draws.several(Draw.SIDE, count) < 0.5).float() - 1).float()
    for layer in range(count):
        for number, operation in enumerate(OPERATIONS):
            rows = happens[:, layer] & (which[:, layer] == number)
            if rows.any():
                x[rows] = operation(x[rows], strength[rows, layer], side[rows, layer]).round().clamp(0, 255)
    return x / 255


def autocontrast(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Every channel from 0 to 255."""
    lowest, highest = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(highest > lowest, ((x - lowest) * 255 / (highest - lowest).clamp(min=1)).floor(), x)


def equalize(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Every channel's values about equally frequent; those of fewer than 255 pixels beside its brightest value stay."""
    values = x.long().flatten(2).flatten(0, 1)
    channels, pixels = values.shape
    counts = torch.bincount((values + 256 * torch.arange(channels)[:, None]).flatten(), minlength=256 * channels).view(channels, 256)
    step = (pixels - counts.gather(1, values.amax(1, keepdim=True))) // 255
    table = ((counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(1, values), values).view_as(x).to(x.dtype)


def invert(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    return 255 - x


def rotate(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Against the clock, or with it, about the middle."""
    turn = side * strength * DEGREES * math.pi / 180
    H, W = x.shape[-2:]
    # Places are counted from -1 to 1 along each axis, so sines are stretched by the picture's aspect.
    return _warped(x, turn.cos(), -turn.sin() * H / W, 0 * turn, turn.sin() * W / H, turn.cos(), 0 * turn)


def posterize(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """The uppermost 4 bits stay, down to one."""
    steps = 2 ** (4 + (strength * 4).floor().clamp(max=3)).view(-1, 1, 1, 1)
    return (x / steps).floor() * steps


def solarize(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """What is bright is inverted: from 256 on, down to everything."""
    return torch.where(x < 256 - (strength * 256).floor().view(-1, 1, 1, 1), x, 255 - x)


def solarize_add(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """What is dark becomes brighter, by 110 at most."""
    return torch.where(x < 128, x + (strength * 110).floor().view(-1, 1, 1, 1), x)


def colour(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Towards grey, or away from it."""
    return _blended(x, luma(x).round(), strength, side)


def contrast(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Towards the mean grey, or away from it."""
    return _blended(x, luma(x).round().mean((2, 3), keepdim=True).round(), strength, side)


def brightness(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Towards black, or away from it."""
    return _blended(x, torch.zeros_like(x), strength, side)


def sharpness(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Towards a smoothed picture, or away from it; pixels at the edge stay."""
    kernel = x.new_tensor(SMOOTH).view(1, 1, 3, 3) / sum(SMOOTH)
    smooth = x.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(x.flatten(0, 1)[:, None], kernel, padding=1).view_as(x)[..., 1:-1, 1:-1].round()
    return _blended(x, smooth, strength, side)


def shear_x(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Rows move the more the lower they lie."""
    by, one = side * strength * SHEAR * x.shape[2] / x.shape[3], torch.ones_like(side)
    return _warped(x, one, by, by, 0 * one, one, 0 * one)


def shear_y(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    """Columns move the more the farther right they lie."""
    by, one = side * strength * SHEAR * x.shape[3] / x.shape[2], torch.ones_like(side)
    return _warped(x, one, 0 * one, 0 * one, by, one, by)


def translate_x(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    by, one = 2 * side * strength * TRANSLATION, torch.ones_like(side)
    return _warped(x, one, 0 * one, by, 0 * one, one, 0 * one)


def translate_y(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    by, one = 2 * side * strength * TRANSLATION, torch.ones_like(side)
    return _warped(x, one, 0 * one, 0 * one, 0 * one, one, by)


OPERATIONS: tuple[Operation, ...] = (
    autocontrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    colour,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)


def _blended(x: Tensor, towards: Tensor, strength: Tensor, side: Tensor) -> Tensor:
    factor = (1 + side * strength * FARTHEST).clamp(min=LEAST).view(-1, 1, 1, 1)
    return towards + factor * (x - towards)


def _warped(x: Tensor, *ways: Tensor) -> Tensor:
    """Six numbers [n]: where a pixel at (across, down), counted from -1 to 1, comes from: across = a across + b down + c, down likewise."""
    places = F.affine_grid(torch.stack(ways, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x - FILL, places, mode="bilinear", padding_mode="zeros", align_corners=False) + FILL
