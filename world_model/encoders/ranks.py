"""Statistics and negatives belong to the global batch: the collectives they need, which do nothing in a single process."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, a tensor of its own; no gradient passes."""
    total = values.detach().clone()
    if _several():
        dist.all_reduce(total)
    return total


def max_over_ranks(value: Tensor) -> Tensor:
    """The largest of every rank's `value`; no gradient passes."""
    highest = value.detach().clone()
    if _several():
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest


def gather_with_gradient(rows: Tensor) -> Tensor:
    """[B, ...] -> [ranks B, ...], rank 0's first; ranks have equally many. The gradient of every rank's loss reaches the rows.

    Where every rank's loss is the mean over its own rows and gradients are then averaged over ranks, the result is that of one rank.
    """
    return cast(Tensor, _Gather.apply(rows)) if _several() else rows  # type: ignore[no-untyped-call]


def mirrored(rows: Tensor) -> Tensor:
    """[B, ...] -> the same number of rows: to each row of the global batch the one that stands as far from its end; no gradient passes.

    Ranks have equally many.
    """
    rows, other = rows.detach().contiguous(), ranks() - 1 - rank()
    if other == rank():
        return rows.flip(0)
    found = torch.empty_like(rows)
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, rows, other), dist.P2POp(dist.irecv, found, other)]):
        work.wait()
    return found.flip(0)


def ranks() -> int:
    """How many share a global batch."""
    return dist.get_world_size() if _several() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _several() else 0


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
