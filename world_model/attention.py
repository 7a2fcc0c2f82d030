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


class CachedAttention:
    """B rows that grow token by token, each at its own place; the keys and values of earlier tokens are kept.

    What stands behind a row's own position is never seen, so rows of different lengths lie side by side, aligned at the left.
    """

    def __init__(self, depth: int, rows: int, length: int, kv_heads: int, head_width: int, like: Tensor) -> None:
        """Room for `length` tokens a row, in the type and on the device of `like`."""
        self.keys = [like.new_zeros(rows, kv_heads, length, head_width) for _ in range(depth)]
        self.values = [like.new_zeros(rows, kv_heads, length, head_width) for _ in range(depth)]
        self.positions = torch.zeros(rows, 0, dtype=torch.int64, device=like.device)
        self.reach = 0

    def at(self, positions: Tensor, reach: int) -> "CachedAttention":
        """The next call writes tokens at `positions` [B, Q], all below `reach`; every row attends to what stands at or before each."""
        self.positions, self.reach = positions, reach
        return self

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but `rows` (int64, in the new order)."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        B, Q = self.positions.shape
        H, K, E = query.shape[1], key.shape[1], query.shape[2]
        rows = torch.arange(B, device=query.device)[:, None]
        self.keys[layer][rows, :, self.positions] = key.view(B, Q, K, E)
        self.values[layer][rows, :, self.positions] = value.view(B, Q, K, E)
        keys, values = self.keys[layer][:, :, : self.reach], self.values[layer][:, :, : self.reach]
        seen = torch.arange(self.reach, device=query.device) <= self.positions[:, None, :, None]
        mixed = F.scaled_dot_product_attention(query.view(B, Q, H, E).transpose(1, 2), keys, values, attn_mask=seen, enable_gqa=H != K)
        return mixed.transpose(1, 2).reshape(B * Q, H, E)
