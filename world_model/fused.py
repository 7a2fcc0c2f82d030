"""The pieces of a layer that are not matrix products, each as one step with its gradient written by hand.

Left to autograd, every slice of a fused matrix costs a buffer of zeros and an addition on the way back, and every factor something kept;
on a CPU these passes over memory cost as much as the products. The formulas are those of the plain way, statistics in fp32.

N positions, D width, H query heads, K key and value heads, E width of a head, F width of the feed-forward layer.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

BLOCK = 512  # positions that a CPU treats at a time


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension of [N, D] (arXiv:1910.07467)."""
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, [N, F] from [N, 2F] (arXiv:2002.05202)."""
    product: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
    return product


def norm_and_rotate(qkv: Tensor, weights: tuple[Tensor, Tensor], rotation: tuple[Tensor, Tensor], kv_heads: int, eps: float) -> Tensor:
    """Queries and keys of [N, H + 2K, E] normed, scaled by `weights` (each [E]) and turned; values as they are.

    `rotation` holds cosines and sines, fp32 [N, 1, E/2]: feature i of a head turns with feature i + E/2 (RoFormer, arXiv:2104.09864).
    """
    turned: Tensor = _NormAndRotate.apply(qkv, *weights, *rotation, kv_heads, eps)  # type: ignore[no-untyped-call]
    return turned


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), fp32 [..., 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    scale: Tensor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        out = torch.empty_like(x)
        for some in _blocks(x):
            torch.mul((x[some] * scale[some]).to(x.dtype), weight, out=out[some])
        return out

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        d_x = torch.empty_like(x)
        wide_weight = weight.to(scale.dtype)
        d_weight = torch.zeros_like(wide_weight)
        for some in _blocks(x):
            normed = x[some] * scale[some]
            by_feature = d[some] * normed
            d_weight += by_feature.sum(0)
            # dx = scale (g - normed mean(g normed)) with g = d weight
            mean = (by_feature @ wide_weight).unsqueeze(-1).div_(x.shape[-1])
            d_x[some] = (d[some] * wide_weight).sub_(normed.mul_(mean)).mul_(scale[some])
        return d_x, d_weight.to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        for some in _blocks(gate_up):
            gate, up = gate_up[some].chunk(2, dim=-1)
            torch.mul(silu(gate), up, out=out[some])
        return out

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        d_gate_up = torch.empty_like(gate_up)
        for some in _blocks(gate_up):
            gate, up = gate_up[some].chunk(2, dim=-1)
            d_gate, d_up = d_gate_up[some].chunk(2, dim=-1)
            torch.mul(d[some], silu(gate), out=d_up)
            torch.ops.aten.silu_backward.grad_input(d[some] * up, gate, grad_input=d_gate)
        return d_gate_up


class _NormAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, eps: float
    ) -> Tensor:
        J = qkv.shape[1] - kv_heads  # queries and keys
        weight = torch.cat([query_weight.expand(J - kv_heads, -1), key_weight.expand(kv_heads, -1)]).to(cos.dtype)
        scale = _scale(qkv[:, :J], eps)
        ctx.save_for_backward(qkv, weight, cos, sin, scale)
        ctx.kv_heads = kv_heads
        out = torch.empty_like(qkv)
        for some in _blocks(qkv):
            out[some, J:] = qkv[some, J:]
            scaled = (qkv[some, :J].to(cos.dtype) * scale[some]).mul_(weight)
            _rotate(out[some, :J], scaled, cos[some], sin[some], 1.0)
        return out

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        qkv, weight, cos, sin, scale = ctx.saved_tensors
        J, E = qkv.shape[1] - ctx.kv_heads, qkv.shape[2]
        d_qkv, d_weight = torch.empty_like(qkv), torch.zeros_like(weight)
        for some in _blocks(qkv):
            d_qkv[some, J:] = d[some, J:]
            # Back by the opposite angle; then as in RMSNorm.
            turned = d[some, :J].to(cos.dtype)
            back = torch.empty_like(turned)
            _rotate(back, turned, cos[some], sin[some], -1.0)
            normed = qkv[some, :J].to(cos.dtype) * scale[some]
            d_weight += (back * normed).sum(0)
            mean = torch.linalg.vecdot(back.mul_(weight), normed).unsqueeze(-1).div_(E)
            d_qkv[some, :J] = back.sub_(normed.mul_(mean)).mul_(scale[some])
        d_query, d_key = d_weight[: J - ctx.kv_heads].sum(0), d_weight[J - ctx.kv_heads :].sum(0)
        return d_qkv, d_query.to(qkv.dtype), d_key.to(qkv.dtype), None, None, None, None


def _blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the positions, so small on a CPU that what is made between two steps stays in the cache."""
    N = x.shape[0]
    step = BLOCK if x.device.type == "cpu" else max(N, 1)
    return (slice(first, first + step) for first in range(0, N, step))


def _rotate(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> None:
    """Writes `x` [N, J, E], turned, into `out`."""
    low, high = x.chunk(2, dim=-1)
    half = low.shape[-1]
    out[..., :half] = torch.addcmul(low * cos, high, sin, value=-direction)
    out[..., half:] = torch.addcmul(high * cos, low, sin, value=direction)
