"""Causal attention inside documents, and inside nothing else.

N positions of all documents, H query heads, K key and value heads (H a multiple of K), E width of a head.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from worldloom.world_model.example import Run


class Attention(Protocol):
    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, H, E] from queries [N, H, E], keys and values [N, K, E] of layer number `layer`."""
        ...


class PackedAttention:
    """Documents one behind the other; each run of one length is one dense batch, a view of the packed layout."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed, first = [], 0
        for documents, length in self.runs:
            last = first + documents * length
            q, k, v = (x[first:last].view(documents, length, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])
            mixed.append(out.transpose(1, 2).flatten(0, 1))
            first = last
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)
