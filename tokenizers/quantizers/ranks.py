"""Codebook statistics belong to the global batch: the collectives they need, which do nothing in a single process."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`; works in place where there are several ranks."""
    if _several():
        dist.all_reduce(values)
    return values


def sum_with_gradient(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, whose gradient reaches the values of all ranks: backward is collective, too.

    Where every rank's loss is a function of the sum and gradients are then averaged over ranks, that is the gradient of the one loss.
    """
    return cast(Tensor, _Sum.apply(values)) if _several() else values  # type: ignore[no-untyped-call]


def ranks() -> int:
    """How many share a global batch."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _several() else 0


def gather_over_ranks(rows: Tensor, most: int) -> Tensor:
    """Every rank's `rows` [N, D], rank 0's first; each rank sends evenly spaced rows so that at most about `most` come together."""
    count = ranks()
    rows = rows[:: max(1, -(-len(rows) * count // most))].contiguous()
    if count == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(count)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def from_first_rank(values: Tensor) -> Tensor:
    """Rank 0's `values`, on every rank; in place."""
    if _several():
        dist.broadcast(values, src=0)
    return values


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_ranks(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone(memory_format=torch.contiguous_format))
