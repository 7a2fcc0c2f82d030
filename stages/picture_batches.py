"""Batches of pictures for training a tokenizer: an order that is a pure function of the seed, the same whatever the number of ranks."""

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.ahead import ahead
from worldloom.stages.dataset import Dataset
from worldloom.stages.order import order
from worldloom.stages.worker import Worker

CACHE_BYTES = 1 << 29  # a split whose pictures need less is decoded once and kept

VARIANCE_OF = 1024  # pictures


class PictureBatches:
    """This rank's part of every global batch of `batch_size` pictures, uint8 [b, H, W, 3]; the position is {"pictures": seen so far}."""

    def __init__(self, dataset: Dataset, split: str, stream: str, batch_size: int, seed: int, worker: Worker) -> None:
        if batch_size % worker.world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be a multiple of the {worker.world_size} training workers; "
                f"set it to {-(-batch_size // worker.world_size) * worker.world_size}"
            )
        self.pictures = Pictures(dataset, split, stream)
        if not len(self.pictures):
            raise ValueError(f"no sample of the split {split!r} has the stream {stream!r}; there is nothing to train on")
        self.batch_size = batch_size
        self.seed = seed
        self.part = batch_size // worker.world_size
        self.first = worker.rank * self.part

    def after(self, position: dict[str, Any] | None) -> Iterator[tuple[NDArray[np.uint8], dict[str, Any]]]:
        """Goes on for ever, epoch after epoch; the next batch is read while this one is trained on."""
        seen = position["pictures"] if position else 0

        yield from ahead((partial(self._and_position, start) for start in count(seen, self.batch_size)), depth=1)

    def variance(self) -> float:
        """Of the values of the first pictures of the first epoch, in [-1, 1]: what a VQ-VAE divides its error by."""
        some = min(len(self.pictures), VARIANCE_OF)
        pictures = self.pictures[order(self.seed, 0, np.arange(some), len(self.pictures))]
        return max(float((pictures / 127.5).var()), 1e-6)

    def _and_position(self, start: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        return self._at(start), {"pictures": start + self.batch_size}

    def _at(self, start: int) -> NDArray[np.uint8]:
        """This rank's pictures of the global batch that begins at picture `start`, counted over all epochs."""
        place = np.arange(start + self.first, start + self.first + self.part)
        epoch, within = np.divmod(place, len(self.pictures))
        index = np.empty(len(place), np.int64)
        for number in np.unique(epoch):
            index[epoch == number] = order(self.seed, int(number), within[epoch == number], len(self.pictures))
        return self.pictures[index]


class Pictures:
    """The pictures of one stream of one split, decoded; those of samples that lack the stream are left out. Small splits stay in memory."""

    def __init__(self, dataset: Dataset, split: str, stream: str) -> None:
        self.dataset, self.split, self.stream = dataset, split, stream
        shards = dataset.shards(split) if dataset.samples(split) else ()
        present = [dataset.reader(split, shard, stream).present for shard in shards]
        self.samples = np.flatnonzero(np.concatenate(present)) if present else np.zeros(0, np.int64)
        settings: Any = dataset.streams[stream]
        self.shape = (settings.size, settings.size, 3)
        self.kept = len(self.samples) * int(np.prod(self.shape)) <= CACHE_BYTES
        self._decoded = np.zeros(len(self.samples) if self.kept else 0, bool)
        self._cache = np.empty((len(self._decoded), *self.shape), np.uint8)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """[B, H, W, 3] in the order asked for."""
        if not self.kept:
            pictures: NDArray[np.uint8] = self.dataset.batch(self.split, self.stream, self.samples[index])
            return pictures
        missing = np.unique(index[~self._decoded[index]])
        if len(missing):
            self._cache[missing] = self.dataset.batch(self.split, self.stream, self.samples[missing])
            self._decoded[missing] = True
        return self._cache[index]
