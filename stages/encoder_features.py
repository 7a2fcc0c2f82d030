"""Pictures as encoders take them, and what they make of many.

B batch, H x W pixels, D width.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldloom.stages.augment import along_both, resize_matrix
from worldloom.stages.value_batches import Values

AT_ONCE = 64  # pictures

Read = Callable[[Tensor], Tensor]  # pictures in [-1, 1] -> [B, D]


def features_of(values: Values, index: NDArray[np.int64], read: Read) -> Tensor:
    """[len(index), D], in the type that `read` gives; ValueError where there is no picture."""
    if not len(index):
        raise ValueError(f"no sample of the split {values.split!r} has the stream {values.stream!r}; there is nothing to measure")
    return torch.cat([read(signed(values[part])) for part in np.array_split(index, -(-len(index) // AT_ONCE))])


def signed(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def unsigned(x: Tensor) -> NDArray[np.uint8]:
    """The way back, rounded and clipped."""
    pixels: NDArray[np.uint8] = ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return pixels


def own_pixels(x: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> int16 [B, 3 H W], 255 x: the directions and spreads of bare pixels in half the memory."""
    return (255 * x).round().short().flatten(1)


def resized(x: Tensor, side: int) -> Tensor:
    """[B, C, H, W] -> [B, C, S, S], bilinear with antialiasing."""
    rows, columns = (resize_matrix(length, side, torch.zeros(1), torch.full((1,), float(length))) for length in x.shape[-2:])
    return along_both(x, rows, columns)
