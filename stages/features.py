"""Features of a dataset's pictures as a stage leaves them: one file of rows for each shard, read part by part, so that memory stays flat.

    features/dataset.json                     stream, width, tokens of a picture, splits with their shards
    features/<split>/<shard>.npy              float32 [rows, D], or float16 [rows, T, D] where tokens are kept
    features/<split>/<shard>.samples.npy      int64 [rows]: number of each picture's sample within the shard
    features/<split>/<shard>.scores.npy       float32 [rows], where captions were compared: cosine with it, NaN: none that can be read
    features/<split>/<shard>.digests.npy      uint8 [rows, 16]: the first half of the sha256 of the decoded pixels and their shape
    features/<split>/<shard>.thumbs.npy       uint8 [rows, 16, 16, 3]: the pictures, small

A picture has a number, too: its place among all pictures, split by split in the order asked for, shard by shard.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages import disk
from worldloom.stages.artifact import Artifact
from worldloom.stages.commit import Attempt

FORMAT = 1
DIGEST_BYTES = 16
THUMB = 16  # pixels of a small picture's side
SHARDS_HELD = 64  # whose pictures' places are in memory


class Place(NamedTuple):
    """Where a picture lies."""

    split: str
    shard: str
    sample: int  # within the shard


class _Part(NamedTuple):
    split: str
    shard: str
    first: int  # number of its first picture
    rows: int


class ShardFeatures(NamedTuple):
    """What is written of one shard."""

    rows: NDArray[Any]
    samples: NDArray[np.int64]
    digests: NDArray[np.uint8]
    thumbs: NDArray[np.uint8]
    scores: NDArray[np.float32] | None


class FeatureSet:
    """Read through the artifact of embed_dataset."""

    def __init__(self, artifact: Artifact, splits: Sequence[str] | None = None) -> None:
        """`splits` in the order in which pictures are numbered; those that are not there count nothing. None: all, as they come."""
        about = json.loads(artifact.content("features/dataset.json"))
        if about.get("format") != FORMAT:
            raise ValueError(f"{artifact.folder} has features of format {about.get('format')!r}, this worldloom reads format {FORMAT}")
        self.artifact = artifact
        self.stream: str = about["stream"]
        self.width: int = about["width"]
        self.keep: str = about["keep"]  # pooled, tokens or joint
        self.tokens: int | None = about["tokens"]  # of a picture; None where one vector is kept
        self.scored: bool = about["scored"]  # whether captions were compared
        self.parts: list[_Part] = []
        first = 0
        for split in about["splits"] if splits is None else splits:
            for shard in about["splits"].get(split, {"shards": ()})["shards"]:
                self.parts.append(_Part(split, shard["name"], first, shard["pictures"]))
                first += shard["pictures"]
        self._firsts = np.array([part.first for part in self.parts], np.int64)
        self._count = first
        self._samples = lru_cache(SHARDS_HELD)(self.samples)

    def __len__(self) -> int:
        return self._count

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """[stop - start, D] of pooled vectors by number, each of length one."""
        assert self.tokens is None, "tokens are read by sample"
        found = np.concatenate([np.empty((0, self.width), np.float32), *self._slices("", start, stop)])
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        unit: NDArray[np.float32] = found / np.maximum(lengths, 1e-12)
        return unit

    def digests(self, start: int, stop: int) -> NDArray[np.uint8]:
        """[stop - start, 16] by number."""
        return np.concatenate([np.empty((0, DIGEST_BYTES), np.uint8), *self._slices(".digests", start, stop)])

    def thumbs(self, start: int, stop: int) -> NDArray[np.uint8]:
        """[stop - start, 16, 16, 3] by number."""
        return np.concatenate([np.empty((0, THUMB, THUMB, 3), np.uint8), *self._slices(".thumbs", start, stop)])

    def scores(self, start: int, stop: int) -> NDArray[np.float32]:
        """[stop - start] by number."""
        return np.concatenate([np.empty(0, np.float32), *self._slices(".scores", start, stop)])

    def place(self, number: int) -> Place:
        """Of a picture; IndexError beyond the last."""
        if not 0 <= number < self._count:
            raise IndexError(f"there is no picture {number}, these are {self._count}")
        part = self.parts[int(np.searchsorted(self._firsts, number, "right")) - 1]
        return Place(part.split, part.shard, int(self._samples(part.split, part.shard)[number - part.first]))

    def samples(self, split: str, shard: str) -> NDArray[np.int64]:
        """[rows] of one shard: the sample of each of its pictures."""
        loaded: NDArray[np.int64] = np.load(self._path(split, shard, ".samples"), allow_pickle=False)
        return loaded

    def shard(self, split: str, shard: str) -> NDArray[Any]:
        """One shard's rows, mapped, as they are stored."""
        mapped: NDArray[Any] = np.load(self._path(split, shard, ""), mmap_mode="r", allow_pickle=False)
        return mapped

    def _slices(self, what: str, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Parts of files one behind the other, copied: a mapping that is let go takes no memory."""
        at = max(0, int(np.searchsorted(self._firsts, start, "right")) - 1)
        for part in self.parts[at:]:
            if part.first >= stop:
                return
            low, high = max(start - part.first, 0), min(stop - part.first, part.rows)
            if low < high:
                yield np.array(np.load(self._path(part.split, part.shard, what), mmap_mode="r", allow_pickle=False)[low:high])

    def _path(self, split: str, shard: str, what: str) -> Path:
        return self.artifact.path(f"features/{split}/{shard}{what}.npy")


def write_features(attempt: Attempt, split: str, shard: str, found: ShardFeatures) -> None:
    """Puts one shard's files into an attempt."""
    for what, array in zip(("", ".samples", ".digests", ".thumbs", ".scores"), found, strict=True):
        if array is not None:
            np.lib.format.write_array(attempt.create(f"features/{split}/{shard}{what}.npy"), array, version=(1, 0), allow_pickle=False)


def describe_features(
    out: Path, stream: str, keep: str, width: int, tokens: int | None, scored: bool, splits: Mapping[str, Sequence[tuple[str, int]]]
) -> None:
    """Writes features/dataset.json; `splits` is split -> its shards in order, each with its number of pictures."""
    about = {
        "format": FORMAT,
        "stream": stream,
        "keep": keep,
        "width": width,
        "tokens": tokens,
        "scored": scored,
        "splits": {split: {"shards": [{"name": name, "pictures": count} for name, count in shards]} for split, shards in splits.items()},
    }
    disk.write_file(out / "features" / "dataset.json", disk.canonical_json(about))


def digest_of(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [16]: equal for pictures of equal pixels and shape, whatever files they came in."""
    sha256 = hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
    return np.frombuffer(sha256.digest()[:DIGEST_BYTES], np.uint8)
