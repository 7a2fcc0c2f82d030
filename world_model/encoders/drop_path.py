"""Stochastic depth (arXiv:1603.09382): while training, a sample skips a residual branch with some probability."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """[B, ...] -> the same, zero for some samples and divided by the share that is kept for the others; draws from torch's generator."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path must be at least 0 and below 1, got {rate}; 1 would leave nothing to learn")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand((len(x), *(1,) * (x.dim() - 1)), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))


def rates(highest: float, depth: int) -> list[float]:
    """One rate a block: from 0 at the first to `highest` at the last, linearly."""
    return [highest * block / max(depth - 1, 1) for block in range(depth)]
