"""Which pictures are one: equal pixels by their digests, near ones by comparing each picture with its nearest neighbours.

A picture is known by its number in a FeatureSet. Links make groups, of which the lowest number stays.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.features import DIGEST_BYTES, FeatureSet
from worldloom.stages.nearest import BLOCK, Neighbours
from worldloom.stages.seen import Seen

COMPARED_AT_ONCE = 256  # pictures whose neighbours are read together

LINK = np.dtype(
    [
        *(("a", "<i8"), ("b", "<i8")),  # numbers, the lower first
        *(("cosine", "<f4"), ("concordance", "<f4")),  # 1 where nobody compared pixels
        *(("flipped", "?"), ("reversed", "?"), ("box", "<f4", (4,))),  # alignment.Pairs
    ]
)
"""Two pictures that were compared, and what came of it."""

Search = Callable[[NDArray[np.float32], int], Neighbours]


class Chosen:
    """Some rows of a FeatureSet, numbered anew."""

    def __init__(self, features: FeatureSet, numbers: NDArray[np.int64]) -> None:
        """`numbers` rise."""
        self.features, self.numbers, self.width = features, numbers, features.width

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """[stop - start, D]."""
        wanted, parts = self.numbers[start:stop], [np.empty((0, self.width), np.float32)]
        while len(wanted):
            here = wanted[wanted < wanted[0] + BLOCK]  # in pieces: what is not wanted may be long
            parts.append(self.features.rows(int(here[0]), int(here[-1]) + 1)[here - here[0]])
            wanted = wanted[len(here) :]
        return np.concatenate(parts)


def firsts(features: FeatureSet) -> NDArray[np.int64]:
    """[N]: for every picture the lowest number of those with its pixels."""
    parts = [features.digests(start, min(start + BLOCK, len(features))) for start in range(0, len(features), BLOCK)]
    digests = np.ascontiguousarray(np.concatenate([np.empty((0, DIGEST_BYTES), np.uint8), *parts])).view(f"V{DIGEST_BYTES}")[:, 0]
    _, first, which = np.unique(digests, return_index=True, return_inverse=True)
    numbers: NDArray[np.int64] = first[which].astype(np.int64)
    return numbers


def candidates(rows: Chosen, search: Search, start: int, stop: int, neighbours: int, similarity: float) -> NDArray[np.void]:
    """LINK [P], nothing compared yet: rows `start` .. `stop` with the nearest others whose cosine is `similarity` or more."""
    found = search(rows.rows(start, stop), neighbours + 1)  # the first is the row itself, or one that is as near
    mine = np.repeat(np.arange(start, stop)[:, None], found.numbers.shape[1], axis=1)
    there = (found.numbers >= 0) & (found.numbers != mine) & (found.cosines >= similarity)
    pairs = np.sort(np.stack([rows.numbers[mine[there]], rows.numbers[found.numbers[there]]], axis=1), axis=1)
    pairs, which = np.unique(pairs, axis=0, return_index=True)
    links = np.zeros(len(pairs), LINK)
    links["a"], links["b"], links["cosine"] = *pairs.T, found.cosines[there][which]
    links["concordance"], links["box"] = 1, (0, 0, 1, 1)
    return links


def compare(links: NDArray[np.void], seen: Seen, bar: float, smallest: float) -> NDArray[np.void]:
    """The same links with their pixels compared (see alignment.py)."""
    from worldloom.stages.alignment import align

    links = links.copy()
    # Links of one picture stand together, so each piece reads few others.
    for start in range(0, len(links), 16 * COMPARED_AT_ONCE):
        piece = links[start : start + 16 * COMPARED_AT_ONCE]
        numbers, which = np.unique(np.stack([piece["a"], piece["b"]], axis=1), return_inverse=True)
        pairs = align(seen.pictures(numbers), which.reshape(-1, 2).astype(np.int64), bar, smallest)
        for name in pairs._fields:
            piece[name] = getattr(pairs, name)
    return links


class Groups(NamedTuple):
    """Of all pictures."""

    kept: NDArray[np.int64]  # [N]: the lowest number of each picture's group, its own where it stays
    linked: NDArray[np.int64]  # [N]: place among the links of the best one that holds it, -1 where none does


def group(first: NDArray[np.int64], links: NDArray[np.void]) -> Groups:
    """Groups by links that all hold, and by equal pixels: `first` is that of `firsts`."""
    kept = first.copy()
    for a, b in zip(links["a"].tolist(), links["b"].tolist(), strict=True):
        low, high = sorted((_root(kept, a), _root(kept, b)))
        kept[high] = low
    while not np.array_equal(flat := kept[kept], kept):
        kept = flat
    linked = np.full(len(first), -1, np.int64)
    for place in np.argsort(links["concordance"], kind="stable").tolist():  # the best is written last
        linked[links[place]["a"]] = linked[links[place]["b"]] = place
    return Groups(kept, linked)


def _root(kept: NDArray[np.int64], number: int) -> int:
    while kept[number] != number:
        kept[number] = kept[kept[number]]
        number = int(kept[number])
    return number
