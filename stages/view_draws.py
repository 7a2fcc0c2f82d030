"""Numbers that views are drawn by: functions of (seed, epoch, sample, view, what is drawn), without a state."""

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldloom.stages.order import draws, uniform


class Draw(IntEnum):
    """What a number is drawn for; part of the counter, so that a new one changes none of the others."""

    AREA = 0
    ASPECT = 1
    TOP = 2
    LEFT = 3
    FLIP = 4
    JITTERED = 5
    BRIGHTNESS = 6
    CONTRAST = 7
    SATURATION = 8
    HUE = 9
    GREY = 10
    BLURRED = 11
    SIGMA = 12
    SOLARISED = 13
    TURN = 14
    ERASED = 15
    ERASED_AREA = 16
    ERASED_ASPECT = 17
    ERASED_TOP = 18
    ERASED_LEFT = 19
    NOISE = 20
    OPERATION = 21
    OPERATED = 22
    STRENGTH = 23
    SIDE = 24
    WARP = 25


BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))  # what the highest draws would round to is 1, and no place in a picture


class Draws:
    """Numbers in [0, 1) for the pictures of a batch."""

    def __init__(self, seed: int, epoch: NDArray[np.int64], sample: NDArray[np.int64], view: int | NDArray[np.int64]) -> None:
        self.counters = (seed, epoch, sample, view)

    def __getitem__(self, what: Draw) -> Tensor:
        """float32 [B]."""
        drawn = np.broadcast_to(uniform(*self.counters, int(what)), self.counters[1].shape).astype(np.float32)
        return torch.from_numpy(np.minimum(drawn, BELOW_ONE))

    def between(self, what: Draw, low: float, high: float) -> Tensor:
        return low + (high - low) * self[what]

    def several(self, what: Draw, count: int) -> Tensor:
        """float64 [B, count]: below 1, which float32 would round some numbers to."""
        seed, epoch, sample, view = self.counters
        return torch.from_numpy(
            uniform(seed, epoch[:, None], sample[:, None], np.reshape(view, (-1, 1)), int(what), np.arange(count)[None])
        )

    def generator(self, what: Draw, row: int) -> torch.Generator:
        """Of its own for a picture, where there are too many numbers to be drawn one by one."""
        seed, epoch, sample, view = self.counters
        key = (seed, epoch[row], sample[row], np.broadcast_to(view, epoch.shape)[row])
        return torch.Generator().manual_seed(int(draws(*key, int(what))[0] >> np.uint64(1)))
