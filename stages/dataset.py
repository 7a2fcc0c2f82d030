"""Datasets as read: raw samples, and the tokens made of them. A sample is an index within its split; shards follow from it.

A split is "train", "validation" or "held_out"; the samples of all its shards are numbered 0 .. samples - 1 in order, the same
in every stream. Everything is mapped and read through the indexes: opening a dataset reads one JSON file, a shard is opened
when its first sample is asked for.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter

from worldloom.stages.artifact import Artifact
from worldloom.stages.settings import Stream
from worldloom.stages.shards import IndexedShard, ShardDamaged
from worldloom.stages.streams import kind_of

FORMAT = 1
_STREAM: TypeAdapter[Stream] = TypeAdapter(Stream)


class _Sharded:
    """Samples in splits of shards."""

    _splits: dict[str, "_Split"]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def samples(self, split: str) -> int:
        """How many samples a split has; 0 if there is no such split."""
        return self._splits[split].samples if split in self._splits else 0

    def shards(self, split: str) -> tuple[str, ...]:
        return self._splits[split].names

    def shard_samples(self, split: str, shard: str) -> int:
        """How many samples a shard has."""
        return self._splits[split].counts[self._splits[split].numbers[shard]]


class Dataset(_Sharded):
    """A raw dataset: samples as bytes, or decoded."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._know(_read(artifact, "dataset.json"))

    @classmethod
    def elsewhere(cls, streams: Mapping[str, Any], oracle: str | None) -> "Dataset":
        """Streams alone, as dataset.json has them, where no sample of them is at hand: no split has any."""
        made = cls.__new__(cls)
        made._know({"streams": streams, "oracle": oracle, "splits": {}})
        return made

    def _know(self, about: Mapping[str, Any]) -> None:
        self.streams: dict[str, Stream] = {
            # As JSON, in which a list may fill a tuple: [height, width].
            name: _STREAM.validate_json(json.dumps(stream))
            for name, stream in about["streams"].items()
        }
        self._elsewhere = set[str]()
        self.oracle: str | None = about["oracle"]  # who can read what a sample shows: "shapes"
        self._splits = {name: _Split(split) for name, split in about["splits"].items()}
        self._open: dict[tuple[str, int, str], IndexedShard] = {}

    def reader(self, split: str, shard: str, stream: str) -> IndexedShard:
        """One stream of one shard."""
        return self._shard(split, self._splits[split].numbers[shard], stream)

    def keys(self, split: str) -> list[str]:
        """All keys of a split, in order."""
        first = next(iter(self.streams))
        return [key for shard in range(len(self._splits[split].names)) for key in self._shard(split, shard, first).keys]

    def content(self, split: str, stream: str, i: int) -> memoryview | None:
        """A value's bytes, checked against the index; None where the sample lacks the stream."""
        if stream in self._elsewhere:
            return None
        shard, row = self._splits[split].find(i)
        return self._shard(split, shard, stream).content(row)

    def add_from_elsewhere(self, name: str, stream: Stream) -> None:
        """Makes a stream known that no sample here has; one of that name that there is stays."""
        if name not in self.streams:
            self.streams[name] = stream
            self._elsewhere.add(name)

    def value(self, split: str, stream: str, i: int) -> Any:
        """A value, decoded: str, or uint8 [size, size, 3]; None where the sample lacks the stream."""
        content = self.content(split, stream, i)
        settings = self.streams[stream]
        return None if content is None else kind_of(settings.kind).decode(content, settings)

    def values(self, split: str, stream: str, indices: ArrayLike | None = None) -> Iterator[Any]:
        """The values that are there, decoded one by one: of `indices`, or of the whole split in order."""
        for i in range(self.samples(split)) if indices is None else np.asarray(indices).tolist():
            value = self.value(split, stream, i)
            if value is not None:
                yield value

    def batch(self, split: str, stream: str, indices: ArrayLike) -> Any:
        """What a tokenizer encodes: list[str], or uint8 [B, size, size, 3]; samples that lack the stream are left out."""
        return kind_of(self.streams[stream].kind).batch(list(self.values(split, stream, indices)))

    def _shard(self, split: str, shard: int, stream: str) -> IndexedShard:
        place = (split, shard, stream)
        if place not in self._open:
            name = f"data/{split}/{self._splits[split].names[shard]}"
            opened = IndexedShard(self.artifact.path(f"{name}.tar"), self.artifact.path(f"{name}.{stream}.idx.npy"))
            self._open[place] = _of_length(opened, self._splits[split].counts[shard])
        return self._open[place]


class TokenStream(NamedTuple):
    """One stream of a tokens artifact."""

    kind: str
    codebook_size: int  # of one level
    shape: tuple[int, ...] | None  # codes of a sample, None where their number varies
    dtype: str
    tokenizer: str  # fingerprint
    max_length: int  # codes of the longest sample
    levels: int = 1  # codes at one place; where there are more than one, they are the last axis of `shape`
    steps: int = 0  # of the clock that it has codes at; 0 without a clock

    @property
    def length(self) -> int | None:
        """Codes of every sample, None where it varies."""
        return None if self.shape is None else int(np.prod(self.shape))


class Ragged(NamedTuple):
    """Rows of different lengths: row i is values[offsets[i] : offsets[i + 1]]."""

    values: NDArray[Any]  # [total] codes, in the type that they are stored in
    offsets: NDArray[np.int64]  # [rows + 1]

    def rows(self) -> list[NDArray[Any]]:
        """Each row as a view."""
        return [self.values[start:end] for start, end in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)]


class Tokens(_Sharded):
    """A dataset of codes."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self._know(_read(artifact, "tokens/dataset.json"))

    @classmethod
    def elsewhere(cls) -> "Tokens":
        """None of any stream, where those that a model learnt from are not at hand."""
        made = cls.__new__(cls)
        made._know({"streams": {}, "splits": {}})
        return made

    def _know(self, about: Mapping[str, Any]) -> None:
        self.streams: dict[str, TokenStream] = {
            name: TokenStream(**{**stream, "shape": None if stream["shape"] is None else tuple(stream["shape"])})
            for name, stream in about["streams"].items()
        }
        self.clock: dict[str, Any] | None = about.get("clock")  # name, streams in their order within a step, those given from outside
        self._splits = {name: _Split(split) for name, split in about["splits"].items()}
        self._open: dict[tuple[str, int, str], _CodeShard] = {}

    def reader(self, split: str, shard: str, stream: str) -> IndexedShard:
        """One stream of one shard."""
        return self._shard(split, self._splits[split].numbers[shard], stream).shard

    def keys(self, split: str) -> list[str]:
        """All keys of a split, in order."""
        first = next(iter(self.streams))
        return [key for shard in range(len(self._splits[split].names)) for key in self._shard(split, shard, first).shard.keys]

    def lengths(self, split: str, stream: str) -> NDArray[np.int64]:
        """[samples] codes in every sample, 0 where it lacks the stream."""
        counts = self._splits[split].counts
        parts = [self._shard(split, shard, stream).lengths for shard in range(len(counts))]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def codes(self, split: str, stream: str, i: int) -> NDArray[Any]:
        """[length] one sample's codes, mapped; empty where it lacks the stream."""
        shard, row = self._splits[split].find(i)
        return self._shard(split, shard, stream).shard.codes(row)

    def rows(self, split: str, stream: str, indices: ArrayLike) -> NDArray[Any]:
        """[B, length] the codes of samples that all have the stream, which has a fixed shape; ValueError otherwise.

        One copy of `length` codes a sample and nothing else: the fast way.
        """
        length = self.streams[stream].length
        if length is None:
            raise ValueError(f"the samples of {stream!r} differ in length; use gather")
        wanted = np.asarray(indices, np.int64)
        out = np.empty((len(wanted), length), self.streams[stream].dtype)
        flat = out.view(f"V{length * out.itemsize}")[:, 0]
        for shard, places, rows in self._splits[split].group(wanted):
            codes = self._shard(split, shard, stream)
            if codes.lacking and not codes.lengths[rows].all():
                raise ValueError(f"some samples lack {stream!r}; use gather")
            flat[places] = codes.windows(length)[codes.starts[rows]]
        return out

    def gather(self, split: str, stream: str, indices: ArrayLike) -> Ragged:
        """The codes of many samples, in the order asked for; rows of samples that lack the stream are empty."""
        wanted = np.asarray(indices, np.int64)
        groups = [(self._shard(split, shard, stream), places, rows) for shard, places, rows in self._splits[split].group(wanted)]
        length = self.streams[stream].length
        if length is not None and not any(codes.lacking for codes, _, _ in groups):
            return Ragged(self.rows(split, stream, wanted).reshape(-1), np.arange(len(wanted) + 1) * length)
        lengths = np.zeros(len(wanted), np.int64)
        for codes, places, rows in groups:
            lengths[places] = codes.lengths[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        values = np.empty(int(offsets[-1]), self.streams[stream].dtype)
        for codes, places, rows in groups:
            many = codes.lengths[rows]
            within = np.arange(int(many.sum())) - np.repeat(many.cumsum() - many, many)
            target = slice(int(offsets[0]), int(offsets[-1])) if len(groups) == 1 else np.repeat(offsets[:-1][places], many) + within
            values[target] = codes.shard.elements.take(np.repeat(codes.starts[rows], many) + within)
        return Ragged(values, offsets)

    def _shard(self, split: str, shard: int, stream: str) -> "_CodeShard":
        place = (split, shard, stream)
        if place not in self._open:
            name = f"tokens/{split}/{stream}/{self._splits[split].names[shard]}"
            opened = IndexedShard(self.artifact.path(f"{name}.tar"), self.artifact.path(f"{name}.idx.npy"), self.streams[stream].dtype)
            self._open[place] = _CodeShard(_of_length(opened, self._splits[split].counts[shard]))
        return self._open[place]


class _Split:
    """The shards of a split, and where a sample lies in them."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.names: tuple[str, ...] = tuple(shard["name"] for shard in about["shards"])
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.counts: tuple[int, ...] = tuple(shard["samples"] for shard in about["shards"])
        self.samples: int = about["samples"]
        self._first = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts, dtype=np.int64)])
        assert self._first[-1] == self.samples

    def find(self, i: int) -> tuple[int, int]:
        """Shard and row of a sample; IndexError beyond the split."""
        if not 0 <= i < self.samples:
            raise IndexError(f"there is no sample {i}, the split has {self.samples}")
        shard = int(np.searchsorted(self._first, i, "right")) - 1
        return shard, i - int(self._first[shard])

    def group(self, wanted: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64] | slice, NDArray[np.int64]]]:
        """For each shard that is touched: its number, the places of its samples in `wanted`, their rows in it."""
        if not len(wanted):
            return
        if wanted.min() < 0 or wanted.max() >= self.samples:
            raise IndexError(f"there is no sample {wanted.min() if wanted.min() < 0 else wanted.max()}, the split has {self.samples}")
        if len(self.names) == 1:
            yield 0, slice(None), wanted
            return
        shards = np.searchsorted(self._first, wanted, "right") - 1
        order = np.argsort(shards, kind="stable")
        touched, starts = np.unique(shards[order], return_index=True)
        for shard, places in zip(touched.tolist(), np.split(order, starts[1:]), strict=True):
            yield shard, places, wanted[places] - self._first[shard]


class _CodeShard:
    """An open shard of codes with what gathering needs at hand."""

    def __init__(self, shard: IndexedShard) -> None:
        self.shard = shard
        self.lengths = shard.lengths
        self.starts = shard.starts
        self.lacking = not bool(shard.present.all())

    def windows(self, length: int) -> NDArray[np.void]:
        """The stretch of `length` codes from every position on, as one element each: fancy indexing then copies whole samples."""
        elements = self.shard.elements
        return np.ndarray(
            (elements.size - length + 1,), f"V{length * elements.itemsize}", buffer=elements.data, strides=(elements.itemsize,)
        )


def _of_length(shard: IndexedShard, samples: int) -> IndexedShard:
    if len(shard) != samples:
        raise ShardDamaged("shard_truncated", f"the index of {shard.tar} has {len(shard)} rows, the dataset counts {samples} samples")
    return shard


def _read(artifact: Artifact, name: str) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(artifact.content(name))
    if about.get("format") != FORMAT:
        raise ValueError(f"{artifact.folder / name} has format {about.get('format')!r}, this worldloom reads format {FORMAT}")
    return about
