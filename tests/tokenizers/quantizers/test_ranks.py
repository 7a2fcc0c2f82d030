"""Two ranks with half a batch each do what one rank does with the whole: averages, counts, placing, restarts, losses, whole trainings."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from worldloom.tokenizers.quantizers import codebooks
from worldloom.tokenizers.quantizers.codebooks import EmaCodebook, GradientCodebook, Upkeep
from worldloom.tokenizers.quantizers.lfq_quantizer import LfqQuantizer
from worldloom.tokenizers.quantizers.nearest import nearest_codes
from worldloom.tokenizers.quantizers.quantized import Quantizer
from worldloom.tokenizers.quantizers.ranks import from_first_rank, gather_over_ranks, sum_over_ranks
from worldloom.tokenizers.quantizers.residual_quantizer import ResidualQuantizer
from worldloom.tokenizers.quantizers.vector_quantizer import VectorQuantizer

UPKEEP = Upkeep(place_after=1, restart_every=2, dead_below=0.9, decay=0.7, least_use=0)
BATCH, UPDATES = 10, 9
STEPS, CODES, WIDTH = 20, 12, 4  # of the autoencoders
QUIET = Upkeep(place_after=-1, restart_every=0, least_use=0)


def pictures(step: int, count: int) -> Tensor:
    return torch.randn((count, 3, 4, 4), generator=torch.Generator().manual_seed(1000 + step))


def trained_autoencoder(rank: int, ranks: int, quantizer: nn.Module) -> dict[str, Tensor]:
    """Weights, codebook and statistics after some steps of Adam with gradients averaged over ranks, and codes of new pictures."""
    torch.manual_seed(0)
    encoder, decoder = nn.Conv2d(3, WIDTH, 2, stride=2), nn.ConvTranspose2d(WIDTH, 3, 2, stride=2)
    model = nn.Sequential(encoder, quantizer, decoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        x = pictures(step, 8).chunk(ranks)[rank]
        made = quantizer(encoder(x))
        loss = (decoder(made.z) - x).square().mean() + made.loss
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = sum_over_ranks(parameter.grad.contiguous()) / ranks
        optimizer.step()
        losses.append(sum_over_ranks(loss.detach().clone()) / ranks)
    codes = cast(Quantizer, quantizer).encode(encoder(pictures(STEPS, 16)))
    return {**model.state_dict(), "losses": torch.stack(losses), "codes": codes}


def autoencoders(rank: int, ranks: int) -> dict[str, Tensor]:
    """Every quantizer with statistics of the global batch in a training of its own."""
    upkeep = Upkeep(place_after=3, restart_every=5, dead_below=0.5, decay=0.8, least_use=0)
    crowds = upkeep._replace(restart_at="crowds", restart_every=2)
    generator = torch.Generator().manual_seed(0)
    quantizers: dict[str, nn.Module] = {
        "ema": VectorQuantizer(EmaCodebook(CODES, WIDTH, upkeep, generator)),
        "gradient": VectorQuantizer(GradientCodebook(CODES, WIDTH, upkeep, generator)),
        "even": VectorQuantizer(EmaCodebook(CODES, WIDTH, crowds, generator), entropy_weight=0.1),
        "residual": ResidualQuantizer([EmaCodebook(CODES, WIDTH, upkeep, generator) for _ in range(3)], 0.25, dropout=0.5),
        "lfq": LfqQuantizer(WIDTH, QUIET, entropy_weight=1.0, temperature=1.0),
    }
    made = {name: trained_autoencoder(rank, ranks, quantizer) for name, quantizer in quantizers.items()}
    return {f"autoencoder.{name}.{key}": value for name, state in made.items() for key, value in state.items()}


def trained(rank: int, ranks: int) -> dict[str, Tensor]:
    """The state of both codebooks after some updates on this rank's part of each batch."""
    state = {}
    for name, kind in (("ema", EmaCodebook), ("gradient", GradientCodebook)):
        codebook = kind(6, 3, UPKEEP, torch.Generator().manual_seed(0))
        for update in range(UPDATES):
            batch = torch.randn((BATCH, 3), generator=torch.Generator().manual_seed(update))
            mine = batch.chunk(ranks)[rank]
            codebook.update(mine, nearest_codes(mine, codebook.vectors().detach()))
        state |= {f"{name}.{key}": value for key, value in codebook.state_dict().items()}
    return state | autoencoders(rank, ranks)


def test_two_ranks_equal_one(of_two_ranks: Callable[..., list[dict[str, Tensor]]]) -> None:
    alone = trained(0, 1)
    for together in of_two_ranks(trained):
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            close = 1e-5 if name.startswith("autoencoder.") else 1e-6
            assert torch.allclose(together[name].double(), value.double(), atol=close, rtol=close), name


def test_those_trainings_place_and_restart_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(name: str, work: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **more: calls.append(name) or work(*args, **more)

    monkeypatch.setattr(codebooks, "kmeans", counted("kmeans", codebooks.kmeans))
    for name, draw in list(codebooks.RESTARTS.items()):
        monkeypatch.setitem(codebooks.RESTARTS, name, counted(name, draw))
    autoencoders(0, 1)
    assert calls.count("kmeans") == 6 and calls.count("errors") >= 3 and calls.count("crowds") >= 3


def test_alone_the_collectives_give_back_what_they_got() -> None:
    rows = torch.arange(12).view(6, 2)
    assert torch.equal(sum_over_ranks(rows), rows) and torch.equal(from_first_rank(rows), rows)
    assert torch.equal(gather_over_ranks(rows, most=6), rows)


@pytest.mark.parametrize("most, expected", [(5, [0, 2, 4]), (2, [0, 3]), (1, [0])])
def test_a_pool_is_thinned_evenly(most: int, expected: list[int]) -> None:
    assert gather_over_ranks(torch.arange(6)[:, None], most)[:, 0].tolist() == expected
