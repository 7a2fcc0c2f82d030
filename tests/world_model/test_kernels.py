"""The compiled kernels against the formulas in float64, and the world without them."""

import logging
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worldloom.world_model import decoder as decoder_file
from worldloom.world_model.decoder import Cache, Decoder
from worldloom.world_model.kernels import Kernels, compiled, kernels_for
from worldloom.world_model.transformer import rotary

B, Q, H, K, E, T = 3, 2, 4, 2, 6, 11
EPS = 0.01


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    made = compiled()
    if made is None:
        pytest.skip("there is no compiler, so there are no kernels")
    return made


def some(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def close(made: Tensor, expected: Tensor) -> None:
    """Within one rounding to bfloat16."""
    torch.testing.assert_close(made.double(), expected, rtol=2**-8, atol=2**-10)


@pytest.mark.parametrize("width", [5, 64, 67])
def test_norms_and_gates_are_their_formulas_to_a_rounding(kernels: Kernels, width: int) -> None:
    x, gate_up = some(0, 7, width), some(1, 7, 2 * width) * 4
    close(kernels.norm(x, EPS), x.double() / (x.double().square().mean(1, keepdim=True) + EPS).sqrt())
    gate, up = gate_up.double().chunk(2, dim=1)
    close(kernels.gate(gate_up), gate / (1 + (-gate).exp()) * up)


def test_gates_far_out_are_open_or_shut(kernels: Kernels) -> None:
    far = torch.tensor([[-1e4, -200.0, -90.0, 90.0, 200.0, 1e4, *[1.0] * 6]]).bfloat16()
    close(kernels.gate(far), torch.nn.functional.silu(far[:, :6].double()))


@pytest.mark.parametrize("width", [E, 64])
def test_queries_and_keys_are_normed_weighted_and_turned_and_values_stay(kernels: Kernels, width: int) -> None:
    qkv, weights, positions = some(2, B * Q, H + 2 * K, width), torch.rand(H + K, width), torch.tensor([0, 3, 9, 10, 1, 5])
    cos, sin = (table[:, 0].contiguous() for table in rotary(torch.arange(12), width, 50.0, torch.float32))
    made = qkv.clone()
    kernels.turn(made, weights, cos, sin, positions, EPS)
    x = qkv[:, : H + K].double()
    low, high = (x / (x.square().mean(2, keepdim=True) + EPS).sqrt() * weights).chunk(2, dim=2)
    c, s = cos.double()[positions][:, None], sin.double()[positions][:, None]
    close(made[:, : H + K], torch.cat([low * c - high * s, high * c + low * s], dim=2))
    assert torch.equal(made[:, H + K :], qkv[:, H + K :])


@pytest.mark.parametrize("width", [E, 64])
def test_a_query_finds_what_its_row_kept_up_to_itself(kernels: Kernels, width: int) -> None:
    qkv, kept, positions = some(3, B * Q, H + 2 * K, width), some(4, 2, B, K, T, width), torch.tensor([[0, 1], [4, 5], [9, 10]])
    before = kept.clone()
    made = kernels.attend(qkv, kept, positions, torch.empty(B * Q * H * T)).view(B, Q, H, width)
    for row, places in enumerate(positions.tolist()):
        for at, place in enumerate(places):
            query, key, value = qkv[row * Q + at].split([H, K, K])
            assert torch.equal(kept[0, row, :, place], key) and torch.equal(kept[1, row, :, place], value)
            before[:, row, :, place] = kept[:, row, :, place]
            keys, values = (x[row, :, : place + 1].double().repeat_interleave(H // K, dim=0) for x in kept)
            p = torch.softmax(torch.einsum("he,hte->ht", query.double(), keys), dim=1)
            close(made[row, at], torch.einsum("ht,hte->he", p, values))
    assert torch.equal(before, kept)


@pytest.mark.parametrize("columns", [1, 5, 64, 131])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_draw_is_where_the_probabilities_reach_the_noise(kernels: Kernels, columns: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(400, columns, generator=generator)
    logits[:, : columns // 3] = -torch.inf
    noise = torch.rand(400, dtype=torch.float64, generator=generator)
    noise[:2] = torch.tensor([0.0, 1 - 2**-53])
    reached = torch.softmax(logits.double() / temperature, 1).cumsum(1)
    drawn = kernels.draw(logits, noise, temperature)[:, None]
    under = torch.where(drawn > 0, reached.gather(1, (drawn - 1).clamp(min=0)), 0.0)[:, 0]
    assert ((under <= noise + 1e-6) & (noise <= reached.gather(1, drawn)[:, 0] + 1e-6)).all()
    assert logits.gather(1, drawn).isfinite().all()


def test_sums_that_find_no_memory_say_so(kernels: Kernels) -> None:
    with pytest.raises(MemoryError, match=f"no memory for the sums of 1 rows of {1 << 50} logits; sample fewer at a time"):
        kernels.draw(torch.zeros(1, 1).expand(1, 1 << 50), torch.zeros(1, dtype=torch.float64), 1.0)


def test_only_bfloat16_on_a_processor_has_kernels(kernels: Kernels) -> None:
    assert kernels_for(torch.bfloat16, torch.device("cpu"), 64) is kernels
    for dtype, device, width in ((torch.float32, "cpu", 64), (torch.bfloat16, "cuda", 64), (torch.bfloat16, "cpu", 1024)):
        assert kernels_for(dtype, torch.device(device), width) is None


@torch.inference_mode()
def test_without_kernels_a_world_says_nearly_the_same(worlds, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    def logits() -> Tensor:
        decoder = Decoder(worlds.tiny_model(), torch.bfloat16)
        cache = Cache(decoder, 2)
        cache.begin([[1, 2], [3, 4, 5]])
        found = [cache.step(torch.tensor([6, 7]), torch.tensor([2 + at, 3 + at])) for at in range(3)]
        return torch.cat([decoder.logits(hidden, (range(decoder.shape.vocab_size),)) for hidden in found])

    fast = logits()
    monkeypatch.setattr(decoder_file, "kernels_for", lambda *about: None)
    plain = logits()
    assert not torch.equal(fast, plain) and float((fast - plain).norm()) < 0.05 * float(plain.norm())


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of caches that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.cache_clear()
    yield tmp_path
    compiled.cache_clear()


def test_they_are_compiled_once_and_kept(kernels: Kernels, anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled() is not None
    (library,) = (anew / "worldloom").iterdir()
    made = library.stat().st_mtime_ns
    compiled.cache_clear()
    assert compiled() is not None and library.stat().st_mtime_ns == made


@pytest.mark.parametrize("compiler", [None, shutil.which("false")], ids=["without a compiler", "with one that fails"])
def test_where_they_cannot_be_made_there_are_none(anew: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: compiler)
    assert compiled() is None
    assert not list(anew.rglob("*.so")) and not list(anew.rglob("*.tmp"))


def test_without_a_home_there_are_none_and_nothing_is_raised(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "cc")
    monkeypatch.setattr(Path, "home", nobody)
    compiled.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            assert compiled() is None
    finally:
        compiled.cache_clear()
    assert "sampling goes on without compiled kernels: Could not determine home directory" in caplog.text


@pytest.mark.parametrize(("machine", "told"), [("x86_64", True), ("aarch64", False), ("ppc64le", False)])
def test_only_compilers_for_x86_are_told_how_wide_vectors_are(
    anew: Path, monkeypatch: pytest.MonkeyPatch, machine: str, told: bool
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **options: Any) -> None:
        asked.append(command)
        raise OSError("not compiled here")

    monkeypatch.setattr(shutil, "which", lambda name: "cc")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(subprocess, "run", run)
    assert compiled() is None
    (command,) = asked
    assert ("-mprefer-vector-width=512" in command) == told and "-march=native" in command
