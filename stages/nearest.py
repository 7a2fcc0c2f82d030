"""Nearest neighbours by cosine through faiss, whose only door this is. Rows are read block by block, so memory stays flat in their number.

Exact search compares every query with every row. The inverted file puts rows into cells around centres that k-means finds in a sample,
and a query looks into the nearest cells only; its files are mapped. M queries, N rows, D width, k neighbours.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK = 4_096  # rows compared at a time: few, so that a thousand pictures take as much memory as a million
PART = 1 << 17  # rows of a file of the index
PER_CELL = 64  # rows of the sample for each centre
SEED = 20_230_414  # of the sample, and of k-means


class Rows(Protocol):
    """Vectors of length one, read part by part."""

    width: int

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """[stop - start, D]."""
        ...


class Neighbours(NamedTuple):
    """Of every query, nearest first; where there are fewer than k, numbers are -1 and cosines -inf."""

    numbers: NDArray[np.int64]  # [M, k]
    cosines: NDArray[np.float32]  # [M, k]


def library() -> Any:
    """faiss; ImportError that says how to get it."""
    try:
        import faiss
    except ImportError:
        raise ImportError("similarity search needs faiss-cpu, which is not installed; pip install 'worldloom[curate]'") from None
    return faiss


def set_threads(threads: int) -> None:
    """CPU threads of this process's searches."""
    library().omp_set_num_threads(threads)


def exact(rows: Rows, queries: NDArray[np.float32], k: int) -> Neighbours:
    """Every query against every row; among equally near ones the lower number comes first."""
    faiss = library()
    found = _none(len(queries), k)
    for start, block in _blocks(rows, BLOCK):
        cosines, numbers = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        found = _nearer(found, Neighbours(numbers + start, cosines))
    return found


def by_torch(rows: Rows, queries: NDArray[np.float32], k: int) -> Neighbours:
    """The same as `exact` without faiss, whose searches are judged by it; cosines may differ in their last digits."""
    import torch

    found = _none(len(queries), k)
    for start, block in _blocks(rows, BLOCK):
        near = (torch.from_numpy(queries) @ torch.from_numpy(block).T).topk(min(k, len(block)), dim=1)
        found = _nearer(found, Neighbours(near.indices.numpy() + start, near.values.numpy()))
    return found


def exact_anywhere(rows: Rows, queries: NDArray[np.float32], k: int) -> Neighbours:
    """`exact` where faiss is installed, `by_torch` where it is not: looking into one's own pictures takes no further package."""
    try:
        library()
    except ImportError:
        return by_torch(rows, queries, k)
    return exact(rows, queries, k)


class InvertedFile:
    """A search that looks into some cells only; made once in a folder, then mapped by whoever opens it."""

    def __init__(self, folder: Path, probes: int) -> None:
        faiss = library()
        self._parts = [faiss.read_index(str(path), faiss.IO_FLAG_MMAP) for path in sorted(folder.glob("part-*.faiss"))]
        for part in self._parts:
            part.nprobe = probes

    def __call__(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        found = _none(len(queries), k)
        for part in self._parts:
            cosines, numbers = part.search(queries, k)
            found = _nearer(found, Neighbours(numbers, np.where(numbers < 0, -np.inf, cosines).astype(np.float32)))
        return found


def make_inverted_file(folder: Path, rows: Rows, cells: int) -> None:
    """Writes the index of all rows into `folder` in one step; whoever comes second finds it there. ValueError for more cells than rows."""
    if cells > len(rows):
        raise ValueError(f"{len(rows)} pictures cannot fill {cells} cells; set search.cells lower, or search.type to exact")
    if folder.exists():
        return
    faiss = library()
    making = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    making.mkdir(parents=True)
    try:
        empty = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.width), rows.width, cells, faiss.METRIC_INNER_PRODUCT)
        empty.cp.seed, empty.cp.min_points_per_centroid = SEED, 1
        empty.train(_sample(rows, min(len(rows), cells * PER_CELL)))
        for start, block in _blocks(rows, PART):
            part = faiss.clone_index(empty)
            part.add_with_ids(block, np.arange(start, start + len(block)))
            faiss.write_index(part, str(making / f"part-{start:012d}.faiss"))
        try:
            os.rename(making, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def recall(found: Neighbours, truth: Neighbours) -> float:
    """Share of the true neighbours that were found."""
    there = truth.numbers >= 0
    hit = (truth.numbers[:, :, None] == found.numbers[:, None, :]).any(2)
    return float(hit[there].mean()) if there.any() else 1.0


def _none(queries: int, k: int) -> Neighbours:
    return Neighbours(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))


def _nearer(one: Neighbours, other: Neighbours) -> Neighbours:
    """The k nearest of both, k being that of `one`; of equally near ones the lower number first."""
    numbers, cosines = (np.concatenate([a, b], axis=1) for a, b in zip(one, other, strict=True))
    order = np.lexsort((numbers, -cosines), axis=1)[:, : one.numbers.shape[1]]
    return Neighbours(np.take_along_axis(numbers, order, axis=1), np.take_along_axis(cosines, order, axis=1))


def _blocks(rows: Rows, size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(rows), size):
        yield start, rows.rows(start, min(start + size, len(rows)))


def _sample(rows: Rows, count: int) -> NDArray[np.float32]:
    """`count` rows, drawn without replacement, in order."""
    chosen = np.sort(np.random.default_rng(SEED).choice(len(rows), count, replace=False))
    parts = [block[chosen[(chosen >= start) & (chosen < start + len(block))] - start] for start, block in _blocks(rows, BLOCK)]
    return np.concatenate(parts)
