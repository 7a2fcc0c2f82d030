"""Several sets of tokens as one to train on, each with its share of the places.

Which set a place belongs to, and which place it is within that set, follow from the seed and the place alone; of any places in a row, each
set has its share but for one place at every split.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldloom.stages.dataset import Ragged, Tokens, TokenStream
from worldloom.stages.order import uniform

_SHARE = 4  # what a draw is for; others are in token_batches and world_model_learner


class Share(NamedTuple):
    """One set's part in training."""

    samples: int
    weight: float


class Mixture:
    """Sets of tokens by name; the samples of a split are those of the first set, then those of the second, and so on."""

    def __init__(self, sets: Mapping[str, Tokens], weights: Mapping[str, float]) -> None:
        self.sets = dict(sets)
        self.weights = {name: weights[name] for name in sets}
        self.streams = _united(self.sets)
        clocks = {name: tokens.clock for name, tokens in self.sets.items() if tokens.clock is not None}
        if any(clock != next(iter(clocks.values())) for clock in clocks.values()):
            raise ValueError(
                f"the clocks of {' and '.join(clocks)} differ: {list(clocks.values())}; sets that are mixed share one, "
                f"so put the same streams on it in each"
            )
        self.clock: dict[str, Any] | None = next(iter(clocks.values()), None)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(split for tokens in self.sets.values() for split in tokens.splits))

    def samples(self, split: str) -> int:
        return sum(share.samples for share in self.shares(split))

    def shares(self, split: str) -> list[Share]:
        """What each set gives to a split; ValueError where one has nothing to give."""
        for name, tokens in self.sets.items():
            if not tokens.samples(split):
                raise ValueError(f"{name} has no samples in the split {split!r}; it has {', '.join(tokens.splits)}; leave it out of tokens")
        return [Share(tokens.samples(split), self.weights[name]) for name, tokens in self.sets.items()]

    def lengths(self, split: str, stream: str) -> NDArray[np.int64]:
        """[samples] codes in every sample, 0 where it lacks the stream."""
        parts = [
            tokens.lengths(split, stream) if stream in tokens.streams else np.zeros(tokens.samples(split), np.int64)
            for tokens in self.sets.values()
        ]
        return np.concatenate(parts)

    def gather(self, split: str, stream: str, indices: ArrayLike) -> Ragged:
        """The codes of many samples, in the order asked for; rows of samples that lack the stream are empty."""
        wanted = np.asarray(indices, np.int64)
        firsts = np.cumsum([0, *(tokens.samples(split) for tokens in self.sets.values())])
        rows: list[NDArray[Any]] = [np.empty(0, np.uint8)] * len(wanted)
        for first, last, tokens in zip(firsts, firsts[1:], self.sets.values(), strict=False):
            here = np.flatnonzero((wanted >= first) & (wanted < last))
            if len(here) and stream in tokens.streams:
                for place, codes in zip(here.tolist(), tokens.gather(split, stream, wanted[here] - first).rows(), strict=True):
                    rows[place] = codes
        return Ragged(np.concatenate([np.empty(0, np.uint8), *rows]), np.cumsum([0, *map(len, rows)]))


class Dealt(NamedTuple):
    """Where places lead."""

    part: NDArray[np.int64]  # number of the set
    place: NDArray[np.int64]  # among those of the set: 0, 1, 2 ... as places grow


def deal(seed: int, places: NDArray[np.int64], weights: Sequence[float]) -> Dealt:
    """Deals places to sets in proportion to `weights`: the first takes its share as evenly as can be, then the second of what is left."""
    part = np.full(len(places), len(weights) - 1, np.int64)
    rest, open_places = places.astype(np.int64), np.ones(len(places), bool)
    for number in range(len(weights) - 1):
        share = weights[number] / sum(weights[number:])
        begin = float(uniform(seed, number, _SHARE)[0])
        before, behind = (np.floor(at * share + begin).astype(np.int64) for at in (rest, rest + 1))
        taken = open_places & (behind > before)
        part[taken] = number
        rest = np.where(taken, before, np.where(open_places, rest - before, rest))
        open_places &= ~taken
    return Dealt(part, rest)


def _united(sets: Mapping[str, Tokens]) -> dict[str, TokenStream]:
    """Every stream of every set; ValueError where two of one name are not of one making."""
    found: dict[str, TokenStream] = {}
    first: dict[str, str] = {}
    for name, tokens in sets.items():
        for stream, about in tokens.streams.items():
            known = found.setdefault(stream, about)
            if known.tokenizer != about.tokenizer:
                raise ValueError(
                    f"the stream {stream!r} of {first[stream]} and that of {name} were made by different tokenizers "
                    f"({known.tokenizer[:12]}, {about.tokenizer[:12]}); encode both with one, or call the streams differently"
                )
            if known._replace(dtype="", max_length=0) != about._replace(dtype="", max_length=0):
                raise ValueError(f"the stream {stream!r} of {first[stream]} is {known}, that of {name} {about}; they must have one form")
            found[stream] = known._replace(max_length=max(known.max_length, about.max_length))
            first.setdefault(stream, name)
    return found
