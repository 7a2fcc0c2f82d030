"""Datasets as written: the shards of raw samples and of codes, and the JSON file that describes them."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from worldloom.stages import disk
from worldloom.stages.commit import Attempt
from worldloom.stages.dataset import FORMAT
from worldloom.stages.settings import Stream, dump
from worldloom.stages.shards import MISSING, Row, ShardWriter, write_index
from worldloom.stages.streams import kind_of


class RawShard:
    """One raw shard: a tar of all streams and an index for each. Samples come in ascending order of their keys."""

    def __init__(self, attempt: Attempt, split: str, shard: str, streams: Mapping[str, Stream]) -> None:
        """`shard` is the name inside its split, "shard-000000"."""
        self.keys: list[str] = []
        self.counts: dict[str, int] = {f"{stream}.samples": 0 for stream in streams}
        self._streams = streams
        self._attempt = attempt
        self._name = f"data/{split}/{shard}"
        self._rows: dict[str, list[Row]] = {stream: [] for stream in streams}
        self._writer = ShardWriter(attempt.create(f"{self._name}.tar"))

    def add(self, key: str, values: Mapping[str, bytes], extensions: Mapping[str, str] | None = None) -> None:
        """Adds a sample: stream -> content, without the streams that it lacks. InputRejected if the key cannot be one.

        `extensions` are those of contents that are not in the kind's own format (txt, png).
        """
        members = {
            stream: f"{stream}.{(extensions or {}).get(stream) or kind_of(self._streams[stream].kind).extension}" for stream in values
        }
        rows = self._writer.add(key, {members[stream]: content for stream, content in values.items()})
        for stream, column in self._rows.items():
            column.append(rows[members[stream]] if stream in values else MISSING)
            self.counts[f"{stream}.samples"] += stream in values
        self.keys.append(key)

    def close(self) -> None:
        """Ends the tar and writes the indexes; the attempt is still to be committed."""
        self._writer.close()
        for stream, column in self._rows.items():
            write_index(self._attempt.create(f"{self._name}.{stream}.idx.npy"), self.keys, column)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._writer.abandon()


class TokenShard:
    """One stream of one token shard: a tar of npy members and its index."""

    def __init__(self, attempt: Attempt, split: str, stream: str, shard: str, codebook_size: int) -> None:
        self.samples = 0  # that have the stream
        self.codes = 0
        self.longest = 0
        self._codebook_size = codebook_size
        self._dtype = code_type(codebook_size)
        self._attempt = attempt
        self._name = f"tokens/{split}/{stream}/{shard}"
        self._keys: list[str] = []
        self._rows: list[Row] = []
        self._writer = ShardWriter(attempt.create(f"{self._name}.tar"))

    def add(self, key: str, codes: NDArray[Any] | None) -> None:
        """Adds a sample's codes in their own shape, or notes that it lacks the stream; ValueError for a code beyond the codebook."""
        self._keys.append(key)
        if codes is None:
            self._rows.append(MISSING)
            return
        if codes.size and not 0 <= codes.min() <= codes.max() < self._codebook_size:
            raise ValueError(f"sample {key!r} has codes {codes.min()} .. {codes.max()}, the codebook holds 0 .. {self._codebook_size - 1}")
        content = _npy_header(self._dtype, codes.shape) + codes.astype(self._dtype).tobytes()
        self._rows.append(self._writer.add(key, {"npy": content})["npy"]._replace(length=codes.size))
        self.samples += 1
        self.codes += codes.size
        self.longest = max(self.longest, codes.size)

    def close(self) -> None:
        """Ends the tar and writes the index; the attempt is still to be committed."""
        self._writer.close()
        write_index(self._attempt.create(f"{self._name}.idx.npy"), self._keys, self._rows)

    def abandon(self) -> None:
        """Writes nothing more; the attempt is given up too."""
        self._writer.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def code_type(codebook_size: int) -> str:
    """The type that codes are stored in: the smaller of uint16 and uint32 that holds codebook_size - 1."""
    if not 1 <= codebook_size <= 1 << 32:
        raise ValueError(f"a codebook of {codebook_size} codes cannot be stored; at most {1 << 32}")
    return "uint16" if codebook_size <= 1 << 16 else "uint32"


def write_dataset_json(
    out: Path, streams: Mapping[str, Stream], splits: Mapping[str, Sequence[tuple[str, int]]], oracle: str | None = None
) -> None:
    """Writes dataset.json; `splits` is split -> its shards in order, each with its number of samples."""
    about = {
        "format": FORMAT,
        "streams": {name: dump(stream) for name, stream in streams.items()},
        "splits": {
            split: {"shards": [{"name": name, "samples": count} for name, count in shards], "samples": sum(count for _, count in shards)}
            for split, shards in splits.items()
        },
        "oracle": oracle,
    }
    disk.write_file(out / "dataset.json", disk.canonical_json(about))


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    stream = BytesIO()
    header = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()
