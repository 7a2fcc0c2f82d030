"""Worlds rolled out, values in and out: a frame and an action in, the next frame out, with the sound, the reward and the end of the step.

B rows, n frames of context.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldloom.stages.settings import ActionStream, AudioStream
from worldloom.stages.step_values import Hearing, decode_steps, encode_sounds, encode_steps
from worldloom.world_model.rollout import Codes, Rollout, roll
from worldloom.world_model.vocabulary import Clock
from worldloom.world_model.weave import weave_one

if TYPE_CHECKING:
    from worldloom.stages.open_world import Choosing, OpenWorld

Values = Mapping[str, NDArray[Any]]
# What came last, by stream [B, ...] -> actions [B, dimensions]; None: the model takes its own.
Policy = Callable[[Values], NDArray[Any] | None]


class Step(NamedTuple):
    """What a step brought, by stream: the action that was taken, what came of it, and the next frame."""

    values: dict[str, NDArray[Any]]  # [B, ...]
    codes: dict[str, NDArray[np.int64]]  # [B, codes of a step]


def rollout(
    world: "OpenWorld",
    context: NDArray[Any] | Values,
    actions: ArrayLike | Policy | None,
    *,
    choosing: "Choosing",
    seeds: Sequence[int] | None = None,
    prompts: Sequence[Mapping[str, Any]] | None = None,
    steps: int | None = None,
    window: int | None = None,
    slide: int = 1,
) -> Iterator[Step]:
    """Goes on from `context`: frames [B, n, height, width, 3], or values by stream, [B, n, ...] (sounds [B, channels, samples]).

    `actions`: [B, steps, dimensions], a policy that is asked at every step, or None, and the model takes its own. It ends with the actions
    or behind `steps`, or never. `prompts`: for every row, values of streams that are not on the clock. `window` and `slide` as in
    world_model.rollout. A row's result is a function of what it is given and its seed, its place by default.
    """
    clock = clock_of(world)
    given = context if isinstance(context, Mapping) else {clock.streams[0]: context}
    if clock.streams[0] not in given:
        raise ValueError(f"a rollout begins with {clock.streams[0]}; the context has only {', '.join(given)}")
    if choosing.guidance != 1 or choosing.fill_steps:
        raise ValueError("rollouts are written token by token as learnt; leave guidance at 1 and fill_steps at 0")
    world.check_learnt_next_tokens("rollouts", "sample from it instead")
    codes = {name: _encoded(world, name, np.asarray(values)) for name, values in given.items()}
    rows = len(codes[clock.streams[0]])
    written = Rollout(
        world.decoder,
        world.grammar,
        world.prompts(prompts if prompts is not None else [{}] * rows),
        clock.streams,
        seeds=list(range(rows)) if seeds is None else seeds,
        temperature=choosing.temperature,
        top_k=choosing.top_k,
        top_p=choosing.top_p,
        window=window,
        slide=slide,
    )
    acting = actions if actions is None or callable(actions) else _told(world, clock, actions, rows)
    said = _actions(world, clock, acting)
    if isinstance(acting, np.ndarray):
        steps = acting.shape[1] if steps is None else min(steps, acting.shape[1])
    decoded = _Decoder(world)
    going = (Step(decoded(step), step) for step in roll(written, codes, lambda last: said(decoded.last(last))))
    return going if steps is None else islice(going, steps)


def beginning(world: "OpenWorld", split: str, sample: int, given: int = 1) -> dict[str, NDArray[Any]]:
    """What a rollout of a sample begins with, by stream, as one row: its first `given` frames, and what stands between them.

    ValueError where the sample has no frames, or fewer.
    """
    clock = clock_of(world)
    frames = clock.streams[0]
    values = {name: world.dataset.value(split, name, sample) for name in (clock.streams if given > 1 else (frames,))}
    if values[frames] is None or not 1 <= given <= len(values[frames]):
        has = 0 if values[frames] is None else len(values[frames])
        raise ValueError(
            f"a rollout begins with {given} frames of {frames}, and sample {sample} of {split!r} has {has}; give from 1 to {has}"
        )
    others = {name: before(world, name, value[None], given) for name, value in values.items() if name != frames and value is not None}
    return {frames: values[frames][None, :given], **others}


def before(world: "OpenWorld", stream: str, values: NDArray[Any], given: int) -> NDArray[Any]:
    """Of another stream on the clock, what stands in front of the last of `given` frames: values [B, steps, ...], or sounds [B, channels,
    samples].
    """
    about = world.dataset.streams[stream]
    if isinstance(about, AudioStream):
        return values[..., : round(about.samples * (given - 1) / world.vocabulary.steps)]
    return values[:, : given - 1]


def clock_of(world: "OpenWorld") -> Clock:
    """The clock of a world, of what its grammar lets appear; ValueError where there is none."""
    clock = world.vocabulary.clock
    names = [name for name in clock.streams if name in world.streams] if clock is not None else []
    if clock is None or not names:
        raise ValueError("this world has no streams on a clock, so it cannot be rolled out; give its clip and its actions `clock: step`")
    return Clock(clock.name, tuple(names), tuple(name for name in clock.given if name in names))


def beside(
    world: "OpenWorld",
    prompts: Sequence[NDArray[np.int64]],
    wanted: Sequence[str],
    given: Sequence[Mapping[str, NDArray[np.int64]]],
    seeds: Sequence[int],
    choosing: "Choosing",
) -> list[NDArray[np.int64]]:
    """Each prompt with the steps of the clock behind it, and <eos>: streams in `given`, all of a row's the same, stand as they are, those
    wanted are written from what comes before them.
    """
    ids, known = world.vocabulary, world.grammar
    names = known.arranged([*given[0], *wanted])
    written = Rollout(
        world.decoder,
        known,
        prompts,
        names,
        seeds=seeds,
        temperature=choosing.temperature,
        top_k=choosing.top_k,
        top_p=choosing.top_p,
    )
    lengths = {name: (ids.streams[ids.index(name)].steps, ids.streams[ids.index(name)].step_length) for name in names}
    told = {name: np.stack([row[name] for row in given]).reshape(len(given), *lengths[name]) for name in given[0]}
    found: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    for step in range(max(steps for steps, _ in lengths.values())):
        for name in names:
            if step < lengths[name][0]:
                found[name].append(written.segment(told[name][:, step] if name in told else None))
            else:
                written.skip()
    whole = {name: np.concatenate(codes, axis=1) for name, codes in found.items()}
    return [
        np.concatenate([tokens, weave_one(known, [(name, whole[name][row]) for name in names]).tokens[1:]])
        for row, tokens in enumerate(prompts)
    ]


def _encoded(world: "OpenWorld", name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """[B, n, codes of a step]."""
    if name not in clock_of(world).streams:
        raise ValueError(f"{name} is not on the clock; on it are {', '.join(clock_of(world).streams)}")
    stream = world.dataset.streams[name]
    if isinstance(stream, AudioStream):
        return encode_sounds(world.tokenizers[name], values, world.vocabulary.steps, stream.samples)
    rows, steps = values.shape[:2]
    return encode_steps(world.tokenizers[name], values.reshape(rows * steps, *values.shape[2:])).reshape(rows, steps, -1)


def _told(world: "OpenWorld", clock: Clock, actions: ArrayLike, rows: int) -> NDArray[np.float32]:
    """Actions as numbers [B, steps, dimensions]; ValueError where they are none."""
    widths = [stream.dimensions for name in clock.given if isinstance(stream := world.dataset.streams[name], ActionStream)]
    told: NDArray[np.float32] = np.zeros((), np.float32)
    with suppress(TypeError, ValueError):  # what is no array of numbers is refused below, with what it is
        told = np.asarray(actions, np.float32)
    if told.ndim != 3 or len(told) != rows or (len(widths) == 1 and told.shape[2] != widths[0]):
        raise ValueError(
            f"actions are numbers [rows, steps, dimensions], here [{rows}, steps, {widths[0] if len(widths) == 1 else 'dimensions'}], or a "
            f"function from what came last to those of a step, got {f'an array {told.shape}' if told.ndim else type(actions).__name__}"
        )
    return told


def _actions(world: "OpenWorld", clock: Clock, actions: NDArray[Any] | Policy | None) -> Callable[[Values], Codes]:
    """What the world is given at each step, by stream."""
    if actions is None:
        return lambda last: {}
    if len(clock.given) != 1:
        raise ValueError(f"actions are of one stream, and this world has {', '.join(clock.given) or 'none'} on its clock")
    (name,) = clock.given
    taken = 0

    def next_of(last: Values) -> Codes:
        nonlocal taken
        chosen = actions[:, taken] if isinstance(actions, np.ndarray) else actions(last)
        taken += 1
        if chosen is None:
            return {}
        action = np.asarray(chosen, np.float32)
        return {name: encode_steps(world.tokenizers[name], action.reshape(len(action), -1))}

    return next_of


class _Decoder:
    """Codes of steps to values; what was decoded last need not be again."""

    def __init__(self, world: "OpenWorld") -> None:
        self.world = world
        self.hearing = {
            name: Hearing(world.tokenizers[name], world.vocabulary.steps, stream.samples)
            for name in clock_of(world).streams
            if isinstance(stream := world.dataset.streams[name], AudioStream)
        }
        self._codes: Codes | None = None
        self._values: dict[str, NDArray[Any]] = {}

    def __call__(self, codes: Codes) -> dict[str, NDArray[Any]]:
        self._codes = codes
        self._values = {
            name: self.hearing[name](each) if name in self.hearing else decode_steps(self.world.tokenizers[name], each)
            for name, each in codes.items()
        }
        return self._values

    def last(self, codes: Codes) -> dict[str, NDArray[Any]]:
        """As a call, without hearing anything twice."""
        return self._values if codes is self._codes else self(codes)
