"""Codebook statistics belong to the global batch: the three collectives they need, which do nothing in a single process."""

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every rank's `values`; works in place where there are several ranks."""
    if _several():
        dist.all_reduce(values)
    return values


def gather_over_ranks(rows: Tensor, most: int) -> Tensor:
    """Every rank's `rows` [N, D], rank 0's first; each rank sends evenly spaced rows so that at most about `most` come together."""
    ranks = dist.get_world_size() if _several() else 1
    rows = rows[:: max(1, -(-len(rows) * ranks // most))].contiguous()
    if ranks == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(ranks)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def from_first_rank(values: Tensor) -> Tensor:
    """Rank 0's `values`, on every rank; in place."""
    if _several():
        dist.broadcast(values, src=0)
    return values


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
