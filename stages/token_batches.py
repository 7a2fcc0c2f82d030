"""What a world model is trained on: the codes of all streams, in a keyed order, woven into documents and packed into rows.

A place is the number of a sample in the order of training, over all epochs. Everything about a place follows from (seed, place): which
set of tokens it comes from, which sample it is, which of its streams come and in which order. Packing is first fit in the order of places,
so that the only state between two batches is how many places were taken.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.ahead import ahead
from worldloom.stages.dataset import Tokens
from worldloom.stages.mixture import Mixture, Share, deal
from worldloom.stages.order import order, uniform
from worldloom.stages.sights import Sights
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.packing import pack
from worldloom.world_model.weave import Codes, Woven, document_lengths, reserve, spread, weave

# What a draw is for; the last counter of each.
_STREAM_ORDER, _DROP = 1, 2
_SIGHT = 5  # 3 and 4 are in world_model_learner and mixture


class TokenBatch(NamedTuple):
    """One rank's documents of a global batch."""

    woven: Woven
    places: NDArray[np.int64]  # [B]
    seen: NDArray[np.float32] | None = None  # [rows, W]: what the ids beyond the vocabulary stand for, also of documents not taken

    def take(self, documents: NDArray[np.int64]) -> "TokenBatch":
        """Some of the documents, in the order asked for."""
        lengths = self.woven.lengths[documents]
        at = spread((self.woven.lengths.cumsum() - self.woven.lengths)[documents], lengths)
        return TokenBatch(Woven(self.woven.tokens[at], self.woven.legal[at], lengths), self.places[documents], self.seen)


class _Part(NamedTuple):
    """One set's part in training."""

    samples: NDArray[np.int64]  # that are learnt from, by their numbers among those of all sets
    weight: float


class TokenBatches:
    """Global batches of `rows` rows of `row_length` tokens each; rank r of w takes the r-th of w equal parts of the rows."""

    def __init__(
        self,
        tokens: Tokens | Mixture,
        grammar: Grammar,
        split: str,
        rows: int,
        row_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop: Mapping[str, float] | None = None,
        sights: Sights | None = None,
        unseen: float = 0.0,
        leave_longer: bool = False,
    ) -> None:
        """`drop`: the share of samples in which a stream is left out; a sample keeps at least one stream. `sights`: what is seen of a
        sample, in all but the share `unseen`. `leave_longer`: samples that are longer than a row are left out, in place of an error."""
        if rows % world_size:
            raise ValueError(f"rows ({rows}) cannot be shared by {world_size} training workers; make it a multiple of {world_size}")
        if unknown := sorted(set(drop or {}) - set(grammar.streams)):
            raise ValueError(f"drop names {', '.join(unknown)}, but the streams are {', '.join(grammar.streams)}")
        self.tokens = tokens
        self.grammar = grammar
        self.split = split
        self.samples = tokens.samples(split)
        if not self.samples:
            raise ValueError(f"the tokens have no samples in the split {split!r}; they have {', '.join(tokens.splits)}")
        self.rows = rows
        self.row_length = row_length
        self.seed = seed
        self.mine = range(rank * rows // world_size, (rank + 1) * rows // world_size)
        self.names = [stream.name for stream in grammar.vocabulary.streams]
        self._drop = np.array([(drop or {}).get(name, 0.0) for name in self.names])
        self._lengths = np.stack([tokens.lengths(split, name) for name in self.names], axis=1).astype(np.int32)  # [samples, streams]
        self.sights, self.unseen = sights, unseen
        self._around = np.array([2 * max(stream.steps, 1) for stream in grammar.vocabulary.streams])  # tokens beside the codes
        documents = self._lengths_of_documents()
        shares = tokens.shares(split) if isinstance(tokens, Mixture) else [Share(self.samples, 1.0)]
        self._parts = self._fitting(documents, shares, leave_longer)
        self._mean_length = float(documents[self._parts[0].samples[: 1 << 16]].mean())
        self.left_out = self.samples - sum(len(part.samples) for part in self._parts)

    def after(self, position: dict[str, Any] | None) -> Generator[tuple[TokenBatch, dict[str, Any]], None, None]:
        """Batches for ever; a position is {"places": places taken by all ranks so far}. The next one is made while one is trained on."""
        yield from ahead(repeat(self._one_by_one(position).__next__), depth=1)

    def _one_by_one(self, position: dict[str, Any] | None) -> Iterator[tuple[TokenBatch, dict[str, Any]]]:
        taken = 0 if position is None else position["places"]
        expected = max(1, self.rows * self.row_length // max(1, round(self._mean_length)))
        while True:
            places, streams, rows = self._plan(taken, expected)
            mine = (rows >= self.mine.start) & (rows < self.mine.stop)
            yield self._batch(places[mine], streams[mine]), {"places": taken + len(places)}
            taken, expected = taken + len(places), len(places)

    def at(self, places: NDArray[np.int64]) -> TokenBatch:
        """The documents of any places."""
        return self._batch(places, self._streams(places))

    def _batch(self, places: NDArray[np.int64], streams: NDArray[np.int64]) -> TokenBatch:
        woven = self._weave(places, streams)
        if self.sights is None:
            return TokenBatch(woven, places)
        seen = self.sights.of(self.split, self.sample(places))
        seen[uniform(self.seed, places, _SIGHT) < self.unseen] = np.nan
        return TokenBatch(reserve(woven, self.grammar.vocabulary), places, seen.reshape(-1, self.sights.width))

    def sample(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which sample stands at each place."""
        out = np.empty(len(places), np.int64)
        of, within = deal(self.seed, places, [part.weight for part in self._parts])
        for number, part in enumerate(self._parts):
            samples = len(part.samples)
            for epoch in np.unique(within[of == number] // samples).tolist():
                here = (of == number) & (within // samples == epoch)
                out[here] = part.samples[order(self.seed, epoch, within[here] % samples, samples)]
        return out

    def _lengths_of_documents(self) -> NDArray[np.int64]:
        """[samples] tokens of each with all that it has."""
        codes: NDArray[np.int64] = np.where(self._lengths > 0, self._lengths + self._around, 0).sum(axis=1, dtype=np.int64)
        return codes + 2 + self.grammar.vocabulary.ahead

    def _fitting(self, documents: NDArray[np.int64], shares: Sequence[Share], leave_longer: bool) -> list[_Part]:
        """The samples of each set that are learnt from; sets without one are none."""
        fits = documents <= self.row_length
        if not (fits.any() if leave_longer else fits.all()):
            which, tokens = ("shortest", documents.min()) if leave_longer else ("longest", documents.max())
            raise ValueError(
                f"the {which} sample of {self.split!r} makes {tokens} tokens, a row has {self.row_length}; "
                f"set row_length to at least {tokens}"
            )
        firsts = np.cumsum([0, *(share.samples for share in shares)])
        parts = [
            _Part(first + np.flatnonzero(fits[first : first + share.samples]), share.weight)
            for first, share in zip(firsts.tolist(), shares, strict=False)
        ]
        return [part for part in parts if len(part.samples)]

    def _plan(self, first: int, expected: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The places of the next global batch, the streams of each, and the row that it goes to."""
        many = expected + expected // 8 + 8
        while True:
            places = np.arange(first, first + many)
            streams = self._streams(places)
            lengths = document_lengths(self.grammar, streams, self._lengths[self.sample(places)]) + self.grammar.vocabulary.ahead
            rows = pack(lengths, self.rows, self.row_length)
            if len(rows) < many:
                return places[: len(rows)], streams[: len(rows)], rows
            many *= 2

    def _streams(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """[B, S] numbers of the streams of each document in turn, -1 behind the last: those that are there and not dropped, shuffled.

        The streams of the clock are one among them, in their own order.
        """
        numbers, clocked = np.arange(len(self.names)), self.grammar.vocabulary.clocked
        lengths = self._lengths[self.sample(places)]
        keys = uniform(self.seed, places[:, None], numbers, _STREAM_ORDER)
        there = lengths > 0
        if self._drop.any():
            luck = np.where(there, uniform(self.seed, places[:, None], numbers, _DROP) - self._drop, -np.inf)
            there &= (luck >= 0) | (luck == luck.max(axis=1, keepdims=True))
        if clocked:
            keys[:, list(clocked)] = keys[:, clocked[:1]]
        # Equal keys stay in the order of the columns.
        columns = np.array([*clocked, *(number for number in numbers if number not in clocked)], np.int64)
        shuffled = columns[np.argsort(np.where(there, keys, np.inf)[:, columns], axis=1, kind="stable")]
        return np.where(np.take_along_axis(there, shuffled, axis=1), shuffled, -1)

    def _weave(self, places: NDArray[np.int64], streams: NDArray[np.int64]) -> Woven:
        samples = self.sample(places)
        codes = {}
        for number, name in enumerate(self.names):
            rows = np.where((streams == number).any(axis=1), samples, -1)
            values, offsets = self.tokens.gather(self.split, name, rows[rows >= 0])
            lengths = np.zeros(len(samples), np.int64)
            lengths[rows >= 0] = np.diff(offsets)
            codes[name] = Codes(values, lengths)
        return weave(self.grammar, streams, codes)
