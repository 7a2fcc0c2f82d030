"""Which tokens may follow, given what came: one automaton for training masks, sampling and checking a corpus.

    <bos> <caption> text pieces </caption> <frame> h*w codes </frame> <eos>

Segments come in any order; a stream opens at most once in a sample. The budget rule: a segment opens, and a code of a segment of varying
length is written, only if everything can still be closed within the tokens that are left.

    <bos> ... (<clip> h*w codes </clip> <push> codes </push>) x T ... <eos>

Streams on the clock stand together, step by step, in the clock's order. The first step says which of them there are: any may open, in that
order; every later step holds the same, but for those that lack the last one. With the first step all that follows is settled, until the
steps are over.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from worldloom.world_model.vocabulary import Vocabulary

# Values of State.stream outside any segment.
START, BETWEEN, END = -3, -2, -1
# Values of State.step outside the steps of the clock.
BEFORE, OVER = -1, -2
UNLIMITED = 1 << 40


class IllegalToken(ValueError):
    """A token stands where the grammar does not allow it."""


class State(NamedTuple):
    """Where a row stands; everything that decides which tokens may follow."""

    stream: int  # number of the open stream, or START, BETWEEN, END
    codes: int  # codes of the open segment so far
    opened: tuple[int, ...]  # segments opened so far, for every stream
    left: int  # tokens that may still come, the closing ones and <eos> among them
    step: int = BEFORE  # of the clock, or BEFORE, OVER
    last: int = -1  # which of the clock's streams opened last, by its place in their order


class Segment(NamedTuple):
    stream: str
    codes: np.ndarray  # int64, local codes; where there are levels, those of a place side by side; on the clock, those of all steps


class Grammar:
    """The sequences of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.streams = tuple(stream.name for stream in vocabulary.streams)
        self._place = {stream: place for place, stream in enumerate(vocabulary.clocked)}

    def start(self, length: int = UNLIMITED) -> State:
        """The state before <bos>; the sample has at most `length` tokens, <bos> and <eos> among them."""
        if length < 2:
            raise ValueError(f"a sample has at least <bos> and <eos>, so length must be at least 2, got {length}")
        return State(START, 0, (0,) * len(self.vocabulary.streams), length)

    def openable(self, state: State) -> list[int]:
        """Numbers of the streams that may open in a state between segments, in increasing order."""
        onward = self.onward(state)
        others = () if onward is not None else (s for s in range(len(self.streams)) if s not in self._place and not state.opened[s])
        fitting = [s for s in (*others, *self._joining(state)) if s != onward and self._least(state, s) <= state.left]
        return sorted([*fitting, onward] if onward is not None else fitting)

    def onward(self, state: State) -> int | None:
        """The stream that the clock goes on with if no other joins its first step; None before its steps begin and when they are over."""
        if state.step < 0:
            return None
        streams = self.vocabulary.streams
        there = [s for s in self._place if state.opened[s]]
        rest = [s for s in there if self._place[s] > state.last and state.step < streams[s].steps]
        return rest[0] if rest else next((s for s in there if state.step + 1 < streams[s].steps), None)

    def arranged(self, streams: Sequence[str]) -> list[str]:
        """The same streams, those on the clock side by side in its order, where the first of them stands."""
        clock = self.vocabulary.clock
        clocked = [name for name in clock.streams if name in streams] if clock else []
        first = next((at for at, name in enumerate(streams) if name in clocked), 0)
        others = [name for name in streams if name not in clocked]
        return [*others[:first], *clocked, *others[first:]]

    def _joining(self, state: State) -> list[int]:
        """Those of the clock that are not there yet and may be."""
        if state.step == BEFORE:
            return list(self._place)
        return [s for s in self._place if self._place[s] > state.last] if state.step == 0 else []

    def _least(self, state: State, stream: int) -> int:
        """Tokens that come at least once stream number `stream` opens: until all is closed, and <eos>."""
        streams = self.vocabulary.streams
        if stream not in self._place:
            return streams[stream].min_length + 3
        segments = {s: streams[s].steps - 1 for s in self._place if state.opened[s]} | {stream: streams[stream].steps}
        return 1 + sum(count * (streams[s].step_length + 2) for s, count in segments.items())

    def legal(self, state: State) -> tuple[range, ...]:
        """The ids that may follow, as ranges in increasing order that do not touch; empty only behind <eos>."""
        ids = self.vocabulary
        if state.stream == START:
            return (range(ids.bos, ids.bos + 1),)
        if state.stream == BETWEEN:
            end = [ids.eos] if self.onward(state) is None else []
            singles = [*end, *(ids.indicator(stream) for stream in self.openable(state))]
            return tuple(range(token, token + 1) for token in singles)
        if state.stream == END:
            return ()
        stream = ids.streams[state.stream]
        closing = ids.closing(state.stream)
        may_go_on = state.codes < stream.step_length and (stream.fixed or state.left > 2)
        may_close = not stream.fixed or state.codes == stream.step_length
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
            return self._opened(state._replace(codes=0, left=left), (token - ids.indicator(0)) // 2)
        if token == ids.closing(state.stream):
            return state._replace(stream=BETWEEN, codes=0, left=left)
        return state._replace(codes=state.codes + 1, left=left)

    def _opened(self, state: State, stream: int) -> State:
        place = self._place.get(stream)
        if place is None:
            step, last, count = (OVER if state.step >= 0 else state.step), state.last, state.opened[stream] + 1
        else:
            step, last, count = state.step + (state.step == BEFORE or place <= state.last), place, 1
        opened = (*state.opened[:stream], count, *state.opened[stream + 1 :])
        return state._replace(stream=stream, opened=opened, step=step, last=last)

    def follow(self, tokens: Iterable[int], state: State | None = None) -> State:
        """The state behind `tokens`; IllegalToken at the first that may not stand where it does."""
        state = self.start() if state is None else state
        for token in tokens:
            state = self.step(state, int(token))
        return state

    def parse(self, tokens: Sequence[int] | np.ndarray, length: int = UNLIMITED) -> list[Segment]:
        """The segments of a whole sample, from <bos> to <eos>; IllegalToken if it is not one of this grammar."""
        state, found, first = self.start(length), list[tuple[int, np.ndarray]](), 0
        tokens = np.asarray(tokens, dtype=np.int64)
        for at, token in enumerate(tokens.tolist()):
            before, state = state, self.step(state, token)
            if before.stream == BETWEEN:
                first = at + 1
            elif before.stream >= 0 and state.stream == BETWEEN:
                size = self.vocabulary.streams[before.stream].codebook_size
                found.append((before.stream, (tokens[first:at] - self.vocabulary.span(before.stream).start) % size))
        if state.stream != END:
            raise IllegalToken(f"the sample ends {self._where(state)}, without <eos>")
        return self._joined(found)

    def _joined(self, found: Sequence[tuple[int, np.ndarray]]) -> list[Segment]:
        """Segments by name; those of a stream on the clock as one, where its first stands."""
        steps = {stream: [codes for other, codes in found if other == stream] for stream in self._place}
        whole = [(s, codes) for s, codes in found if s not in steps or codes is steps[s][0]]
        return [
            Segment(self.vocabulary.streams[s].name, np.concatenate(steps[s]) if s in steps and len(steps[s]) > 1 else codes)
            for s, codes in whole
        ]

    def describe(self, token: int) -> str:
        """A token in words, for messages."""
        ids = self.vocabulary
        if 0 <= token - ids.text_size < len(ids.controls):
            return ids.controls[token - ids.text_size]
        if 0 <= token < ids.text_size:
            return f"text piece {token}"
        if 0 <= token - ids.sentinel(0) < ids.sentinels:
            return f"<span-{token - ids.sentinel(0)}>"
        for number, stream in enumerate(ids.streams):
            if token in ids.span(number):
                level, code = divmod(token - ids.span(number).start, stream.codebook_size)
                return f"code {code} of <{stream.name}>" + f", level {level}" * (stream.levels > 1)
        return f"id {token}, which is not in the vocabulary of {ids.size}"

    def _where(self, state: State) -> str:
        if state.stream < 0:
            return {START: "the start", BETWEEN: "a closed segment", END: "<eos>"}[state.stream]
        step = f" at step {state.step}" if state.stream in self._place else ""
        return f"{state.codes} codes of <{self.vocabulary.streams[state.stream].name}>{step}"

    def to_json(self) -> dict[str, Any]:
        # Part of the files' format, for readers that do not know that every stream may open, and once.
        return {"streams": list(self.streams), "repeats": dict.fromkeys(self.streams, 1)}

    @classmethod
    def from_json(cls, vocabulary: Vocabulary, value: Mapping[str, Any]) -> "Grammar":
        """ValueError for rules that are not those of the vocabulary."""
        grammar = cls(vocabulary)
        if value != grammar.to_json():
            raise ValueError(
                f"every stream of a vocabulary may stand once in a sample, so its grammar is {grammar.to_json()}, got {value}; "
                "train or export the world anew"
            )
        return grammar
