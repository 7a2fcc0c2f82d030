"""Pairs of pictures become one, blended (mixup, arXiv:1710.09412) or with a box of the other (cutmix, arXiv:1905.04899); labels go along.

As in DeiT's recipe (arXiv:2012.12877, table 9): a batch is paired with itself from its end, and all of it is mixed alike. The pairs are
those of the global batch, and what is drawn hangs on step and place, so that the pictures are the same for any number of ranks.

b pictures of this rank, K classes, H x W pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from worldloom.stages.encoder_settings import Mixing
from worldloom.stages.order import draws, uniform
from worldloom.world_model.encoders.ranks import mirrored

MIXED = 1 << 42  # stands where an order, or a view, has its epoch
_MIXED, _CUT, _WEIGHT, _DOWN, _ACROSS = range(5)  # what a number is drawn for


class Plan(NamedTuple):
    """What becomes of each picture."""

    weight: NDArray[np.float64]  # [b]: of the picture itself in its label; the other has the rest
    boxes: NDArray[np.int64]  # [b, 4]: rows from and to, columns from and to, that the other fills; zeros where there is no box
    cut: NDArray[np.bool_]  # [b]: it is the boxes that make up the weights


class Mixed(NamedTuple):
    """What a classifier learns from."""

    pixels: Tensor  # [b, C, H, W]
    target: Tensor  # int64 [b], or with mixing probabilities float32 [b, K]
    first: Tensor  # int64 [b]: the likeliest class


def mix(about: Mixing | None, x: Tensor, labels: Tensor, classes: int, seed: int, step: int, place: NDArray[np.int64]) -> Mixed:
    """`place` [b] is that within the global batch; every rank calls it, with equally many pictures."""
    if about is None:
        return Mixed(x, labels, labels)
    plan = plan_of(about, seed, step, place, x.shape[2], x.shape[3])
    weight = torch.from_numpy(plan.weight).to(x.device, x.dtype)
    target = blend(F.one_hot(labels, classes).to(x.dtype), F.one_hot(mirrored(labels), classes).to(x.dtype), weight)
    others = mirrored(x)
    blended = blend(x, others, torch.where(torch.from_numpy(plan.cut).to(x.device), 1, weight))
    filled = torch.from_numpy(inside(plan.boxes, x.shape[2], x.shape[3])).to(x.device)
    return Mixed(torch.where(filled[:, None], others, blended), target, target.argmax(1))


def plan_of(about: Mixing, seed: int, step: int, place: NDArray[np.int64], height: int, width: int) -> Plan:
    """The same for all places where ways are drawn for the batch."""
    key = (seed, MIXED, step, place if about.each == "picture" else place * 0)
    mixed = uniform(*key, _MIXED) < about.share
    cut = mixed & (uniform(*key, _CUT) < (about.cut if about.mixup and about.cutmix else bool(about.cutmix)))
    weight = np.where(cut, beta(about.cutmix, draws(*key, _WEIGHT)), beta(about.mixup, draws(*key, _WEIGHT)))
    found = boxes(1 - weight, uniform(*key, _DOWN), uniform(*key, _ACROSS), height, width) * cut[:, None]
    # What lies beyond the edge is cut off, so that the weight is that of the box as it is.
    left = 1 - (found[:, 1] - found[:, 0]) * (found[:, 3] - found[:, 2]) / (height * width)
    return Plan(np.where(cut, left, np.where(mixed, weight, 1.0)), found, cut)


def beta(a: float, bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """[b] of Beta(a, a), one for each number's bits; 1 where a is 0."""
    if not a:
        return np.ones(len(bits))
    kinds, kind = np.unique(bits, return_inverse=True)
    return np.array([np.random.Generator(np.random.Philox(key=int(each))).beta(a, a) for each in kinds])[kind]


def boxes(share: NDArray[np.float64], down: NDArray[np.float64], across: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
    """[b, 4] of each share of the area and the picture's aspect, about the pixel at (down, across), both in [0, 1), cut off at the edge."""
    bounds = []
    for at, length in ((down, height), (across, width)):
        middle, half = (at * length).astype(np.int64), (np.sqrt(share) * length).astype(np.int64) // 2
        bounds += [np.maximum(middle - half, 0), np.minimum(middle + half, length)]
    return np.stack(bounds, 1)


def inside(boxes: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """[b, H, W]: which pixels lie in the boxes [b, 4]."""
    top, bottom, left, right = boxes.T[:, :, None]
    rows, columns = np.arange(height), np.arange(width)
    within: NDArray[np.bool_] = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
    return within


def blend(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """weight x one + (1 - weight) x other; `weight` [b]."""
    weight = weight.view(-1, *(1,) * (one.dim() - 1))
    return weight * one + (1 - weight) * other
