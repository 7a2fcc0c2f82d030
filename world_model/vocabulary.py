"""The ids of the world model: text pieces first, then controls, then one contiguous span for every stream that is not text.

Text comes first so that a text-only tool sees an ordinary text tokenizer; several text streams share its span. Text can never produce a
control, whatever it says, because controls lie outside its span. Where several codes stand at one place (levels of a residual codec,
dimensions of an action), each level has a part of the span for itself, and they come one after the other, level 0 first.

Streams on a clock are woven step by step: their codes are spread evenly over the steps, in their order.

Where a world sees something (features of a picture), places are reserved for that ahead of <bos>. What stands there is no token: its ids
lie beyond all others, nobody predicts or writes them, and each names a vector that the model is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from worldloom.world_model.reserved import refuse_reserved

BOS, EOS, PAD, MASK = "<bos>", "<eos>", "<pad>", "<mask>"
TEXT = "text"


@dataclass(frozen=True)
class CodeStream:
    """One stream of codes: `shape` where every sample has prod(shape) codes, else None and at most `max_length` of them.

    `codebook_size` is that of one level; where there are several `levels`, they are the last axis of `shape`.
    """

    name: str
    kind: str
    codebook_size: int
    shape: tuple[int, ...] | None
    max_length: int
    levels: int = 1
    steps: int = 0  # of the clock that it has codes at, from the first on; 0 without a clock

    @property
    def step_length(self) -> int:
        """Codes of one segment: of one step, for a stream on the clock."""
        return self.max_length // self.steps if self.steps else self.max_length

    @property
    def tokens(self) -> int:
        """Of a sample that has it at its longest: codes, and the two around each segment."""
        return self.max_length + 2 * max(self.steps, 1)

    @property
    def span_size(self) -> int:
        """Ids that the stream takes."""
        return self.levels * self.codebook_size

    @property
    def fixed(self) -> bool:
        return self.shape is not None

    @property
    def min_length(self) -> int:
        return self.max_length if self.fixed else 0


def code_stream(
    name: str,
    kind: str,
    codebook_size: int,
    shape: Sequence[int] | None = None,
    max_length: int | None = None,
    levels: int = 1,
    steps: int = 0,
) -> CodeStream:
    """A stream whose length is given by its shape or, where that is None, bounded by `max_length`."""
    if shape is None and max_length is None:
        raise ValueError(f"stream {name!r} has neither a shape nor a max_length: give one, so that a segment is known to end")
    length = prod(shape) if shape is not None else max_length
    assert length is not None
    if length < 1 or codebook_size < 1:
        raise ValueError(f"stream {name!r} has {codebook_size} codes and segments of {length}: both must be at least 1")
    if levels != 1 and (levels < 1 or shape is None or not len(shape) or shape[-1] != levels):
        raise ValueError(f"stream {name!r} has {levels} levels, so its shape must end with {levels}, got {shape}")
    if steps and (steps < 0 or shape is None or length % (steps * levels)):
        raise ValueError(f"stream {name!r} is on a clock, so its codes must divide evenly over its {steps} steps, got the shape {shape}")
    return CodeStream(name, kind, codebook_size, None if shape is None else tuple(shape), length, levels, steps)


@dataclass(frozen=True)
class Clock:
    """The streams that are woven step by step, in their order within a step; those that lack the last step have one step less."""

    name: str
    streams: tuple[str, ...]
    given: tuple[str, ...] = ()  # those of them that come from outside, when a world is rolled out: actions

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Clock":
        return cls(value["name"], tuple(value["streams"]), tuple(value["given"]))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "streams": list(self.streams), "given": list(self.given)}


@dataclass(frozen=True)
class Vocabulary:
    """Which id means what; frozen, and saved with every model."""

    streams: tuple[CodeStream, ...]
    text_size: int
    clock: Clock | None = None
    sentinels: int = 0  # controls that stand for spans of codes; behind all other ids, so that those are the same without them
    ahead: int = 0  # places that are reserved ahead of <bos>

    @classmethod
    def of(
        cls, streams: Mapping[str, Mapping[str, Any]], clock: Mapping[str, Any] | None = None, sentinels: int = 0, ahead: int = 0
    ) -> "Vocabulary":
        """The vocabulary of a token dataset: `streams` is what its dataset.json says, by name, `clock` what it says of the clock."""
        made = tuple(
            code_stream(name, s["kind"], s["codebook_size"], s.get("shape"), s.get("max_length"), s.get("levels", 1), s.get("steps", 0))
            for name, s in streams.items()
        )
        text_size = max((s.codebook_size for s in made if s.kind == TEXT), default=0)
        return cls(made, text_size, None if clock is None else Clock.from_json(clock), sentinels, ahead)

    def __post_init__(self) -> None:
        self._check_clock()
        names = [stream.name for stream in self.streams]
        if len(set(names)) < len(names):
            raise ValueError(f"streams must have different names, got {names}")
        refuse_reserved(names)
        for stream in self.streams:
            if stream.kind == TEXT and stream.codebook_size > self.text_size:
                raise ValueError(f"text stream {stream.name!r} has {stream.codebook_size} pieces, the text span only {self.text_size}")

    def _check_clock(self) -> None:
        clocked = {stream.name: stream.steps for stream in self.streams if stream.steps}
        named = () if self.clock is None else self.clock.streams
        if sorted(clocked) != sorted(named):
            raise ValueError(f"the clock has the streams {list(named)}, and those with steps are {list(clocked)}; they must be the same")
        if clocked and min(clocked.values()) < max(clocked.values()) - 1:
            raise ValueError(f"streams on one clock have as many steps, or one less where the last has nothing; got {clocked}")
        if self.clock is not None and not {*self.clock.given} <= {*named}:
            raise ValueError(f"given are {list(self.clock.given)}, and on the clock only {list(named)}")

    @cached_property
    def clocked(self) -> tuple[int, ...]:
        """Numbers of the streams on the clock, in their order within a step."""
        return () if self.clock is None else tuple(map(self.index, self.clock.streams))

    @cached_property
    def steps(self) -> int:
        """Of the clock; 0 without one."""
        return max((stream.steps for stream in self.streams), default=0)

    @cached_property
    def controls(self) -> tuple[str, ...]:
        """Control tokens in the order of their ids, which start at `text_size`."""
        pairs = [token for stream in self.streams for token in (f"<{stream.name}>", f"</{stream.name}>")]
        return (BOS, EOS, PAD, MASK, *pairs)

    @cached_property
    def _spans(self) -> tuple[range, ...]:
        spans, first = [], self.text_size + len(self.controls)
        for stream in self.streams:
            if stream.kind == TEXT:
                spans.append(range(stream.codebook_size))
            else:
                spans.append(range(first, first + stream.span_size))
                first += stream.span_size
        return tuple(spans)

    @cached_property
    def size(self) -> int:
        codes = sum(stream.span_size for stream in self.streams if stream.kind != TEXT)
        return self.text_size + len(self.controls) + codes + self.sentinels

    @property
    def unseen(self) -> np.ndarray:
        """int64 [ahead]: what stands ahead of <bos> where nothing is seen."""
        return np.arange(self.size, self.size + self.ahead)

    def own(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64: the tokens, without what stands ahead of <bos>."""
        every = np.asarray(tokens, dtype=np.int64)
        mine: np.ndarray = every[every < self.size]
        return mine

    @property
    def bos(self) -> int:
        return self.text_size

    @property
    def eos(self) -> int:
        return self.text_size + 1

    @property
    def pad(self) -> int:
        return self.text_size + 2

    @property
    def mask(self) -> int:
        return self.text_size + 3

    @cached_property
    def _index(self) -> dict[str, int]:
        return {stream.name: index for index, stream in enumerate(self.streams)}

    def index(self, name: str) -> int:
        """The number of the stream called `name`, in the order of `streams`."""
        if name not in self._index:
            raise KeyError(f"no stream {name!r} in this vocabulary; it has {', '.join(self._index)}")
        return self._index[name]

    def indicator(self, stream: int) -> int:
        """The control that opens a segment of stream number `stream`."""
        return self.text_size + 4 + 2 * stream

    def closing(self, stream: int) -> int:
        """The control that closes a segment of stream number `stream`."""
        return self.text_size + 5 + 2 * stream

    def sentinel(self, number: int) -> int:
        """The control that stands for span number `number`."""
        return self.size - self.sentinels + number

    def span(self, stream: int) -> range:
        """The ids of the codes of stream number `stream`: code c of level l is id span.start + l * codebook_size + c."""
        return self._spans[stream]

    def level(self, stream: int, level: int) -> range:
        """The ids of the codes of one level."""
        size = self.streams[stream].codebook_size
        return self._spans[stream][level * size : (level + 1) * size]

    def to_json(self) -> dict[str, Any]:
        streams = [
            {
                "name": s.name,
                "kind": s.kind,
                "codebook_size": s.codebook_size,
                "shape": None if s.shape is None else list(s.shape),
                "max_length": s.max_length,
                "levels": s.levels,
                **({"steps": s.steps} if s.steps else {}),
            }
            for s in self.streams
        ]
        clock = {} if self.clock is None else {"clock": self.clock.to_json()}
        sentinels = {"sentinels": self.sentinels} if self.sentinels else {}
        ahead = {"ahead": self.ahead} if self.ahead else {}
        return {"text_size": self.text_size, "streams": streams, **clock, **sentinels, **ahead}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Vocabulary":
        clock = value.get("clock")
        streams = tuple(code_stream(**stream) for stream in value["streams"])
        clock = None if clock is None else Clock.from_json(clock)
        return cls(streams, value["text_size"], clock, value.get("sentinels", 0), value.get("ahead", 0))
