"""Views of pictures for training encoders: crops, flips, colours, blur and solarisation, on whole batches of tensors.

Every draw is a function of (seed, epoch, sample, view, what is drawn), so that a view is the same whoever makes it and in whatever batch.
What supervised recipes add, behind all that, is in rand_augment.py and erasing.py.
Resizing and blurring are products with one matrix along each axis, so pictures of a batch may have boxes and blurs of their own.

B batch, H x W pixels, S side of a view.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.stages.encoder_settings import RandAugment
from worldloom.stages.erasing import erased
from worldloom.stages.luma import luma
from worldloom.stages.rand_augment import rand_augment
from worldloom.stages.view_draws import Draw, Draws

KNOTS = 4  # along each side of a picture, whose moves are drawn where it is bent
ASPECT = 4 / 3  # longer side of a crop's box over the shorter, at most
SIGMA = (0.1, 2.0)  # of the blur, in pixels of the view
SOLARISED_FROM = 0.5  # pixels that are brighter are inverted


class Jitter(NamedTuple):
    """How far colours move: factors from 1 - x to 1 + x, and the hue by at most its share of the circle."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1


class View(NamedTuple):
    """One way to look at a picture; each share is that of the pictures which it happens to."""

    size: int  # S, pixels
    scale: tuple[float, float] = (1.0, 1.0)  # share of the picture's area that is cut out, from and to
    flip: float = 0.5
    turn: float = 0.0  # degrees, to either side at most
    warp: float = 0.0  # share of the sides that places move by at most, each its own way and its neighbours with it
    jitter: Jitter = Jitter()
    jittered: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0
    randaugment: RandAugment | None = None
    erase: float = 0.0


def see(pictures: Tensor, view: View, draws: Draws) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, S, S] in [-1, 1]; what is erased becomes noise, N(0, 1)."""
    x = pictures.permute(0, 3, 1, 2).float() / 255
    if view.turn or view.warp:
        x = moved(x, draws.between(Draw.TURN, -view.turn, view.turn), warp(view.warp, draws) if view.warp else None)
    x = crop(x, view, draws)
    if view.jittered or view.grey:
        x = colours(x, view, draws)
    if view.blur:
        sigma = draws.between(Draw.SIGMA, *SIGMA).where(draws[Draw.BLURRED] < view.blur, torch.zeros(()))
        x = along_both(x, *(blur_matrix(view.size, sigma) for _ in range(2)))
    if view.solarise:
        chosen = (draws[Draw.SOLARISED] < view.solarise).view(-1, 1, 1, 1)
        x = torch.where(chosen & (x >= SOLARISED_FROM), 1 - x, x)
    if view.randaugment is not None:
        x = rand_augment(x, view.randaugment, draws)
    x = x * 2 - 1
    return erased(x, view.erase, draws) if view.erase else x


def warp(furthest: float, draws: Draws) -> Tensor:
    """float32 [B, 2, KNOTS, KNOTS] in [-furthest, furthest]: how far off what a knot shows lies, across, down, in shares of the sides."""
    drawn = draws.several(Draw.WARP, 2 * KNOTS**2).float().view(-1, 2, KNOTS, KNOTS)
    return furthest * (2 * drawn - 1)


def moved(x: Tensor, degrees: Tensor, warp: Tensor | None = None) -> Tensor:
    """[B, C, H, W], each picture turned about its middle against the clock and, by `warp`, bent as by another hand: knots lie evenly over
    the picture, corners included, and what is between them moves smoothly (bicubic). What comes in from outside is as its edge."""
    H, W = x.shape[-2:]
    sine, cosine, none = (degrees * math.pi / 180).sin(), (degrees * math.pi / 180).cos(), torch.zeros_like(degrees)
    # Places are counted from -1 to 1 along each axis, so sines are stretched by the picture's aspect.
    ways = torch.stack([torch.stack([cosine, -sine * H / W, none], 1), torch.stack([sine * W / H, cosine, none], 1)], 1)
    places = F.affine_grid(ways, list(x.shape), align_corners=False)
    if warp is not None:
        field = F.interpolate(2 * warp, (H, W), mode="bicubic", align_corners=True)
        furthest = 2 * warp.abs().amax((1, 2, 3)).view(-1, 1, 1, 1)  # between knots, a bicubic curve goes beyond both
        places = places + field.clamp(-furthest, furthest).permute(0, 2, 3, 1)
    return F.grid_sample(x, places, mode="bilinear", padding_mode="border", align_corners=False)


def crop(x: Tensor, view: View, draws: Draws) -> Tensor:
    """[B, 3, H, W] -> [B, 3, S, S]: a box of some share of the area and some aspect, resized with antialiasing, perhaps mirrored.

    A side that would be longer than the picture is cut to it, where torchvision draws again.
    """
    H, W = x.shape[-2:]
    area = draws.between(Draw.AREA, *view.scale) * H * W
    stretch = torch.exp(draws.between(Draw.ASPECT, -1, 1) * math.log(ASPECT) / 2)
    if view.scale[0] == 1:
        stretch, area = stretch * 0 + math.sqrt(W / H), area * 0 + H * W
    across = (area.sqrt() * stretch).round().clamp(1, W)
    down = (area.sqrt() / stretch).round().clamp(1, H)
    top = (draws[Draw.TOP] * (H - down + 1)).floor()
    left = (draws[Draw.LEFT] * (W - across + 1)).floor()
    columns = resize_matrix(W, view.size, left, across)
    mirrored = draws[Draw.FLIP] < view.flip
    columns = torch.where(mirrored.view(-1, 1, 1), columns.flip(1), columns)
    return along_both(x, resize_matrix(H, view.size, top, down), columns)


def along_both(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[B, C, H, W], [B, S, H], [B, S, W] -> [B, C, S, S]."""
    return rows[:, None] @ x @ columns[:, None].mT


def resize_matrix(length: int, size: int, start: Tensor, extent: Tensor) -> Tensor:
    """float32 [B, size, length]: what a line of `extent` pixels from `start` on becomes, by triangles as wide as a new pixel (bilinear with
    antialiasing, as Pillow's)."""
    scale = (extent / size).view(-1, 1, 1)
    first = start.view(-1, 1, 1)
    at = torch.arange(length, dtype=torch.float32) + 0.5
    middle = first + (torch.arange(size, dtype=torch.float32).view(1, -1, 1) + 0.5) * scale
    weight = (1 - (at - middle).abs() / scale.clamp(min=1)).clamp(min=0)
    weight = weight * ((at > first) & (at < first + extent.view(-1, 1, 1)))
    return weight / weight.sum(-1, keepdim=True)


def blur_matrix(size: int, sigma: Tensor) -> Tensor:
    """float32 [B, size, size]: Gaussians of each sigma, in pixels, whose parts beyond the edge go to the rest; sigma 0 changes nothing."""
    at = torch.arange(size, dtype=torch.float32)
    weight = torch.exp(-((at[:, None] - at[None]) ** 2) / (2 * sigma.clamp(min=1e-2).view(-1, 1, 1) ** 2))
    return weight / weight.sum(-1, keepdim=True)


def colours(x: Tensor, view: View, draws: Draws) -> Tensor:
    """[B, 3, S, S] in [0, 1] -> the same: brightness, contrast, saturation, hue, in this order, then grey for some."""
    jitter = view.jitter
    moved = x
    for what, amount, towards in (
        (Draw.BRIGHTNESS, jitter.brightness, torch.zeros_like),
        (Draw.CONTRAST, jitter.contrast, lambda x: luma(x).mean((2, 3), keepdim=True)),
        (Draw.SATURATION, jitter.saturation, luma),
    ):
        factor = draws.between(what, 1 - amount, 1 + amount).view(-1, 1, 1, 1)
        moved = (factor * moved + (1 - factor) * towards(moved)).clamp(0, 1)
    moved = turn_hue(moved, draws.between(Draw.HUE, -jitter.hue, jitter.hue))
    x = torch.where((draws[Draw.JITTERED] < view.jittered).view(-1, 1, 1, 1), moved, x)
    return torch.where((draws[Draw.GREY] < view.grey).view(-1, 1, 1, 1), luma(x).expand_as(x), x)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """[B, 3, H, W] in [0, 1], each picture's hues turned by a share of the circle; value and saturation (HSV) stay."""
    highest, lowest = x.amax(1), x.amin(1)
    chroma = highest - lowest
    red, green, blue = ((highest - channel) / chroma.clamp(min=1e-8) for channel in x.unbind(1))
    hue = torch.where(x[:, 0] == highest, blue - green, torch.where(x[:, 1] == highest, 2 + red - blue, 4 + green - red))
    hue = hue + 6 * turn.view(-1, 1, 1)
    # HSV to RGB in one formula: channel n is value - chroma x clamp(min(k, 4 - k), 0, 1), k = (n + hue) mod 6 with n = 5, 3, 1.
    k = (hue[:, None] + hue.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)) % 6
    return highest[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def multi_crop(
    size: int,
    local_size: int,
    locals_: int,
    global_from: float = 0.4,
    local_from: float = 0.05,
    like: View = View(1, jittered=0.8, grey=0.2, blur=1.0, solarise=0.2),  # noqa: B008 - immutable
) -> tuple[View, ...]:
    """DINO's views (arXiv:2104.14294, appendix C): two global ones, the first always blurred, the second sometimes solarised, then local
    ones. `like` says how they are flipped, turned and coloured; its share of blurred views is that of the first, and others follow it."""
    wide = like._replace(size=size, scale=(global_from, 1.0), solarise=0.0)
    narrow = wide._replace(size=local_size, scale=(local_from, global_from), blur=0.5 * like.blur)
    return wide, wide._replace(blur=0.1 * like.blur, solarise=like.solarise), *([narrow] * locals_)
