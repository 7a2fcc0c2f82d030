import copy

import numpy as np
import pytest
import torch

from worldloom.tokenizers.quantizers import codebooks
from worldloom.tokenizers.quantizers.codebooks import CodebookCollapse, CodeStatistics, EmaCodebook, GradientCodebook, Upkeep, perplexity
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


def test_collapse_has_all_codes_placed_anew_and_then_stops_the_training(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = []
    original = codebooks.kmeans
    monkeypatch.setattr(
        codebooks, "kmeans", lambda *args, **more: placed.append(int(codebook.statistics.updates)) or original(*args, **more)
    )
    codebook = EmaCodebook(100, 2, Upkeep(place_after=-1, restart_every=0, least_use=0.05, window=3, patience=4), generator())
    batch = torch.ones((5, 2))  # nothing helps where all vectors are alike
    with pytest.raises(CodebookCollapse, match=r"only 1\.0% of 100 codes .* last 3 updates; restart_every is 0.* k-means .* did not last"):
        for _ in range(30):
            codebook.update(batch, torch.zeros(5, dtype=torch.int64))
    assert placed == [7]  # three to fill the window, four of patience
    assert int(codebook.statistics.updates) == 12  # and as many again
    assert caplog.messages == [
        "the codebook collapsed: only 1.0% of 100 codes were chosen in the last 3 updates; restart_every is 0, so no dead code restarted; "
        "k-means places all codes anew"
    ]


def far_away(kind: type[EmaCodebook] | type[GradientCodebook], patience: int = 4) -> EmaCodebook | GradientCodebook:
    """A codebook all of whose codes lie so far from the data that one takes everything, and that is never restarted."""
    codebook = kind(40, 2, Upkeep(place_after=-1, restart_every=0, least_use=0.2, window=3, patience=patience), generator())
    with torch.no_grad():
        (codebook.embedding_KD if isinstance(codebook, EmaCodebook) else codebook.weight_KD).add_(50)
        if isinstance(codebook, EmaCodebook):
            codebook.total_KD.copy_(codebook.embedding_KD)
    return codebook


def train(codebook: EmaCodebook | GradientCodebook, updates: range) -> list[float]:
    """The codebook's use after updates on normal vectors."""
    use = []
    for update in updates:
        batch = torch.randn((200, 2), generator=generator(update))
        codebook.update(batch, nearest_codes(batch, codebook.vectors().detach()))
        use.append(codebook.statistics.use().item())
    return use


@pytest.mark.parametrize("kind", [EmaCodebook, GradientCodebook])
def test_the_remedy_rescues_a_codebook_that_lies_beside_the_data(kind: type[EmaCodebook] | type[GradientCodebook]) -> None:
    use = train(far_away(kind), range(60))
    assert max(use[4:8]) < 0.2 and min(use[8:]) > 0.9


def test_the_remedy_comes_once_in_a_while_and_not_instead_of_the_stop() -> None:
    codebook = far_away(EmaCodebook)
    train(codebook, range(10))
    assert codebook.statistics.use().item() > 0.9
    with pytest.raises(CodebookCollapse, match="did not last"):
        for _ in range(10):
            codebook.update(torch.zeros(200, 2), torch.zeros(200, dtype=torch.int64))
    healthy = far_away(EmaCodebook)
    train(healthy, range(30))  # long enough out of collapse for another remedy
    for _ in range(2 + 5):  # two until the window is empty of other codes
        healthy.update(torch.zeros(200, 2), torch.zeros(200, dtype=torch.int64))
    assert healthy.statistics.relapse > 0 and healthy.statistics.starved == 0


def test_a_training_that_stopped_in_collapse_goes_on_as_if_it_had_not() -> None:
    whole = far_away(EmaCodebook)
    train(whole, range(12))
    first = far_away(EmaCodebook)
    train(first, range(6))
    assert first.statistics.starved > 0
    second = EmaCodebook(40, 2, first.statistics.upkeep, generator(5))
    second.load_state_dict(first.state_dict())
    train(second, range(6, 9))
    third = EmaCodebook(40, 2, first.statistics.upkeep, generator(6))
    third.load_state_dict(second.state_dict())
    train(third, range(9, 12))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in third.state_dict().items())
    assert third.statistics.relapse == whole.statistics.relapse > 0


def test_restarts_that_do_not_help_are_named_in_the_message() -> None:
    codebook = EmaCodebook(100, 2, Upkeep(place_after=-1, restart_every=2, least_use=0.05, window=3, patience=4), generator())
    with pytest.raises(CodebookCollapse, match="dead codes restarted every 2 updates"):
        for _ in range(30):
            codebook.update(torch.ones((5, 2)), torch.zeros(5, dtype=torch.int64))


def test_codes_without_a_codebook_stop_the_training_at_once() -> None:
    statistics = CodeStatistics(100, Upkeep(least_use=0.05, window=3, patience=4))
    with pytest.raises(CodebookCollapse, match=r"only 1\.0% of 100 codes .* keeps no codebook that could be placed anew"):
        for _ in range(30):
            statistics.tally(torch.zeros(5, dtype=torch.int64))
    assert int(statistics.updates) == 7


def test_the_age_of_dead_codes_is_counted_in_updates() -> None:
    statistics = CodeStatistics(4, Upkeep(least_use=0, window=3))
    for codes in ([0, 1, 2, 3], [0, 1, 2], [0, 1], [0, 1], [0], [0]):
        statistics.tally(torch.tensor(codes))
    assert statistics.idle_K.tolist() == [0, 2, 4, 5]
    assert statistics.oldest_idle().item() == 5 and statistics.dead_age().item() == 4.5
    assert CodeStatistics(4, Upkeep()).dead_age().item() == 0


def test_health_is_that_of_the_worst_level_and_of_each() -> None:
    levels = torch.nn.ModuleList(CodeStatistics(4, Upkeep(least_use=0, window=2, decay=0.0)) for _ in range(2))
    for first, second in (([0, 1, 2, 3], [0, 1]), ([0, 1, 2, 3], [0, 1]), ([0, 1, 2, 2], [0, 0])):
        levels[0].tally(torch.tensor(first))
        levels[1].tally(torch.tensor(second))
    found = {name: round(value.item(), 3) for name, value in codebooks.health(levels).items()}
    assert found == {
        "codebook_use": 0.5,
        "perplexity": round((2**1.5 + 1) / 2, 3),
        "oldest_idle_code": 3,
        "dead_code_age": 3,
        "codebook_use_0": 1.0,
        "codebook_use_1": 0.5,
        "perplexity_0": round(2**1.5, 3),
        "perplexity_1": 1.0,
    }
    assert list(codebooks.health(levels[0])) == ["codebook_use", "perplexity", "oldest_idle_code", "dead_code_age"]


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


@pytest.mark.parametrize("kind", [EmaCodebook, GradientCodebook])
def test_restarts_in_crowds_have_codes_used_more_evenly_than_restarts_at_errors(kind: type[EmaCodebook] | type[GradientCodebook]) -> None:
    """Half of the vectors lie close together, the others are scattered."""
    found = {}
    for where in ("errors", "crowds"):
        upkeep = Upkeep(place_after=0, restart_every=2, dead_below=0.6, restart_at=where, decay=0.9, least_use=0)
        codebook, random = kind(20, 3, upkeep, generator()), generator()
        for _ in range(80):
            z = torch.randn((200, 3), generator=random) * torch.where(torch.arange(200) % 2 == 0, 10.0, 0.1)[:, None]
            codes = nearest_codes(z, codebook.vectors().detach())
            codebook.update(z, codes)
        found[where] = perplexity(torch.bincount(codes, minlength=20).float()).item()
    assert found["crowds"] > found["errors"] + 1
