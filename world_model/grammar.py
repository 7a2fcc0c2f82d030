"""Which tokens may follow, given what came: one automaton for training masks, sampling and checking a corpus.

    <bos> <caption> text pieces </caption> <frame> h*w codes </frame> <eos>

Segments come in any order; a stream opens at most `repeats` times in a sample (once, unless the grammar says otherwise). The budget rule: a
segment opens, and a code of a segment of varying length is written, only if everything can still be closed within the tokens that are left.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from worldloom.world_model.vocabulary import Vocabulary

# Values of State.stream outside any segment.
START, BETWEEN, END = -3, -2, -1
UNLIMITED = 1 << 40


class IllegalToken(ValueError):
    """A token stands where the grammar does not allow it."""


class State(NamedTuple):
    """Where a row stands; everything that decides which tokens may follow."""

    stream: int  # number of the open stream, or START, BETWEEN, END
    codes: int  # codes of the open segment so far
    opened: tuple[int, ...]  # segments opened so far, for every stream
    left: int  # tokens that may still come, the closing ones and <eos> among them


class Segment(NamedTuple):
    stream: str
    codes: np.ndarray  # int64, local codes; where there are levels, those of a place side by side


class Grammar:
    """The sequences of one vocabulary; `streams` are those that may appear (all by default)."""

    def __init__(self, vocabulary: Vocabulary, streams: Sequence[str] | None = None, repeats: Mapping[str, int] | None = None) -> None:
        self.vocabulary = vocabulary
        self.streams = tuple(stream.name for stream in vocabulary.streams) if streams is None else tuple(streams)
        self._numbers = tuple(sorted(vocabulary.index(name) for name in self.streams))
        self.repeats = [0] * len(vocabulary.streams)
        for number, name in ((vocabulary.index(name), name) for name in self.streams):
            self.repeats[number] = (repeats or {}).get(name, 1)

    def start(self, length: int = UNLIMITED) -> State:
        """The state before <bos>; the sample has at most `length` tokens, <bos> and <eos> among them."""
        if length < 2:
            raise ValueError(f"a sample has at least <bos> and <eos>, so length must be at least 2, got {length}")
        return State(START, 0, (0,) * len(self.vocabulary.streams), length)

    def openable(self, state: State) -> list[int]:
        """Numbers of the streams that may open in a state between segments."""
        streams = self.vocabulary.streams
        # indicator, codes, closing token, <eos>
        return [s for s in self._numbers if state.opened[s] < self.repeats[s] and streams[s].min_length + 3 <= state.left]

    def legal(self, state: State) -> tuple[range, ...]:
        """The ids that may follow, as ranges in increasing order that do not touch; empty only behind <eos>."""
        ids = self.vocabulary
        if state.stream == START:
            return (range(ids.bos, ids.bos + 1),)
        if state.stream == BETWEEN:
            singles = [ids.eos, *(ids.indicator(stream) for stream in self.openable(state))]
            return tuple(range(token, token + 1) for token in singles)
        if state.stream == END:
            return ()
        stream = ids.streams[state.stream]
        closing = ids.closing(state.stream)
        may_go_on = state.codes < stream.max_length and (stream.fixed or state.left > 2)
        may_close = state.codes >= stream.min_length
        ranges = [ids.level(state.stream, state.codes % stream.levels)] * may_go_on + [range(closing, closing + 1)] * may_close
        return tuple(sorted(ranges, key=lambda ids: ids.start))

    def step(self, state: State, token: int) -> State:
        """The state behind `token`; IllegalToken if it may not stand here."""
        if not any(token in ids for ids in self.legal(state)):
            raise IllegalToken(f"{self.describe(token)} may not follow {self._where(state)}")
        ids, left = self.vocabulary, state.left - 1
        if state.stream == START:
            return state._replace(stream=BETWEEN, left=left)
        if state.stream == BETWEEN:
            if token == ids.eos:
                return state._replace(stream=END, left=left)
            stream = (token - ids.indicator(0)) // 2
            opened = (*state.opened[:stream], state.opened[stream] + 1, *state.opened[stream + 1 :])
            return State(stream, 0, opened, left)
        if token == ids.closing(state.stream):
            return State(BETWEEN, 0, state.opened, left)
        return State(state.stream, state.codes + 1, state.opened, left)

    def follow(self, tokens: Iterable[int], state: State | None = None) -> State:
        """The state behind `tokens`; IllegalToken at the first that may not stand where it does."""
        state = self.start() if state is None else state
        for token in tokens:
            state = self.step(state, int(token))
        return state

    def parse(self, tokens: Sequence[int] | np.ndarray, length: int = UNLIMITED) -> list[Segment]:
        """The segments of a whole sample, from <bos> to <eos>; IllegalToken if it is not one of this grammar."""
        state, segments, first = self.start(length), list[Segment](), 0
        tokens = np.asarray(tokens, dtype=np.int64)
        for at, token in enumerate(tokens.tolist()):
            before, state = state, self.step(state, token)
            if before.stream == BETWEEN:
                first = at + 1
            elif before.stream >= 0 and state.stream == BETWEEN:
                stream = self.vocabulary.streams[before.stream]
                codes = (tokens[first:at] - self.vocabulary.span(before.stream).start) % stream.codebook_size
                segments.append(Segment(stream.name, codes))
        if state.stream != END:
            raise IllegalToken(f"the sample ends {self._where(state)}, without <eos>")
        return segments

    def describe(self, token: int) -> str:
        """A token in words, for messages."""
        ids = self.vocabulary
        if 0 <= token - ids.text_size < len(ids.controls):
            return ids.controls[token - ids.text_size]
        if 0 <= token < ids.text_size:
            return f"text piece {token}"
        for number, stream in enumerate(ids.streams):
            if token in ids.span(number):
                level, code = divmod(token - ids.span(number).start, stream.codebook_size)
                return f"code {code} of <{stream.name}>" + f", level {level}" * (stream.levels > 1)
        return f"id {token}, which is not in the vocabulary of {ids.size}"

    def _where(self, state: State) -> str:
        if state.stream < 0:
            return {START: "the start", BETWEEN: "a closed segment", END: "<eos>"}[state.stream]
        return f"{state.codes} codes of <{self.vocabulary.streams[state.stream].name}>"

    def to_json(self) -> dict[str, Any]:
        repeats = {name: self.repeats[self.vocabulary.index(name)] for name in self.streams}
        return {"streams": list(self.streams), "repeats": repeats}

    @classmethod
    def from_json(cls, vocabulary: Vocabulary, value: Mapping[str, Any]) -> "Grammar":
        return cls(vocabulary, value["streams"], value["repeats"])
