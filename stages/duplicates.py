"""Which pictures are one: equal pixels by their digests, near ones by comparing each picture with its nearest neighbours.

A picture is known by its number in a FeatureSet. Links make groups, of which the lowest number stays.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.features import DIGEST_BYTES, FeatureSet
from worldloom.stages.nearest import BLOCK, Neighbours
from worldloom.stages.seen import Seen

SMALL = 8  # S, pixels of the side of small pictures that are compared with crops
LIKE_A_VIEW = 3  # pictures that are taken for each crop of a picture
COMPARED_AT_ONCE = 512  # pairs whose pictures are read together
BINS = 20  # of the histogram of concordances, from 0.5 to 1

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
        return gathered(self.features.rows, self.numbers[start:stop])


class Small:
    """The same pictures by what they look like when they are small, in place of their features."""

    width = 3 * SMALL * SMALL

    def __init__(self, features: FeatureSet, numbers: NDArray[np.int64]) -> None:
        self.features, self.numbers = features, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """[stop - start, 3 S S]."""
        from worldloom.stages.alignment import thumb_signatures

        return thumb_signatures(gathered(self.features.thumbs, self.numbers[start:stop]), SMALL)


def gathered(read: Callable[[int, int], NDArray[Any]], numbers: NDArray[np.int64]) -> NDArray[Any]:
    """What `read` gives for rising numbers, read in pieces: what is not wanted may be long."""
    parts = [read(0, 0)]
    while len(numbers):
        here = numbers[numbers < numbers[0] + BLOCK]
        parts.append(read(int(here[0]), int(here[-1]) + 1)[here - here[0]])
        numbers = numbers[len(here) :]
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


def lookalikes(rows: Chosen, search: Search, seen: Seen, start: int, stop: int, neighbours: int, smallest: float) -> NDArray[np.void]:
    """LINK [P], nothing compared yet: rows `start` .. `stop` with the others that look most like one of their crops, as they are or
    mirrored, when both are small: what an encoder has not learnt to see as one is found so. `search` is over Small."""
    from worldloom.stages.alignment import view_signatures

    views = view_signatures(seen.pictures(rows.numbers[start:stop]), smallest, SMALL)
    found = search(views.reshape(-1, views.shape[2]), LIKE_A_VIEW + 1)
    numbers, likeness = (each.reshape(stop - start, -1) for each in found)
    pairs = []
    for row in range(stop - start):
        others, best = numbers[row], likeness[row]
        keep = (others >= 0) & (others != start + row)
        order = np.argsort(-best[keep], kind="stable")
        _, where = np.unique(others[keep][order], return_index=True)  # each other one by its best view
        nearest = others[keep][order][np.sort(where)[:neighbours]]
        pairs.append(np.stack([np.full(len(nearest), start + row), nearest], axis=1))
    both = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    links = np.zeros(len(both), LINK)
    links["a"], links["b"] = np.sort(rows.numbers[both], axis=1).T
    own, theirs = rows.rows(start, stop)[both[:, 0] - start], gathered_any(rows, both[:, 1])
    links["cosine"], links["concordance"], links["box"] = (own * theirs).sum(1), 1, (0, 0, 1, 1)
    return links


def gathered_any(rows: Chosen, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows at places in any order."""
    wanted, which = np.unique(places, return_inverse=True)
    found: NDArray[np.float32] = gathered(rows.features.rows, rows.numbers[wanted])[which]
    return found


def together(*links: NDArray[np.void]) -> NDArray[np.void]:
    """All links, each pair once, in order."""
    every = np.concatenate(links)
    _, first = np.unique(np.stack([every["a"], every["b"]], axis=1), axis=0, return_index=True)
    return every[first]


def compare(links: NDArray[np.void], seen: Seen, bar: float, smallest: float) -> NDArray[np.void]:
    """The same links with their pixels compared (see alignment.py)."""
    from worldloom.stages.alignment import align

    links = links.copy()
    for start in range(0, len(links), COMPARED_AT_ONCE):
        piece = links[start : start + COMPARED_AT_ONCE]
        numbers, which = np.unique(np.stack([piece["a"], piece["b"]], axis=1), return_inverse=True)
        pairs = align(seen.pictures(numbers), which.reshape(-1, 2).astype(np.int64), bar, smallest)
        for name in pairs._fields:
            piece[name] = getattr(pairs, name)
    return links


class Compared(NamedTuple):
    """What is kept of all pairs that were compared: there are some thirty for every picture, and nearly all are far from one."""

    links: NDArray[np.void]  # LINK [P]: those that are one, in order
    pairs: int  # how many were compared
    heights: NDArray[np.int64]  # [BINS]: how many have which concordance, from 0.5 to 1
    spared: NDArray[np.void]  # LINK: some that are not one, the most alike first


def gather(parts: Iterable[NDArray[np.void]], bar: float, spared: int) -> Compared:
    """Of LINK arrays, read one by one: pairs are one from a concordance of `bar` on, and `spared` of the others are kept."""
    held, best, pairs, heights = [np.zeros(0, LINK)], np.zeros(0, LINK), 0, np.zeros(BINS, np.int64)
    for links in parts:
        held.append(links[links["concordance"] >= bar])
        below = np.concatenate([best, links[links["concordance"] < bar]])
        best = below[np.argsort(-below["concordance"], kind="stable")[:spared]]
        heights += np.histogram(links["concordance"].clip(0.5, 1), BINS, (0.5, 1))[0]
        pairs += len(links)
    return Compared(np.concatenate(held), pairs, heights, best)


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
