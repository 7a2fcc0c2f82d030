"""One shard: a tar in WebDataset layout with the same bytes every time, an index beside it, and a reader that maps both.

The only door to webdataset. Its TarWriter writes; reading goes through the index, so a sample is a slice of mapped memory
and a shard that was cut or damaged is noticed, which webdataset's own reader does not do.
"""

import tarfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.keys import NAME_BYTES, check_key, fits_ustar
from worldloom.stages.rejects import InputRejected

BLOCK = 512  # bytes: a tar's header, and what contents are padded to


class ShardDamaged(ValueError):
    """A shard is not what its index says; `code` is shard_truncated or shard_corrupt."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}; `worldloom verify` lists everything damaged")
        self.code = code


FIELDS = ("offset", "bytes", "length", "crc32", "key")


class Row(NamedTuple):
    """One sample of one stream in the index; all zero where the sample lacks the stream."""

    offset: int  # first byte of the member's content in the tar
    bytes: int
    length: int  # codes in it; in a raw shard the same as `bytes`
    crc32: int


MISSING = Row(0, 0, 0, 0)


class ShardWriter:
    """Writes samples, in ascending order of their keys, as members `<key>.<extension>` of a tar without any clock or owner in it."""

    def __init__(self, stream: BinaryIO) -> None:
        from webdataset.writer import TarWriter

        self._sink = _Sink(stream)
        self._tar: Any = TarWriter(self._sink, user="worldloom", group="worldloom", mode=0o444, mtime=0, encoder=False, compress=False)
        # Its own choice, pax, gives a name of more than 100 bytes two headers, although USTAR holds it in one.
        self._tar.tarstream.format = tarfile.USTAR_FORMAT
        self._last = ""
        self._end = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> dict[str, Row]:
        """Writes `members`, extension -> content, and says where each lies; InputRejected if the key cannot be one."""
        check_key(key)
        if key <= self._last:
            raise InputRejected("key_duplicate", f"keys must rise: {key!r} after {self._last!r}")
        rows: dict[str, Row] = {}
        for extension in sorted(members):
            content = members[extension]
            if not content:
                raise InputRejected("empty_input", f"{key}.{extension} has no bytes")
            if not fits_ustar(f"{key}.{extension}"):
                raise InputRejected(
                    "key_invalid", f"{key[:80]!r}... is too long for a tar: at most {NAME_BYTES} bytes after its last slash"
                )
            rows[extension] = Row(self._end + BLOCK, len(content), len(content), zlib.crc32(content))
            self._end += BLOCK + -(-len(content) // BLOCK) * BLOCK
        self._tar.write({"__key__": key, **members})
        assert self._tar.tarstream.offset == self._end, "a tar header of more than one block"
        self._last = key
        return rows

    def close(self) -> None:
        """Writes the tar's end; the stream stays open."""
        self._tar.close()

    def abandon(self) -> None:
        """Writes nothing more, not even when tarfile ends the tar on its own as it is collected."""
        self._sink.stream = None


class _Sink:
    """Where a tar is written to, until the tar is given up."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream: BinaryIO | None = stream

    def write(self, data: bytes) -> int:
        return self.stream.write(data) if self.stream is not None else len(data)


def write_index(stream: BinaryIO, keys: Sequence[str], rows: Sequence[Row]) -> None:
    """Writes one structured array, a row per sample."""
    width = max((len(key) for key in keys), default=1)
    fields = [("offset", "<u8"), ("bytes", "<u4"), ("length", "<u4"), ("crc32", "<u4"), ("key", f"S{width}")]
    table = np.array([(*row, key.encode("ascii")) for key, row in zip(keys, rows, strict=True)], dtype=fields)
    np.lib.format.write_array(stream, table, version=(1, 0), allow_pickle=False)


class IndexedShard:
    """One stream of one shard, mapped into memory; opening checks the sizes, `content` and `check` every byte."""

    def __init__(self, tar: Path, index: Path, dtype: str | None = None) -> None:
        """`dtype` is the codes' type in a token shard, for example "uint16"."""
        self.tar = tar
        self.table: NDArray[np.void] = _read_index(index)
        self._dtype = np.dtype(dtype or "uint8").newbyteorder("<")
        self._mapped = _map(tar)
        ends = self.table["offset"] + self.table["bytes"]
        if self._mapped.size % BLOCK or self._mapped.size < int(ends.max(initial=0)) + 2 * BLOCK:
            raise ShardDamaged("shard_truncated", f"{tar} holds {self._mapped.size} bytes, fewer than its index says")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def keys(self) -> list[str]:
        return [key.decode("ascii") for key in self.table["key"].tolist()]

    def key(self, i: int) -> str:
        key: str = self.table["key"][i].decode("ascii")
        return key

    @property
    def present(self) -> NDArray[np.bool_]:
        """[samples] whether the sample has this stream."""
        present: NDArray[np.bool_] = self.table["bytes"] > 0
        return present

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[samples] codes in each sample, 0 where it lacks the stream."""
        lengths: NDArray[np.int64] = self.table["length"].astype(np.int64)
        return lengths

    @property
    def elements(self) -> NDArray[Any]:
        """The whole tar as codes: [size / itemsize]. Members start at whole blocks, so codes never straddle an element."""
        return self._mapped.view(self._dtype)

    @property
    def starts(self) -> NDArray[np.int64]:
        """[samples] where each sample's codes begin in `elements`: they are the end of its member, behind the npy header."""
        ends = self.table["offset"].astype(np.int64) + self.table["bytes"]
        starts: NDArray[np.int64] = ends // self._dtype.itemsize - self.table["length"]
        return starts

    def content(self, i: int) -> memoryview | None:
        """The member's bytes, checked, without a copy; None where the sample lacks the stream."""
        row = self.table[i]
        if not row["bytes"]:
            return None
        content = self._mapped[int(row["offset"]) : int(row["offset"]) + int(row["bytes"])].data
        if zlib.crc32(content) != row["crc32"]:
            raise ShardDamaged("shard_corrupt", f"sample {row['key'].decode('ascii')!r} of {self.tar} has changed since it was written")
        return content

    def codes(self, i: int) -> NDArray[Any]:
        """[length] the sample's codes, mapped and unchecked; empty where it lacks the stream."""
        start = int(self.starts[i])
        return self.elements[start : start + int(self.table["length"][i])]

    def check(self) -> None:
        """Reads every sample against its checksum; ShardDamaged on the first that differs."""
        for i in range(len(self)):
            self.content(i)


def _read_index(path: Path) -> NDArray[np.void]:
    # As np.load, but headers that are alike are parsed once: with thousands of shards that is most of the time to the first batch.
    try:
        content = path.read_bytes()
        size = 10 + int.from_bytes(content[8:10], "little")
        shape, dtype = _read_header(content[:size])
        if dtype.names != FIELDS or len(content) != size + shape[0] * dtype.itemsize:
            raise ValueError(f"{len(content)} bytes with the fields {dtype.names}")
    except (ValueError, OSError) as error:
        raise ShardDamaged("shard_corrupt", f"{path} cannot be read as an index ({error})") from error
    return np.frombuffer(content, dtype, offset=size)


@lru_cache(maxsize=256)
def _read_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    stream = BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another version of the npy format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(shape) != 1:
        raise ValueError(f"an array of {len(shape)} dimensions")
    return shape, dtype


def _map(path: Path) -> NDArray[np.uint8]:
    # torch closes the file behind the mapping, Python's mmap keeps a descriptor: thousands of shards would exhaust them.
    import torch

    size = path.stat().st_size
    if not size:
        raise ShardDamaged("shard_truncated", f"{path} is empty")
    mapped: NDArray[np.uint8] = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    mapped.flags.writeable = False
    return mapped
