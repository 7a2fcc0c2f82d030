"""Attention inside documents, and inside nothing else: causal, or over the whole document.

N positions of all documents, H query heads, K key and value heads (H a multiple of K), E width of a head; G documents of L tokens.
"""

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from worldloom.world_model.example import Run

QUERIES = 128  # of a block
# Bytes of probabilities that a layer keeps for the way back, for each of its positions: about as much as all else that it keeps at a width
# of 384. Those beyond, of long documents, are computed again, so that memory grows linearly with a document's length.
KEPT = 16 << 10


class Attention(Protocol):
    def __call__(self, layer: int, qkv: Tensor, kv_heads: int) -> Tensor:
        """[N, H, E] from the queries, keys and values, [N, H + 2K, E], of layer number `layer`."""
        ...


class PackedAttention:
    """Documents one behind the other; each run of one length is one dense batch, a view of the packed layout."""

    def __init__(self, runs: Sequence[Run], scale: float | None = None) -> None:
        """`scale`: what scores are multiplied by; None takes 1 / sqrt(E)."""
        self.runs, self.scale = tuple(runs), scale

    def __call__(self, layer: int, qkv: Tensor, kv_heads: int) -> Tensor:
        if qkv.device.type == "cpu":
            scale = 1 / sqrt(qkv.shape[2]) if self.scale is None else self.scale
            mixed: Tensor = _BlockedAttention.apply(qkv, kv_heads, self.runs, scale)  # type: ignore[no-untyped-call]
            return mixed
        return _attention(qkv, kv_heads, self.runs, self.scale)


def _attention(qkv: Tensor, kv_heads: int, runs: Sequence[Run], scale: float | None) -> Tensor:
    H, mixed, first = qkv.shape[1] - 2 * kv_heads, [], 0
    for documents, length, causal in runs:
        last = first + documents * length
        heads = qkv[first:last].view(documents, length, *qkv.shape[1:]).transpose(1, 2)
        query, key, value = torch.split(heads, [H, kv_heads, kv_heads], dim=1)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale, enable_gqa=kv_heads != H)
        mixed.append(out.transpose(1, 2).flatten(0, 1))
        first = last
    # Without documents, when a batch was split into more parts than it has, an empty part of the queries keeps the graph whole.
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0] if mixed else qkv[:, :H]


class _BlockedAttention(torch.autograd.Function):
    """softmax(scale q k) v by batched products, a block of queries at a time, so that what a causal block cannot see is never
    computed. On CPUs twice as fast as torch's kernel in bf16, most of all on the way back. Memory grows linearly with a document's length:
    of the blocks' probabilities, the first that fit a budget are kept.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, kv_heads: int, runs: tuple[Run, ...], scale: float) -> Tensor:
        N, heads, E = qkv.shape
        H = heads - 2 * kv_heads
        out = qkv.new_empty(N, H, E)
        kept, left, first = list[Tensor | None](), KEPT * N, 0
        for run in runs:
            last = first + run.documents * run.length
            query, key, value = (_gather(x, run.documents, kv_heads) for x in torch.split(qkv[first:last], [H, kv_heads, kv_heads], dim=1))
            query, key, value = query if scale == 1 else query * scale, key[:, 0], value[:, 0]
            mixed = torch.empty_like(query)
            kept += [query, key, value]
            for begin, end, reach in _query_blocks(run):
                p = _probabilities(_rows(query, begin, end) @ key[:, :reach].transpose(1, 2), end - begin, run.causal)
                mixed[:, :, begin:end] = (p @ value[:, :reach]).view(*mixed.shape[:2], end - begin, E)
                left -= p.nbytes
                kept.append(p if left >= 0 else None)
            _scatter(out[first:last], mixed, run.documents, kv_heads)
            first = last
        ctx.save_for_backward(*kept)
        ctx.runs, ctx.kv_heads, ctx.scale = runs, kv_heads, scale
        return out

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None, None]:
        N, H, E = d.shape
        K = ctx.kv_heads
        d_qkv = d.new_empty(N, H + 2 * K, E)
        wide = torch.promote_types(d.dtype, torch.float32)
        kept, first = iter(ctx.saved_tensors), 0
        for run in ctx.runs:
            last = first + run.documents * run.length
            query, key, value = (next(kept) for _ in range(3))
            d_mixed = _gather(d[first:last], run.documents, K)
            d_query = torch.empty_like(query)
            d_key, d_value = (torch.zeros_like(x, dtype=wide) for x in (key, value))  # sums over the blocks
            for begin, end, reach in _query_blocks(run):
                d_out, asked = _rows(d_mixed, begin, end), _rows(query, begin, end)
                p = next(kept)
                if p is None:
                    p = _probabilities(asked @ key[:, :reach].transpose(1, 2), end - begin, run.causal)
                # In fp32 inside, whatever the type.
                d_scores = torch._softmax_backward_data(d_out @ value[:, :reach].transpose(1, 2), p, -1, p.dtype)
                d_query[:, :, begin:end] = (d_scores @ key[:, :reach]).view(*query.shape[:2], end - begin, E)
                d_key[:, :reach] += d_scores.transpose(1, 2) @ asked
                d_value[:, :reach] += p.transpose(1, 2) @ d_out
            parts = (d_query.mul_(ctx.scale), d_key[:, None], d_value[:, None])
            for part, target in zip(parts, torch.split(d_qkv[first:last], [H, K, K], dim=1), strict=True):
                _scatter(target, part, run.documents, K)
            first = last
        return d_qkv, None, None, None


def _query_blocks(run: Run) -> Iterator[tuple[int, int, int]]:
    """The first and the last query of each block, and how many keys it can see."""
    for begin in range(0, run.length, QUERIES):
        end = min(begin + QUERIES, run.length)
        yield begin, end, end if run.causal else run.length


def _rows(x: Tensor, begin: int, end: int) -> Tensor:
    """Some queries of [G K, H/K, L, E] as [G K, (H/K) n, E]: heads that share a key head stand one behind the other."""
    return x[:, :, begin:end].flatten(1, 2)


def _gather(x: Tensor, documents: int, kv_heads: int) -> Tensor:
    """[G K, J/K, L, E] from [G L, J, E]."""
    N, J, E = x.shape
    by_head = x.view(documents, N // documents, kv_heads, J // kv_heads, E).permute(0, 2, 3, 1, 4)
    return by_head.reshape(documents * kv_heads, J // kv_heads, -1, E)


def _scatter(target: Tensor, x: Tensor, documents: int, kv_heads: int) -> None:
    """The way back from `_gather`, written into `target`."""
    N, J, E = target.shape
    by_head = x.view(documents, kv_heads, J // kv_heads, N // documents, E).permute(0, 3, 1, 2, 4)
    target.view(documents, N // documents, kv_heads, J // kv_heads, E).copy_(by_head)


def _probabilities(scores: Tensor, queries: int, causal: bool) -> Tensor:
    """The softmax of scores [G K, (H/K) n, reach], taken in fp32, given in their type; `scores` are written over.

    Causal: the n `queries` are the last of the `reach` positions.
    """
    if causal:
        unseen = torch.full((queries, queries), -torch.inf, dtype=scores.dtype).triu_(1)
        scores.view(-1, queries, scores.shape[-1])[..., -queries:] += unseen
    return torch.softmax(scores, dim=-1)
