"""Finite scalar quantization (arXiv:2309.15505): no codebook, no loss of its own; every channel is rounded to one of a few levels.

B batch, D channels, L levels of a channel. A code is a mixed-radix number whose lowest digit is channel 0, in int64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worldloom.tokenizers.quantizers.codebooks import CodeStatistics, Float32State, Upkeep
from worldloom.tokenizers.quantizers.quantized import Quantized, check_codes

MARGIN = 1e-3  # the bound reaches this share beyond the outermost levels, so that they can be left again
MOST_LEVELS = 256  # of a channel; from about 1,000 on the margin would add a level


class FsqQuantizer(Float32State):
    """`bound(z)` squashes channel c into its range by tanh, rounding picks the level, gradients pass straight through the rounding.

    Even counts have an offset of half a step. The shift is atanh where the paper's listing has tan, so that 0 maps to exactly 0.
    What the decoder reads lies in [-1, 1].
    """

    half_D: Tensor
    offset_D: Tensor
    shift_D: Tensor
    levels_D: Tensor
    place_D: Tensor

    def __init__(self, levels: Sequence[int], upkeep: Upkeep) -> None:
        super().__init__()
        if not levels or min(levels) < 3 or max(levels) > MOST_LEVELS:
            raise ValueError(f"every channel has 3 to {MOST_LEVELS} levels (5 or more work best), got {list(levels)}")
        self.codebook_size = math.prod(levels)
        self.levels = 1
        self.in_width = self.out_width = len(levels)
        self.statistics = CodeStatistics(self.codebook_size, upkeep)
        counts = torch.tensor(levels, dtype=torch.float64)
        half = (counts - 1) * (1 + MARGIN) / 2
        offset = torch.where(counts % 2 == 0, 0.5, 0.0).double()
        # They follow from the settings, so they are no part of the saved weights.
        for name, value in (("half_D", half), ("offset_D", offset), ("shift_D", (offset / half).atanh())):
            self.register_buffer(name, value.float(), persistent=False)
        self.register_buffer("levels_D", torch.tensor(levels), persistent=False)
        self.register_buffer("place_D", torch.tensor([math.prod(levels[:c]) for c in range(len(levels))]), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z.float().movedim(1, -1))
            rounded = bounded + (bounded.round() - bounded).detach()
            codes = self._codes(rounded.detach())
            if self.training:
                self.statistics.tally(codes)
            return Quantized(z=(rounded / self._width()).movedim(-1, 1), codes=codes, loss=z.new_zeros((), dtype=torch.float32))

    def bound(self, z: Tensor) -> Tensor:
        """[..., D] -> [..., D]: rounding it gives exactly L different integers, from -floor(L / 2) on."""
        return (z + self.shift_D).tanh() * self.half_D - self.offset_D

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """[B, D, *grid] -> int64 codes [B, *grid]."""
        return self._codes(self.bound(z.float().movedim(1, -1)).round())

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes [B, *grid] -> [B, D, *grid]."""
        check_codes(codes, self.codebook_size)
        digits = codes[..., None] // self.place_D % self.levels_D
        return ((digits - self.levels_D // 2) / self._width()).movedim(-1, 1)

    def _codes(self, rounded: Tensor) -> Tensor:
        # Rounded before the cast: a truncating cast of a value that was scaled to [-1, 1] and back is wrong from 26 levels on.
        return ((rounded.round().long() + self.levels_D // 2) * self.place_D).sum(-1)

    def _width(self) -> Tensor:
        return (self.levels_D // 2).float()
