"""What every tokenizer is: samples to codes and back, the codes local integers 0 .. codebook_size - 1."""

from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np


class Tokenizer(Protocol):
    """Deterministic, batch-invariant, and the same after `save_pretrained` and `from_pretrained`."""

    kind: ClassVar[str]  # the kind of stream it serves: "text", "image", "video", "audio", "action"

    @property
    def codebook_size(self) -> int:
        """How many codes there are; of one level, where there are several."""
        ...

    @property
    def levels(self) -> int:
        """Codes at one place, each of a codebook of its own; where there are more than one, they are the last axis of `shape`."""
        ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one sample's codes, or None where it varies."""
        ...

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of everything that decides the codes: weights, preprocessing, quantizer."""
        ...

    def encode(self, batch: Any) -> Any:
        """Values [B, *form] -> int64 array [B, *shape]; texts, a list of B strings -> a list of B int64 arrays."""
        ...

    def decode(self, codes: Any) -> Any:
        """The way back: any grid of codes in range gives a sample."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Writes config.json and the weights into `folder`, which is made if need be."""
        ...

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Reads what `save_pretrained` wrote; FileNotFoundError or ValueError where it is incomplete or damaged."""
        ...


def smallest_unsigned(codebook_size: int) -> np.dtype[Any]:
    """The smallest unsigned type of tokens on disk that holds codes 0 .. codebook_size - 1: uint16 or uint32."""
    return np.dtype(np.uint16) if codebook_size <= 1 << 16 else np.dtype(np.uint32)
