"""Stochastic depth (arXiv:1603.09382): while training, a sample skips a residual branch with some probability.

Two forms of the same: every sample goes through the branch and some results are dropped, or only those that are kept go through it
(arXiv:2304.07193, section 5), which saves the share that is dropped. Both draw from torch's own generator.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Branch = Callable[[Tensor], Tensor]
Sizes = Sequence[tuple[int, int]]  # of every group: samples, tokens of a sample
PackedBranch = Callable[[Tensor, Sizes], Tensor]


class DropPath(nn.Module):
    """x + branch(x), [B, ...]; while training, a sample's branch is left out with probability `rate`, else divided by 1 - rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop path must be at least 0 and below 1, got {rate}; 1 would leave nothing to learn")
        self.rate = rate

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        if not self.training or self.rate == 0:
            return x + branch(x)
        kept = torch.rand((len(x), *(1,) * (x.dim() - 1)), device=x.device) >= self.rate
        return x + branch(x) * (kept.to(x.dtype) / (1 - self.rate))

    def packed(self, x: Tensor, sizes: Sizes, branch: PackedBranch) -> Tensor:
        """The same where groups of samples, each of its own length, stand one behind the other: [sum of B T, D]."""
        if not self.training or self.rate == 0:
            return x + branch(x, sizes)
        factors = [((torch.rand(B, device=x.device) >= self.rate).to(x.dtype) / (1 - self.rate)).repeat_interleave(T) for B, T in sizes]
        return x + branch(x, sizes) * torch.cat(factors)[:, None]


class SubsetPath(DropPath):
    """The same on round((1 - rate) B) samples drawn anew, at least one; the others never enter the branch."""

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        if not self.training or self.rate == 0:
            return x + branch(x)
        kept = torch.randperm(len(x), device=x.device)[: max(1, round((1 - self.rate) * len(x)))]
        out = branch(x[kept])
        return x.index_add(0, kept, out.to(x.dtype), alpha=len(x) / len(kept))

    def packed(self, x: Tensor, sizes: Sizes, branch: PackedBranch) -> Tensor:
        if not self.training or self.rate == 0:
            return x + branch(x, sizes)
        rows, factors, fewer, start = [], [], [], 0
        for B, T in sizes:
            count = max(1, round((1 - self.rate) * B))
            kept = torch.randperm(B, device=x.device)[:count]
            rows.append((start + kept[:, None] * T + torch.arange(T, device=x.device)).flatten())
            factors.append(x.new_full((count * T, 1), B / count))
            fewer.append((count, T))
            start += B * T
        taken = torch.cat(rows)
        out = branch(x[taken], fewer) * torch.cat(factors)
        return x.index_add(0, taken, out.to(x.dtype))


def rates(highest: float, depth: int) -> list[float]:
    """One rate a block: from 0 at the first to `highest` at the last, linearly."""
    return [highest * block / max(depth - 1, 1) for block in range(depth)]
