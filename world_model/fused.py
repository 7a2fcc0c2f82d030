"""The pieces of a layer that are not matrix products, each as one step with its gradient written by hand.

Left to autograd, every slice of a fused matrix costs a buffer of zeros and an addition on the way back, and every factor something kept;
on a CPU these passes over memory cost as much as the products. The formulas are those of the plain way, statistics in fp32.

N positions, D width, H query heads, K key and value heads, E width of a head, F width of the feed-forward layer.
"""

from typing import Any

import torch
from torch import Tensor


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
        return (x * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        by_feature = d * normed
        # dx = scale (g - normed mean(g normed)) with g = d weight
        mean = (by_feature @ weight.to(normed.dtype)).unsqueeze(-1).div_(x.shape[-1])
        d_x = (d * weight * scale).sub_(normed.mul_(mean.mul_(scale)))
        return d_x.to(x.dtype), by_feature.sum(0).to(weight.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        opened = torch.nn.functional.silu(gate)
        ctx.save_for_backward(gate_up, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        gate_up, opened = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, dim=-1)
        torch.mul(d, opened, out=d_up)
        torch.ops.aten.silu_backward.grad_input(d * up, gate, grad_input=d_gate)
        return d_gate_up


class _NormAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, query_weight: Tensor, key_weight: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, eps: float
    ) -> Tensor:
        turned = qkv.shape[1] - kv_heads
        weight = _by_head(query_weight, key_weight, turned - kv_heads, kv_heads)
        qk = qkv[:, :turned]
        scale = _scale(qk, eps)
        ctx.save_for_backward(qkv, weight, cos, sin, scale)
        ctx.kv_heads = kv_heads
        out = torch.empty_like(qkv)
        out[:, turned:] = qkv[:, turned:]
        _rotate(out[:, :turned], (qk * scale).mul_(weight), cos, sin, 1.0)
        return out

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        qkv, weight, cos, sin, scale = ctx.saved_tensors
        turned = qkv.shape[1] - ctx.kv_heads
        d_qkv = torch.empty_like(qkv)
        d_qkv[:, turned:] = d[:, turned:]
        # The way back turns by the opposite angle; then as in RMSNorm.
        back = torch.empty(qkv.shape[0], turned, qkv.shape[2], dtype=scale.dtype, device=qkv.device)
        _rotate(back, d[:, :turned].to(scale.dtype), cos, sin, -1.0)
        normed = qkv[:, :turned] * scale
        d_weight = (back * normed).sum(0)
        back.mul_(weight)
        mean = torch.linalg.vecdot(back, normed).unsqueeze(-1).div_(qkv.shape[2])
        torch.mul(back.sub_(normed.mul_(mean)), scale, out=back)
        d_qkv[:, :turned] = back
        heads = turned - ctx.kv_heads
        d_query, d_key = d_weight[:heads].sum(0).to(qkv.dtype), d_weight[heads:].sum(0).to(qkv.dtype)
        return d_qkv, d_query, d_key, None, None, None, None


def _by_head(query_weight: Tensor, key_weight: Tensor, heads: int, kv_heads: int) -> Tensor:
    return torch.cat([query_weight.expand(heads, -1), key_weight.expand(kv_heads, -1)]).to(
        torch.promote_types(query_weight.dtype, torch.float32)
    )


def _rotate(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> None:
    """Writes `x` [N, J, E], turned, into `out`."""
    low, high = x.chunk(2, dim=-1)
    half = low.shape[-1]
    out[..., :half] = torch.addcmul(low * cos, high, sin, value=-direction)
    out[..., half:] = torch.addcmul(high * cos, low, sin, value=direction)
