from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldloom.stages import value_batches
from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset
from worldloom.stages.value_batches import ValueBatches, Values
from worldloom.stages.worker import Worker

STREAM = "view"  # of tiny_root: 12 pictures of 16 pixels to train on, in two shards


@pytest.fixture
def dataset(tiny_root: Path) -> Dataset:
    return Dataset(Artifact.open(tiny_root / "artifacts" / "data" / "0123456789abcdef"))


def batches(dataset: Dataset, worker: Worker | None = None, seed: int = 3) -> ValueBatches:
    return ValueBatches(dataset, "train", (STREAM,), batch_size=4, seed=seed, worker=worker or Worker())


def take(source: Iterator[Any], count: int) -> list[Any]:
    return list(islice(source, count))


def test_an_epoch_holds_every_picture_once_and_the_next_another_order(dataset: Dataset) -> None:
    everything = np.stack(list(dataset.values("train", STREAM)))
    seen = [batch for batch, _ in take(batches(dataset).after(None), 6)]
    first, second = np.concatenate(seen[:3]), np.concatenate(seen[3:])
    for epoch in (first, second):
        assert sorted(picture.tobytes() for picture in epoch) == sorted(picture.tobytes() for picture in everything)
    assert not np.array_equal(first, second)


def test_going_on_after_a_position_equals_not_stopping(dataset: Dataset) -> None:
    whole = take(batches(dataset).after(None), 7)
    position = whole[2][1]
    rest = take(batches(dataset).after(position), 4)
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(whole[3:], rest, strict=True))


def test_the_ranks_parts_together_are_the_global_batch(dataset: Dataset) -> None:
    whole = take(batches(dataset).after(None), 5)
    parts = [take(batches(dataset, Worker(rank, 2)).after(None), 5) for rank in range(2)]
    for (batch, position), (left, at), (right, _) in zip(whole, *parts, strict=True):
        assert np.array_equal(batch, np.concatenate([left, right])) and position == at


def test_pictures_that_are_not_kept_are_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Values(dataset, "train", STREAM)
    monkeypatch.setattr(value_batches, "CACHE_BYTES", 0)
    read = Values(dataset, "train", STREAM)
    index = np.array([5, 0, 11, 5])
    assert kept.kept and not read.kept
    assert np.array_equal(kept[index], read[index]) and np.array_equal(kept[index], kept[index])


def test_some_values_are_the_first_of_the_first_epoch(dataset: Dataset) -> None:
    first, _ = next(batches(dataset).after(None))
    assert np.array_equal(batches(dataset).some(3), first[:3])
    everything = np.stack(list(dataset.values("train", STREAM)))
    assert batches(dataset).some(10_000).astype(int).sum() == everything.astype(int).sum()


def test_a_batch_that_the_workers_cannot_share_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match=r"batch_size \(4\) must be a multiple of the 3 training workers; set it to 6"):
        batches(dataset, Worker(0, 3))


def test_a_split_without_pictures_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="no sample of the split 'nowhere'"):
        ValueBatches(dataset, "nowhere", (STREAM,), 4, 0, Worker())
