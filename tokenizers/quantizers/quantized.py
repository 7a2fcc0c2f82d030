"""What a quantizer gives back, whatever its kind."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from worldloom.tokenizers.quantizers.codebooks import CodeStatistics


class Quantized(NamedTuple):
    """B batch, D code width; the grid has as many axes as the data: [h, w] of a picture."""

    z: Tensor  # [B, D, *grid]: what the decoder reads; gradients pass to the encoder
    codes: Tensor  # int64 [B, *grid]
    loss: Tensor  # scalar, float32: the quantizer's own loss, its weights applied


class Quantizer(Protocol):
    """Maps the encoder's output to codes and codes to what the decoder reads; an nn.Module."""

    codebook_size: int  # codes of one level
    levels: int  # codes at one place of the grid; where there are more than one, `codes` and what encode gives have them as a last axis
    in_width: int  # channels it takes from the encoder
    out_width: int  # channels it hands to the decoder

    @property
    def statistics(self) -> CodeStatistics:
        """How often each code is chosen in training."""
        ...

    def __call__(self, z: Tensor) -> Quantized:
        """[B, in_width, *grid] -> Quantized; in training mode it may also update its statistics."""
        ...

    def encode(self, z: Tensor) -> Tensor:
        """[B, in_width, *grid] -> int64 codes [B, *grid]; never random."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes [B, *grid] -> [B, out_width, *grid]; ValueError for a code out of range."""
        ...


def check_codes(codes: Tensor, codebook_size: int) -> None:
    """ValueError unless all codes are integers in 0 .. codebook_size - 1."""
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes are integers, got {codes.dtype}")
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < codebook_size):
        raise ValueError(
            f"codes must lie in 0 .. {codebook_size - 1}, got {int(codes.min())} .. {int(codes.max())}; "
            f"world-model tokens must be shifted back into their stream's span first"
        )
