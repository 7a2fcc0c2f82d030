"""Figures of features against loops in NumPy, closed forms and cases that are known."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from worldloom.stages import encoder_scores
from worldloom.stages.encoder_features import own_pixels, signed
from worldloom.stages.encoder_scores import linear_probe, recalls, weighted_knn


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_votes_of_neighbours_are_weighed_by_their_nearness() -> None:
    bank, queries, labels = some(0, 30, 4), some(1, 7, 4), torch.arange(30) % 3
    x, q = (each.double().numpy() / np.linalg.norm(each.double().numpy(), axis=1, keepdims=True) for each in (bank, queries))
    expected = []
    for row in q @ x.T:
        votes = np.zeros(3)
        for at in np.argsort(-row)[:5]:
            votes[labels[at]] += np.exp(row[at] / 0.1)
        expected.append(int(votes.argmax()))
    assert weighted_knn(bank, labels, queries, 3, neighbours=5, temperature=0.1).tolist() == expected
    assert weighted_knn(bank, labels, bank, 3, neighbours=1).tolist() == labels.tolist()
    assert weighted_knn(bank[:2], labels[:2], queries, 3, neighbours=20).shape == (7,)  # fewer than asked for


def test_a_linear_probe_separates_what_lines_separate_at_any_scale() -> None:
    labels = torch.arange(60) % 3
    features = (torch.eye(3)[labels] * 4 + some(0, 60, 3)) * torch.tensor([1e3, 1.0, 1e-3]) + 5
    found = linear_probe(features[:40], labels[:40], features[40:], 3)
    assert (found == labels[40:]).float().mean() > 0.9
    with torch.inference_mode():
        assert torch.equal(linear_probe(features[:40], labels[:40], features[40:], 3), found)


def test_columns_that_say_nothing_change_nothing_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_scores, "COLUMNS", 7)
    labels = torch.arange(30) % 3
    bank, queries = some(0, 30, 4) + labels[:, None], some(1, 200, 4) + 1
    longer = [torch.cat([x[:, :1], torch.full((len(x), 50), 2.0), x[:, 1:]], 1) for x in (bank, queries)]  # more columns than rows
    said = linear_probe(bank, labels, queries, 3)
    assert torch.equal(linear_probe(longer[0], labels, longer[1], 3), said) and len(set(said.tolist())) == 3
    twice = [torch.cat([x, x]) for x in (torch.cat([longer[0], torch.zeros(30, 30)], 1), labels)]  # and still more columns than rows
    assert torch.equal(linear_probe(*twice, torch.cat([longer[1], torch.zeros(200, 30)], 1), 3), said)
    padded = [torch.cat([x, torch.zeros(len(x), 50)], 1) for x in (bank, queries)]
    assert torch.equal(weighted_knn(padded[0], labels, padded[1], 3), weighted_knn(bank, labels, queries, 3))


def test_pixels_of_full_size_point_where_signed_pictures_point() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (20, 24, 18, 3), dtype=np.uint8)
    x, labels = signed(pictures), torch.arange(20) % 3
    own = own_pixels(x)
    assert own.dtype == torch.int16 and own.shape == (20, 3 * 24 * 18)
    torch.testing.assert_close(own.double() / 255, x.flatten(1).double(), rtol=0, atol=1e-6)
    for say in (weighted_knn, linear_probe):
        assert torch.equal(say(own[:12], labels[:12], own[12:], 3), say(x[:12].flatten(1), labels[:12], x[12:].flatten(1), 3))


def test_recall_counts_pairs_among_the_nearest_and_ties_against_them() -> None:
    x = torch.eye(4)
    assert recalls(x, x, 1) == (1.0, 1.0)
    assert recalls(x, x[[1, 0, 2, 3]], 1) == (0.5, 0.5)
    assert recalls(torch.ones(4, 3), torch.ones(4, 3), 1) == (0.0, 0.0) and recalls(torch.ones(4, 3), torch.ones(4, 3), 4) == (1.0, 1.0)
    assert recalls(x * torch.nan, x, 1) == recalls(x, x * torch.nan, 3) == (0.0, 0.0)  # what is no number finds nothing
    one_way = torch.tensor([[1.0, 0.0], [0.9, 0.1]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert recalls(*one_way, 1) == (0.5, 1.0)


@pytest.mark.parametrize("say", [weighted_knn, linear_probe])
def test_references_that_tell_nothing_are_refused(say: Callable[..., torch.Tensor]) -> None:
    x, labels = some(0, 6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    for bank, answers, classes, message in (
        (x[:0], labels[:0], 3, "the reference set is empty: there are no pictures with labels to compare with"),
        (x, labels * 0, 1, "there is 1 class only, and nothing to tell apart"),
        (x, labels, 2, r"labels must lie in 0 \.\. 1, got 0 \.\. 2"),
        (x, labels - 1, 3, r"labels must lie in 0 \.\. 2, got -1 \.\. 1"),
    ):
        with pytest.raises(ValueError, match=message):
            say(bank, answers, x, classes)
    assert say(x[:1], labels[1:2], x, 3).shape == (6,)
