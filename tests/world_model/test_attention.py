"""Attention inside documents: equal to torch's own, and blind to everything else."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from worldloom.world_model import attention
from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Run

RUNS = (Run(2, 3), Run(1, 4, causal=False), Run(3, 5))
N, H, K, E = 25, 4, 2, 6


def qkv() -> Tensor:
    return torch.randn((N, H + 2 * K, E), generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)


def alone(x: Tensor) -> Tensor:
    """Each document by torch's kernel, key heads repeated by hand."""
    runs = [run for run in RUNS for _ in range(run.documents)]
    mixed = []
    for run, document in zip(runs, torch.split(x, [run.length for run in runs]), strict=True):
        query, key, value = (part.transpose(0, 1) for part in torch.split(document, [H, K, K], dim=1))
        key, value = (part.repeat_interleave(H // K, dim=0) for part in (key, value))
        mixed.append(F.scaled_dot_product_attention(query, key, value, is_causal=run.causal).transpose(0, 1))
    return torch.cat(mixed)


@pytest.fixture(params=[(512, 128), (512, 2), (0, 2), (60, 3)], ids=["one block", "kept", "computed again", "both"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "KEPT", request.param[0])
    monkeypatch.setattr(attention, "QUERIES", request.param[1])


@pytest.mark.usefixtures("blocks")
def test_packed_documents_get_what_each_gets_alone() -> None:
    x = qkv()
    made, expected = PackedAttention(RUNS)(0, x, K), alone(x)
    torch.testing.assert_close(made, expected)
    towards = torch.randn(made.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(made, x, towards)[0], torch.autograd.grad(expected, x, towards)[0])


def test_the_kernel_of_other_devices_gives_the_same() -> None:
    x = qkv()
    for scale in (None, 1.0, 0.3):
        torch.testing.assert_close(attention._attention(x, K, RUNS, scale), PackedAttention(RUNS, scale)(0, x, K))
        towards = torch.randn((N, H, E), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        theirs, mine = (
            torch.autograd.grad(made, x, towards)[0]
            for made in (attention._attention(x, K, RUNS, scale), PackedAttention(RUNS, scale)(0, x, K))
        )
        torch.testing.assert_close(mine, theirs)


@pytest.mark.usefixtures("blocks")
def test_neither_another_document_nor_the_future_is_seen_at_all() -> None:
    x = qkv()
    made = PackedAttention(RUNS)(0, x, K)
    # Position 11 is the second of the document at 10 .. 14.
    gradient = torch.autograd.grad(made[11].sum(), x)[0].flatten(1).abs().sum(1)
    assert gradient.nonzero()[:, 0].tolist() == [10, 11]
    # Position 7 is the second of the document at 6 .. 9, which sees itself whole.
    gradient = torch.autograd.grad(PackedAttention(RUNS)(0, x, K)[7].sum(), x)[0].flatten(1).abs().sum(1)
    assert gradient.nonzero()[:, 0].tolist() == [6, 7, 8, 9]


def test_no_documents_give_nothing_by_either_way() -> None:
    x = torch.zeros(0, H + 2 * K, E, requires_grad=True)
    for made in (PackedAttention(())(0, x, K), attention._attention(x, K, (), None)):
        assert made.shape == (0, H, E)
        made.sum().backward()


def kept_bytes(length: int, heads: int = 16) -> int:
    """What one document leaves for the way back, forward in fp32."""
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        sizes[x.data_ptr()] = x.nbytes
        return x

    x = torch.randn((length, heads + 2, 2), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        PackedAttention((Run(1, length),))(0, x, 1)
    return sum(sizes.values())


@pytest.mark.parametrize("length", [64, 512, 1024, 2048])
def test_as_it_is_set_a_layer_keeps_no_more_for_a_position_of_a_long_document_than_of_a_short_one(length: int) -> None:
    of_position = 4 * 2 * (16 + 2)  # bytes of its queries, key and value
    assert kept_bytes(length) <= length * (attention.KEPT + of_position)


def test_without_a_budget_what_is_kept_grows_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "KEPT", 1 << 40)
    assert kept_bytes(1024) > 3 * kept_bytes(512) > 512 * 3 * (16 << 10)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_nothing_grows_with_the_square_of_a_documents_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the budget that is shipped; blocks are smaller, or 128 positions would be one."""
    monkeypatch.setattr(attention, "QUERIES", 8)

    def largest(length: int) -> int:
        x = torch.randn((length, H + 2 * K, E), requires_grad=True)
        with Largest() as seen:
            PackedAttention((Run(1, length),))(0, x, K).sum().backward()
        return seen.elements

    assert largest(128) == 2 * largest(64) < 128 * 128
