"""What every encoder gives: pictures to features.

B batch, C channels, H x W pixels, N tokens of the picture, D width.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Features(NamedTuple):
    """Of one batch of pictures."""

    tokens: Tensor  # [B, N, D], row by row, without class tokens
    pooled: Tensor  # [B, D]: one vector for a picture


class Encoder(Protocol):
    """A module that reads pictures; reusable on its own, as a backbone, a teacher or a judge."""

    @property
    def width(self) -> int:
        """D: numbers of a feature."""
        ...

    def __call__(self, pixels: Tensor) -> Features:
        """[B, C, H, W] -> Features."""
        ...
