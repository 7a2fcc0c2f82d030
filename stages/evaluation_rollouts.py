"""How far a world can be rolled out: its frames against how samples of the dataset went on, step by step away from the last true frame.

With the true actions; with those of another sample, which must do worse if the world heeds them; without any, when the world takes its
own; and beside the last true frame, copied.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.evaluation import pick_samples, row_seed
from worldloom.stages.open_world import Choosing, OpenWorld
from worldloom.stages.oracles import Oracle
from worldloom.stages.rollouts import before, clock_of
from worldloom.stages.settings import VideoStream
from worldloom.stages.step_values import encode_steps


class Horizon(NamedTuple):
    """One line of a rollout's curves; None where it cannot be told."""

    horizon: int  # steps behind the last true frame
    psnr: float  # dB, with the true actions
    shuffled_psnr: float | None  # with those of another sample
    without_psnr: float | None  # with none: the world takes its own
    copy_psnr: float  # of the last true frame
    code_accuracy: float  # share of codes as the tokenizer makes of the true frame
    shuffled_code_accuracy: float | None
    without_code_accuracy: float | None
    copy_code_accuracy: float
    action_accuracy: float | None  # share in which the oracle reads from the frames the action that was taken, of those that tell one
    shuffled_action_accuracy: float | None  # as that, but the true one, where another was taken
    without_action_accuracy: float | None  # as that, where the world took its own
    true_action_accuracy: float | None  # as it reads from the true frames


class Rolled(NamedTuple):
    """One split."""

    split: str
    horizons: tuple[Horizon, ...]
    true: NDArray[np.uint8]  # [B, T, height, width, 3]
    dreamed: NDArray[np.uint8]
    given: int  # true frames that it began with


class _Truth(NamedTuple):
    """What the dataset has of the rows that are rolled out."""

    name: str  # of the clip
    frames: NDArray[np.uint8]  # [B, T, height, width, 3]
    actions: NDArray[np.float32] | None  # [B, T - 1 or more, dimensions]
    others: dict[str, NDArray[Any]]  # of the other streams on the clock, what stands in front of the last given frame
    given: int  # frames that a rollout begins with


class _Made(NamedTuple):
    frames: NDArray[np.uint8]  # [B, T, ...], the given ones too
    codes: NDArray[np.int64]  # [B, T - given, codes of a step]


def can_roll(world: OpenWorld, given: int = 1) -> bool:
    """Whether the world has clips on a clock that are longer than the frames that a rollout begins with."""
    if world.vocabulary.clock is None or not {*world.vocabulary.clock.streams} & {*world.streams}:
        return False
    about = world.dataset.streams[clock_of(world).streams[0]]
    return isinstance(about, VideoStream) and about.frames > given


def roll_out(
    world: OpenWorld,
    split: str,
    count: int,
    oracle: Oracle | None,
    choosing: Choosing,
    seed: int,
    batch: int,
    between: Callable[[], None],
    given: int = 1,
) -> Rolled | None:
    """Of up to `count` samples, behind `given` true frames; None where the split has none with clips and actions.

    `between` is called behind every batch.
    """
    clock = clock_of(world)
    name, taken = clock.streams[0], clock.given if len(clock.given) == 1 else ()
    rows = pick_samples(world.dataset, split, [name, *taken], count, seed)
    if not rows:
        return None
    values = {stream: [world.dataset.value(split, stream, i) for i in rows] for stream in clock.streams}
    others = {stream: found for stream, found in values.items() if stream not in (name, *taken) and all(one is not None for one in found)}
    truth = _Truth(
        name,
        np.stack(values[name]),
        np.stack(values[taken[0]]) if taken else None,
        {stream: before(world, stream, np.stack(found), given) for stream, found in others.items() if given > 1},
        given,
    )
    seeds = [row_seed(seed, f"roll out {split}", i) for i in rows]
    made = _made(world, truth, truth.actions, choosing, seeds, batch, between)
    shuffled = without = None
    if truth.actions is not None:
        without = _made(world, truth, None, choosing, seeds, batch, between)
        if len(rows) > 1:
            shuffled = _made(world, truth, np.roll(truth.actions, 1, axis=0), choosing, seeds, batch, between)
    return Rolled(split, tuple(_horizons(world, oracle, truth, made, shuffled, without)), truth.frames, made.frames, given)


def _made(
    world: OpenWorld,
    truth: _Truth,
    actions: NDArray[np.float32] | None,
    choosing: Choosing,
    seeds: list[int],
    batch: int,
    between: Callable[[], None],
) -> _Made:
    """Rolls all rows out; in front of the last given frame stand the true actions, behind it those of `actions`, or the world's own."""
    clock, steps = clock_of(world), truth.frames.shape[1] - truth.given
    frames, codes = [], []
    for first in range(0, len(truth.frames), batch):
        rows = slice(first, first + batch)
        context = {truth.name: truth.frames[rows, : truth.given], **{name: values[rows] for name, values in truth.others.items()}}
        if truth.actions is not None and truth.given > 1:
            context[clock.given[0]] = truth.actions[rows, : truth.given - 1]
        taken = None if actions is None else actions[rows, truth.given - 1 :]
        made = list(world.rollout(context, taken, choosing=choosing, seeds=seeds[rows], steps=steps))
        frames.append(np.stack([step.values[truth.name] for step in made], axis=1))
        codes.append(np.stack([step.codes[truth.name] for step in made], axis=1))
        between()
    return _Made(np.concatenate([truth.frames[:, : truth.given], np.concatenate(frames)], axis=1), np.concatenate(codes))


def _horizons(
    world: OpenWorld, oracle: Oracle | None, truth: _Truth, made: _Made, shuffled: _Made | None, without: _Made | None
) -> list[Horizon]:
    true, first = truth.frames, truth.given
    B, T = true.shape[:2]
    codes = encode_steps(world.tokenizers[truth.name], true.reshape(B * T, *true.shape[2:])).reshape(B, T, -1)
    last = first - 1
    read, truly = (_read(world, oracle, truth, frames) for frames in (made.frames, true))
    of_shuffled, of_without = (_against(world, oracle, truth, codes, one) for one in (shuffled, without))
    return [
        Horizon(
            horizon=at - last,
            psnr=_psnr(true[:, at], made.frames[:, at]),
            shuffled_psnr=of_shuffled.psnr[at - first],
            without_psnr=of_without.psnr[at - first],
            copy_psnr=_psnr(true[:, at], true[:, last]),
            code_accuracy=float((codes[:, at] == made.codes[:, at - first]).mean()),
            shuffled_code_accuracy=of_shuffled.codes[at - first],
            without_code_accuracy=of_without.codes[at - first],
            copy_code_accuracy=float((codes[:, at] == codes[:, last]).mean()),
            action_accuracy=read[at - first],
            shuffled_action_accuracy=of_shuffled.actions[at - first],
            without_action_accuracy=of_without.actions[at - first],
            true_action_accuracy=truly[at - first],
        )
        for at in range(first, T)
    ]


class _Likeness(NamedTuple):
    """How close a rollout with other actions comes to the truth, by horizon; None where it was not made, or nothing can be told."""

    psnr: list[float | None]
    codes: list[float | None]
    actions: list[float | None]


def _against(world: OpenWorld, oracle: Oracle | None, truth: _Truth, codes: NDArray[np.int64], made: _Made | None) -> _Likeness:
    """`codes` [B, T, codes of a step]: those of the true frames."""
    first, T = truth.given, truth.frames.shape[1]
    if made is None:
        nothing: list[float | None] = [None] * (T - first)
        return _Likeness(nothing, nothing, nothing)
    return _Likeness(
        [_psnr(truth.frames[:, at], made.frames[:, at]) for at in range(first, T)],
        [float((codes[:, at] == made.codes[:, at - first]).mean()) for at in range(first, T)],
        _read(world, oracle, truth, made.frames),
    )


def _read(world: OpenWorld, oracle: Oracle | None, truth: _Truth, frames: NDArray[np.uint8]) -> list[float | None]:
    """By horizon, the share of rows in which the oracle reads the true action from the frames, of those where both tell one.

    None where none does, or without an oracle that reads both.
    """
    view, steps = None if oracle is None else oracle.reads_actions, range(truth.given - 1, truth.frames.shape[1] - 1)
    if view is None or truth.actions is None:
        return [None for _ in steps]
    about = world.dataset.streams
    action = next(iter(clock_of(world).given))
    asked = [view.read["action"](row, about[action]) for row in truth.actions]
    answered = [view.read["video"](row, about[truth.name]) for row in frames]
    shares = []
    for at in steps:
        pairs = [(None if a is None else a[at], None if b is None else b[at]) for a, b in zip(asked, answered, strict=True)]
        telling = [a is not None and a == b for a, b in pairs if a not in view.silent and b not in view.silent]
        shares.append(sum(telling) / len(telling) if telling else None)
    return shares


def _psnr(true: NDArray[np.uint8], made: NDArray[np.uint8]) -> float:
    """dB over all rows; at most 99, where nothing differs."""
    error = float(((true.astype(np.float64) - made) ** 2).mean())
    return min(99.0, 10 * float(np.log10(255**2 / max(error, 1e-12))))
