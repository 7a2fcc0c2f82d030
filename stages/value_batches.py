"""Batches of values for training a tokenizer: an order that is a pure function of the seed, the same whatever the number of ranks."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.ahead import ahead
from worldloom.stages.dataset import Dataset
from worldloom.stages.order import order
from worldloom.stages.settings import ImageStream, VideoStream
from worldloom.stages.streams import kind_of
from worldloom.stages.worker import Worker

CACHE_BYTES = 1 << 29  # a split whose values need less is decoded once and kept


class ValueBatches:
    """This rank's part of every global batch of `batch_size` values [b, *shape]; the position is {"values": seen so far}."""

    def __init__(self, dataset: Dataset, split: str, streams: Sequence[str], batch_size: int, seed: int, worker: Worker) -> None:
        """Values of several streams, of one kind and form, are mixed as if they were one long stream; clips beside pictures by frames."""
        if batch_size % worker.world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be a multiple of the {worker.world_size} training workers; "
                f"set it to {-(-batch_size // worker.world_size) * worker.world_size}"
            )
        of_pictures = isinstance(dataset.streams[streams[0]], ImageStream)
        parts = [(pictures_of if of_pictures else Values)(dataset, split, stream) for stream in streams]
        for stream, part in zip(streams, parts, strict=True):
            if not len(part):
                raise ValueError(f"no sample of the split {split!r} has the stream {stream!r}; there is nothing to train on")
        self.values: Values | Frames | Pooled = parts[0] if len(parts) == 1 else Pooled(parts)
        self.batch_size = batch_size
        self.seed = seed
        self.part = batch_size // worker.world_size
        self.first = worker.rank * self.part

    def after(self, position: dict[str, Any] | None) -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
        """Goes on for ever, epoch after epoch; the next batch is read while this one is trained on."""
        seen = position["values"] if position else 0

        yield from ahead((partial(self._and_position, start) for start in count(seen, self.batch_size)), depth=1)

    def some(self, most: int) -> NDArray[Any]:
        """The first values of the first epoch, up to `most`: the same on every rank."""
        number = min(len(self.values), most)
        return self.values[order(self.seed, 0, np.arange(number), len(self.values))]

    def _and_position(self, start: int) -> tuple[NDArray[Any], dict[str, Any]]:
        return self._at(start), {"values": start + self.batch_size}

    def _at(self, start: int) -> NDArray[Any]:
        """This rank's values of the global batch that begins at value `start`, counted over all epochs."""
        place = np.arange(start + self.first, start + self.first + self.part)
        epoch, within = np.divmod(place, len(self.values))
        index = np.empty(len(place), np.int64)
        for number in np.unique(epoch):
            index[epoch == number] = order(self.seed, int(number), within[epoch == number], len(self.values))
        return self.values[index]


class Values:
    """The values of one stream of one split, decoded; samples that lack the stream are left out. Small splits stay in memory."""

    def __init__(self, dataset: Dataset, split: str, stream: str) -> None:
        self.dataset, self.split, self.stream = dataset, split, stream
        shards = dataset.shards(split) if dataset.samples(split) else ()
        present = [dataset.reader(split, shard, stream).present for shard in shards]
        self.samples = np.flatnonzero(np.concatenate(present)) if present else np.zeros(0, np.int64)
        settings = dataset.streams[stream]
        kind = kind_of(settings.kind)
        if kind.form is None:
            raise ValueError(f"values of the stream {stream!r} ({settings.kind}) differ in length and cannot be stacked")
        self.shape, self.dtype = kind.form(settings)
        self.kept = len(self.samples) * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize <= CACHE_BYTES
        self._decoded = np.zeros(len(self.samples) if self.kept else 0, bool)
        self._cache = np.empty((len(self._decoded), *self.shape), self.dtype)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """[B, *shape] in the order asked for."""
        if not self.kept:
            values: NDArray[Any] = self.dataset.batch(self.split, self.stream, self.samples[index])
            return values
        missing = np.unique(index[~self._decoded[index]])
        if len(missing):
            self._cache[missing] = self.dataset.batch(self.split, self.stream, self.samples[missing])
            self._decoded[missing] = True
        return self._cache[index]


class Frames:
    """The frames of clips as single pictures: all of the first clip, then all of the next."""

    def __init__(self, clips: Values) -> None:
        self.clips = clips
        self.frames, *shape = clips.shape
        self.shape, self.dtype = tuple(shape), clips.dtype

    def __len__(self) -> int:
        return len(self.clips) * self.frames

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """[B, *shape] in the order asked for."""
        clip, frame = np.divmod(index, self.frames)
        read, at = np.unique(clip, return_inverse=True)
        chosen: NDArray[Any] = self.clips[read][at, frame]
        return chosen


def pictures_of(dataset: Dataset, split: str, stream: str) -> Values | Frames:
    """The pictures of a stream, or the frames of its clips."""
    values = Values(dataset, split, stream)
    return Frames(values) if isinstance(dataset.streams[stream], VideoStream) else values


class Pooled:
    """Values of several streams one behind the other; all have one shape and type."""

    def __init__(self, parts: Sequence[Values | Frames]) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[Any]:
        """[B, *shape] in the order asked for."""
        found = np.empty((len(index), *self.parts[0].shape), self.parts[0].dtype)
        of = np.searchsorted(self.ends, index, "right")
        for number in np.unique(of).tolist():
            here = of == number
            found[here] = self.parts[number][index[here] - (self.ends[number] - len(self.parts[number]))]
        return found


def spaced(count: int, most: int) -> NDArray[np.int64]:
    """Up to `most` of the numbers below `count`, evenly spaced: folders are read in order, and their first values are much alike."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))
