"""Gradients written by hand are those that autograd finds for the plain formulas."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldloom.world_model.fused import BLOCK, norm_and_rotate, rms_norm, swiglu
from worldloom.world_model.transformer import rotary

N, H, K, E, EPS = BLOCK + 3, 4, 2, 6, 1e-3
GENERATOR = torch.Generator().manual_seed(0)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64, requires_grad=True)


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


def plain_turn(x: Tensor, positions: Tensor) -> Tensor:
    """Feature i and i + E/2 of a head as one complex number, turned."""
    angle = positions[:, None].double() * 100.0 ** (-torch.arange(0, E, 2, dtype=torch.float64) / E)
    low, high = x.chunk(2, dim=-1)
    turned = torch.complex(low, high) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def plain_norm_and_rotate(qkv: Tensor, query: Tensor, key: Tensor, positions: Tensor) -> Tensor:
    parts = torch.split(qkv, [H, K, K], dim=1)
    turned = [plain_turn(plain_norm(x, weight), positions) for x, weight in zip(parts, (query, key), strict=False)]
    return torch.cat([*turned, parts[2]], dim=1)


POSITIONS = torch.arange(N) % 11


def fused_norm_and_rotate(qkv: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return norm_and_rotate(qkv, (query, key), rotary(POSITIONS, E, 100.0, torch.float64), K, EPS)


@pytest.mark.parametrize(
    ("ours", "plain", "inputs"),
    [
        (lambda x, w: rms_norm(x, w, EPS), plain_norm, (numbers(N, 5), numbers(5))),
        (swiglu, lambda x: F.silu(x[:, :5]) * x[:, 5:], (numbers(N, 10),)),
        (
            fused_norm_and_rotate,
            lambda *x: plain_norm_and_rotate(*x, POSITIONS),
            (numbers(N, H + 2 * K, E), numbers(E), numbers(E)),
        ),
    ],
    ids=["rms_norm", "swiglu", "norm_and_rotate"],
)
def test_values_and_gradients_are_those_of_the_plain_way(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> None:
    made, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)  # angles are taken in fp32
    towards = torch.randn(made.shape, generator=GENERATOR, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(out, inputs, towards) for out in (made, expected))
    for ours_, plain_ in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours_, plain_, rtol=1e-5, atol=1e-5)
