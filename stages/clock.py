"""Streams that share a clock: how many steps it has, and what each stream has at each of them.

A step holds a frame of every clip, then the actions taken there, then what comes of them until the next frame: sound, rewards, whether the
episode ended. What lies between frames may lack the last step.
"""

from collections.abc import Mapping
from typing import NamedTuple

from worldloom.stages.settings import ActionStream, AudioStream, Stream, VideoStream

RANKS = {"video": 0, "action": 1, "audio": 2, "reward": 3, "end": 4}  # order within a step, by kind or role


class StreamClock(NamedTuple):
    """What the settings say; `names` in their order within a step."""

    name: str
    steps: int
    names: tuple[str, ...]
    given: tuple[str, ...]


def clock_of(streams: Mapping[str, Stream]) -> StreamClock | None:
    """The clock of a dataset, None where no stream is on one; ValueError says the rule where its streams do not go together."""
    clocked = {name: stream for name, stream in streams.items() if getattr(stream, "clock", None) is not None}
    if not clocked:
        return None
    clocks = sorted({str(getattr(stream, "clock", "")) for stream in clocked.values()})
    if len(clocks) > 1:
        raise ValueError(f"streams are on the clocks {', '.join(clocks)}, and a dataset has one; give them the same name")
    counts = {name: steps for name, stream in clocked.items() if (steps := _steps(stream)) is not None}
    if not counts:
        raise ValueError(f"the clock {clocks[0]} has only sounds, which have no steps of their own; put a clip or actions on it")
    steps = max(counts.values())
    for name, count in counts.items():
        least = steps if isinstance(clocked[name], VideoStream) else steps - 1
        if not least <= count:
            rule = f"{steps} steps" if least == steps else f"{steps} steps, or {least} between them"
            raise ValueError(f"the clock {clocks[0]} has {rule}, and {name} has {count}; give it as many")
    ordered = tuple(sorted(clocked, key=lambda name: (RANKS[_rank(clocked[name])], name)))
    return StreamClock(clocks[0], steps, ordered, tuple(name for name in ordered if _rank(clocked[name]) == "action"))


def steps_of(clock: StreamClock, name: str, stream: Stream, codes: int, first: int | None = None) -> int:
    """Steps at which a stream of the clock has codes; ValueError where its codes cannot be divided over them.

    `codes` are those of a sample, `first` the first axis of their shape, None where that is not known yet.
    """
    wanted = _steps(stream) or clock.steps
    if isinstance(stream, AudioStream) and (codes if first is None else first) % wanted:
        raise ValueError(
            f"{name} is on the clock {clock.name} of {wanted} steps, and its tokenizer makes {codes if first is None else first} "
            f"{'codes' if first is None else 'rows of codes'}; choose its length and downsample so that they divide evenly, "
            f"or take {name} off the clock"
        )
    if isinstance(stream, VideoStream) and first is not None and first != wanted:
        raise ValueError(
            f"{name} is on the clock {clock.name} of {wanted} steps, and its tokenizer makes {first} of {stream.frames} frames; "
            f"a clip on a clock needs a tokenizer without time_stride, or one of pictures"
        )
    return wanted


def _steps(stream: Stream) -> int | None:
    if isinstance(stream, VideoStream):
        return stream.frames
    return stream.steps if isinstance(stream, ActionStream) else None


def _rank(stream: Stream) -> str:
    return stream.role if isinstance(stream, ActionStream) else stream.kind
