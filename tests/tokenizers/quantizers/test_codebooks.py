import copy

import numpy as np
import pytest
import torch

from worldloom.tokenizers.quantizers.codebooks import CodebookCollapse, EmaCodebook, GradientCodebook, Upkeep, perplexity
from worldloom.tokenizers.quantizers.nearest import nearest_codes

QUIET = Upkeep(place_after=-1, restart_every=0, least_use=0)  # averages only


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ema(size: int, width: int, upkeep: Upkeep, spread: float = 1.0) -> EmaCodebook:
    """A codebook whose codes lie where normal vectors do."""
    codebook = EmaCodebook(size, width, upkeep, generator(1))
    codebook.embedding_KD.copy_(spread * torch.randn((size, width), generator=generator(2)))
    codebook.total_KD.copy_(codebook.embedding_KD)
    return codebook


def numpy_ema(embedding: np.ndarray, batches: list[np.ndarray], decay: float) -> np.ndarray:
    """The moving averages in float64, with loops."""
    K = len(embedding)
    embedding = embedding.astype(np.float64)
    total, size = embedding.copy(), np.ones(K)
    for batch in batches:
        count, sums = np.zeros(K), np.zeros_like(embedding)
        for z in batch.astype(np.float64):
            k = int(((z - embedding) ** 2).sum(1).argmin())
            count[k] += 1
            sums[k] += z
        size = decay * size + (1 - decay) * count
        total = decay * total + (1 - decay) * sums
        n = size.sum()
        embedding = total / ((size + 1e-5) / (n + K * 1e-5) * n)[:, None]
    return embedding


def test_ten_updates_equal_the_averages_in_numpy() -> None:
    codebook = ema(11, 3, QUIET)
    batches = [torch.randn((29, 3), generator=generator(seed)) for seed in range(10)]
    expected = numpy_ema(codebook.embedding_KD.numpy(), [batch.numpy() for batch in batches], decay=0.99)
    for batch in batches:
        codebook.update(batch, nearest_codes(batch, codebook.vectors()))
    assert np.abs(codebook.embedding_KD.numpy() - expected).max() < 1e-6


def test_an_unused_code_stays_where_it_is() -> None:
    codebook = ema(5, 3, QUIET)
    before = codebook.embedding_KD.clone()
    codebook.update(torch.randn((8, 3), generator=generator()), torch.zeros(8, dtype=torch.int64))
    assert torch.allclose(codebook.embedding_KD[1:], before[1:], rtol=1e-4, atol=0)
    assert not torch.allclose(codebook.embedding_KD[0], before[0], rtol=1e-4)


@pytest.mark.parametrize("kind", [EmaCodebook, GradientCodebook])
def test_a_dead_code_restarts_at_a_vector_and_stays_there_unused(kind: type[EmaCodebook] | type[GradientCodebook]) -> None:
    upkeep = Upkeep(place_after=-1, restart_every=3, dead_below=0.5, decay=0.9, least_use=0)
    codebook = kind(4, 2, upkeep, generator())
    batch = torch.tensor([[9.0, 9.0], [9.5, 9.0], [9.0, 9.5], [9.5, 9.5], [9.2, 9.2], [9.1, 9.4], [9.3, 9.0], [9.0, 9.2]])
    used = torch.zeros(8, dtype=torch.int64)
    for _ in range(40):
        codebook.update(batch, used)
        revived = codebook.vectors().detach()[1:]
        if (codebook.statistics.average_K[1:] > codebook.statistics.threshold(8)).all():
            break
    assert (revived > 8.5).all() and (revived < 10).all()
    assert len(revived.unique(dim=0)) == 3
    if isinstance(codebook, EmaCodebook):
        assert torch.allclose(codebook.total_KD[1:], revived * codebook.statistics.average_K[1:, None], rtol=1e-5)
    steps = 0
    while int(codebook.statistics.updates) % upkeep.restart_every != 0:
        codebook.update(batch, used)
        assert torch.allclose(codebook.vectors().detach()[1:], revived, rtol=1e-3)
        steps += 1
    assert steps >= 1


def test_codes_are_placed_by_the_data_once() -> None:
    codebook = EmaCodebook(6, 2, Upkeep(place_after=2, least_use=0), generator())
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0], [8.0, 0.0], [0.0, 8.0]])
    batch = (centres[:, None] + 0.01 * torch.randn((6, 9, 2), generator=generator())).reshape(-1, 2)
    placed = []
    for _ in range(4):
        codebook.update(batch, nearest_codes(batch, codebook.vectors()))
        placed.append(codebook.placed())
    assert placed == [False, False, True, True]
    assert torch.cdist(centres, codebook.vectors()).amin(1).max() < 0.05


@pytest.mark.parametrize("kind", [EmaCodebook, GradientCodebook])
def test_a_batch_that_is_not_finite_changes_no_code(kind: type[EmaCodebook] | type[GradientCodebook]) -> None:
    codebook = kind(5, 3, Upkeep(place_after=-1, least_use=0), generator())
    before = codebook.vectors().detach().clone()
    codebook.update(torch.full((7, 3), float("nan")), torch.zeros(7, dtype=torch.int64))
    assert torch.equal(codebook.vectors().detach(), before)


@pytest.mark.parametrize("kind", [EmaCodebook, GradientCodebook])
def test_a_batch_that_is_not_finite_leaves_the_placing_to_the_next(kind: type[EmaCodebook] | type[GradientCodebook]) -> None:
    codebook = kind(4, 3, Upkeep(place_after=0), torch.Generator().manual_seed(0))
    good = torch.randn((40, 3), generator=torch.Generator().manual_seed(1))
    bad = good.clone()
    bad[7] = torch.nan
    codebook.update(bad, torch.zeros(40, dtype=torch.int64))
    assert not codebook.placed()
    codebook.update(good, torch.zeros(40, dtype=torch.int64))
    assert codebook.placed() and bool(codebook.vectors().isfinite().all())


def test_statistics_survive_a_cast_to_bfloat16() -> None:
    codebook = ema(5, 3, QUIET)
    codebook.update(torch.randn((8, 3), generator=generator()), torch.tensor([0, 0, 1, 1, 2, 3, 3, 3]))
    before = copy.deepcopy(codebook.state_dict())
    after = codebook.bfloat16().state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)


def test_collapse_is_an_error_after_patience() -> None:
    codebook = EmaCodebook(100, 2, Upkeep(place_after=-1, restart_every=0, least_use=0.05, window=3, patience=4), generator())
    batch = torch.ones((5, 2))
    with pytest.raises(CodebookCollapse, match=r"only 1\.0% of 100 codes"):
        for _ in range(20):
            codebook.update(batch, torch.zeros(5, dtype=torch.int64))
    assert int(codebook.statistics.updates) == 7  # three to fill the window, four of patience


def test_use_is_the_share_of_codes_chosen_within_the_window() -> None:
    codebook = ema(4, 2, Upkeep(place_after=-1, restart_every=0, window=2, least_use=0))
    for codes in ([0, 1], [0, 0], [0, 2]):
        codebook.update(torch.zeros(2, 2), torch.tensor(codes))
    assert codebook.statistics.use().item() == 0.5


def test_the_codebook_gradient_pulls_each_code_to_its_vectors() -> None:
    codebook = GradientCodebook(4, 3, QUIET, generator())
    z = torch.randn((10, 3), generator=generator(5))
    codes = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    codebook.loss(z, torch.nn.functional.embedding(codes, codebook.vectors())).backward()
    weight = codebook.weight_KD.detach()
    expected = torch.zeros_like(weight)
    for k in range(4):
        mine = z[codes == k]
        expected[k] = 2 * (len(mine) * weight[k] - mine.sum(0)) / (10 * 3)
    assert codebook.weight_KD.grad is not None
    assert torch.allclose(codebook.weight_KD.grad, expected, atol=1e-6)


def test_a_restart_survives_an_optimizer_that_keeps_its_own_weights() -> None:
    codebook = GradientCodebook(3, 2, Upkeep(place_after=-1, restart_every=1, dead_below=0.9, decay=0.5, least_use=0), generator())
    master = codebook.weight_KD.detach().clone()
    for _ in range(4):
        codebook.update(torch.full((6, 2), 7.0) + torch.rand((6, 2), generator=generator()), torch.zeros(6, dtype=torch.int64))
    codebook.weight_KD.data.copy_(master)
    assert (codebook.vectors().detach()[1:] > 6.5).all()


def test_perplexity_counts_the_codes_in_even_use() -> None:
    assert perplexity(torch.full((37,), 5)).item() == pytest.approx(37)
    assert perplexity(torch.tensor([0, 12, 0])).item() == pytest.approx(1)
    assert perplexity(torch.tensor([3, 3, 0, 0])).item() == pytest.approx(2)
