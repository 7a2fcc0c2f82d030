"""Windows over a grid of tokens (arXiv:2103.14030, section 3.2): cutting, the masks of shifted windows, offsets between places.

B batch, h x w grid, M side of a window, S windows of a picture, T = M M tokens of a window, D width.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BARRED = -100.0  # added to scores across regions; finite, as in the original, so that no row is ever without a key


def partition(x: Tensor, window: int) -> Tensor:
    """[B, h, w, D] -> [B S, T, D], windows row by row; h and w are multiples of the window."""
    B, h, w, D = x.shape
    return x.view(B, h // window, window, w // window, window, D).transpose(2, 3).reshape(-1, window * window, D)


def merge(windows: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """[B S, T, D] -> [B, h, w, D]; undoes `partition`."""
    h, w = grid
    cells = windows.view(-1, h // window, w // window, window, window, windows.shape[-1])
    return cells.transpose(2, 3).reshape(-1, h, w, windows.shape[-1])


def padded_grid(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """The smallest multiples of the window that hold the grid."""
    return -(-grid[0] // window) * window, -(-grid[1] // window) * window


def pad_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h, w, D] with zeros at the right and the bottom."""
    down, right = grid[0] - x.shape[1], grid[1] - x.shape[2]
    return F.pad(x, (0, 0, 0, right, 0, down)) if down or right else x


def shift_of(grid: tuple[int, int], window: int, shifted: bool) -> tuple[int, int]:
    """(window, shift) that a grid is given: no side of a window is longer than the grid's, and one window alone is not shifted."""
    smallest = min(grid)
    return (smallest, 0) if smallest <= window else (window, window // 2 if shifted else 0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept serves trainings as well
def offset_index(window: int, table: int, device: torch.device) -> Tensor:
    """int64 [T, T]: where a table of (2 table - 1)^2 offsets holds that from key to query, (dh + t - 1)(2 t - 1) + dw + t - 1.

    `table` is the window that the table was made for, at least `window`.
    """
    row, column = _places(window, device)
    down, across = row[:, None] - row[None], column[:, None] - column[None]
    return (down + table - 1) * (2 * table - 1) + across + table - 1


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept serves trainings as well
def shift_mask(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor:
    """float32 [S, T, T]: what is added to the scores of a shifted grid, so that cells see those only that were their neighbours."""
    sides = [_strip(length, window, shift, device) for length in grid]
    region = sides[0][:, None] * 3 + sides[1][None]
    return _apart(partition(region[None, :, :, None], window)[..., 0])


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept serves trainings as well
def padding_mask(grid: tuple[int, int], padded: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor:
    """float32 [S, 1, T]: bars keys that are padding, in a padded grid that is shifted already."""
    real = torch.zeros(padded, dtype=torch.bool, device=device)
    real[: grid[0], : grid[1]] = True
    cells = partition(real.roll((-shift, -shift), (0, 1))[None, :, :, None], window)[..., 0]
    return torch.where(cells, 0.0, BARRED)[:, None]


def _places(window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    cells = torch.arange(window * window, device=device)
    return cells // window, cells % window


def _strip(length: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which of three strips each line of the grid lies in: that of whole windows, the last window's rest, what came round the edge."""
    at = torch.arange(length, device=device)
    return (at >= length - window).long() + (at >= length - shift).long()


def _apart(region: Tensor) -> Tensor:
    return torch.where(region[:, None] == region[:, :, None], 0.0, BARRED)
