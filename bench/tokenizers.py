"""Tokenizers: the nearest code beside a plain product and argmin, how it grows, a training step of a codebook beside a plain one, and the
races of VQ-GANs (vqgan.py)."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import vqgan
from bench.figure import Figure, at_least, at_most, seconds_of
from worldloom.tokenizers.quantizers.codebooks import EmaCodebook, Upkeep, _choices
from worldloom.tokenizers.quantizers.nearest import nearest_codes
from worldloom.tokenizers.quantizers.vector_quantizer import VectorQuantizer

ROUNDS = 7
VECTORS, CODES, WIDTH = 2_048, 8_192, 256


def figures() -> Iterator[Figure]:
    """Vectors are random codes with noise, each far nearer to one code than to any other; then vectors that lie anywhere between codes."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn((CODES, WIDTH), generator=generator)
    z = codebook[torch.randint(CODES, (VECTORS,), generator=generator)] + 0.7 * torch.randn((VECTORS, WIDTH), generator=generator)
    yield from _nearest(z, codebook)
    yield from _step(z, codebook)
    yield from vqgan.figures()


def _nearest(z: Tensor, codebook: Tensor) -> Iterator[Figure]:
    half = codebook.square().sum(1) / 2
    taken = seconds_of(
        {
            "ours": lambda: nearest_codes(z, codebook),
            "plain": lambda: torch.addmm(half, z, codebook.T, alpha=-1).argmin(1),
            "eighth": lambda: nearest_codes(z, codebook[: CODES // 8]),
        },
        ROUNDS,
    )
    exact = torch.cdist(z.double(), codebook.double()).argmin(1)
    right = float((nearest_codes(z, codebook) == exact).double().mean())
    yield at_least("tokenizers.nearest_exact", right, "of vectors", "float64", 1.0, 1.0)
    rate, plain = VECTORS / taken["ours"], VECTORS / taken["plain"]
    between = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    harder = seconds_of(
        {
            "ours": lambda: nearest_codes(between, codebook),
            "plain": lambda: torch.addmm(half, between, codebook.T, alpha=-1).argmin(1),
        },
        ROUNDS,
    )
    rates = {name: VECTORS / seconds for name, seconds in harder.items()}
    yield at_least("tokenizers.nearest_between", rates["ours"], "vectors/s", "float32 product + argmin", rates["plain"], 2.5)
    yield at_least("tokenizers.nearest", rate, "vectors/s", "float32 product + argmin", plain, 2.5)
    yield at_most("tokenizers.nearest_growth", taken["ours"], "s at 8,192 codes", "s at 1,024 codes", taken["eighth"], 9.0)


def _step(z: Tensor, vectors: Tensor) -> Iterator[Figure]:
    """Forward, backward and update of a codebook of moving averages, beside one learnt by gradient, as in taming-transformers."""
    generator = torch.Generator().manual_seed(1)
    ours = VectorQuantizer(EmaCodebook(CODES, WIDTH, Upkeep(place_after=-1, restart_every=0, least_use=0), generator)).train()
    plain = torch.nn.Embedding(CODES, WIDTH)
    with torch.no_grad():
        plain.weight.copy_(vectors)
        for target in (ours.codebook.vectors(), getattr(ours.codebook, "total_KD")):  # noqa: B009 - a protocol hides it
            target.copy_(vectors)
    z4 = z.T.reshape(1, WIDTH, 32, -1).contiguous()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4)
    update = z.detach(), nearest_codes(z, ours.codebook.vectors())
    taken = seconds_of(
        {
            "ours": _learns(lambda x: _ours(ours, x), z4),
            "plain": _learns(lambda x: _plain(plain, x), z4, optimizer),
            "lookup": lambda: nearest_codes(z, ours.codebook.vectors()),
            "sums": lambda: _choices(*update, CODES),
        },
        ROUNDS,
    )
    ours_rate, plain_rate = VECTORS / taken["ours"], VECTORS / taken["plain"]
    yield at_least("tokenizers.vq_step", ours_rate, "vectors/s", "plain codebook learnt by gradient", plain_rate, 5.0)
    yield at_most("tokenizers.ema_sums", taken["sums"], "s", "s of a lookup", taken["lookup"], 0.15)


def _learns(loss: Callable[[Tensor], Tensor], z4: Tensor, optimizer: torch.optim.Optimizer | None = None) -> Callable[[], None]:
    """One training step: the encoder's output gets its gradient, and the codebook moves."""

    def step() -> None:
        x = z4.clone().requires_grad_(True)
        loss(x).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def _ours(quantizer: VectorQuantizer, x: Tensor) -> Tensor:
    made = quantizer(x)
    return made.z.mean() + made.loss


def _plain(codebook: torch.nn.Embedding, x: Tensor) -> Tensor:
    """Expanded distances, argmin, both losses, straight through."""
    flat = x.permute(0, 2, 3, 1).reshape(-1, WIDTH)
    weight = codebook.weight
    distance = flat.square().sum(1, keepdim=True) + weight.square().sum(1) - 2 * torch.einsum("bd,dn->bn", flat, weight.t())
    codes = distance.argmin(1)
    chosen = F.embedding(codes, weight).view(x.shape[0], *x.shape[2:], WIDTH).permute(0, 3, 1, 2)
    loss = (chosen.detach() - x).square().mean() + 0.25 * (chosen - x.detach()).square().mean()
    return (x + (chosen - x).detach()).mean() + loss
