"""How far a world can be rolled out: its frames against how samples of the dataset went on, step by step away from the last true frame.

With the true actions; with those of another sample, which must do worse if the world heeds them; and beside the last true frame, copied.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.evaluation import choose, row_seed
from worldloom.stages.open_world import Choosing, OpenWorld
from worldloom.stages.oracles import Oracle
from worldloom.stages.rollouts import clock_of
from worldloom.stages.settings import VideoStream
from worldloom.stages.step_values import encode_steps

GIVEN = 1  # true frames that a rollout begins with


class Horizon(NamedTuple):
    """One line of a rollout's curves; None where it cannot be told."""

    horizon: int  # steps behind the last true frame
    psnr: float  # dB, with the true actions
    shuffled_psnr: float | None  # with those of another sample
    copy_psnr: float  # of the last true frame
    code_accuracy: float  # share of codes as the tokenizer makes of the true frame
    shuffled_code_accuracy: float | None
    copy_code_accuracy: float
    action_accuracy: float | None  # share in which the oracle reads from the frames the action that was taken
    shuffled_action_accuracy: float | None  # as that, but the true one, where another was taken


class Rolled(NamedTuple):
    """One split."""

    split: str
    horizons: tuple[Horizon, ...]
    true: NDArray[np.uint8]  # [B, T, height, width, 3]
    dreamed: NDArray[np.uint8]


class _Made(NamedTuple):
    frames: NDArray[np.uint8]  # [B, T, ...], the given ones too
    codes: NDArray[np.int64]  # [B, T - GIVEN, codes of a step]


def can_roll(world: OpenWorld) -> bool:
    """Whether the world has clips of more than one frame on a clock."""
    if world.vocabulary.clock is None or not {*world.vocabulary.clock.streams} & {*world.streams}:
        return False
    about = world.dataset.streams[clock_of(world).streams[0]]
    return isinstance(about, VideoStream) and about.frames > GIVEN


def roll_out(
    world: OpenWorld,
    split: str,
    count: int,
    oracle: Oracle | None,
    choosing: Choosing,
    seed: int,
    batch: int,
    between: Callable[[], None],
) -> Rolled | None:
    """Of up to `count` samples; None where the split has none with clips and actions. `between` is called behind every batch."""
    clock = clock_of(world)
    name, given = clock.streams[0], clock.given if len(clock.given) == 1 else ()
    rows = choose(world.dataset, split, [name, *given], count, seed)
    if not rows:
        return None
    true = np.stack([world.dataset.value(split, name, i) for i in rows])
    actions = np.stack([world.dataset.value(split, given[0], i) for i in rows]) if given else None
    seeds = [row_seed(seed, f"roll out {split}", i) for i in rows]
    made = _made(world, name, true, actions, choosing, seeds, batch, between)
    others = None if actions is None or len(rows) < 2 else np.roll(actions, 1, axis=0)
    shuffled = None if others is None else _made(world, name, true, others, choosing, seeds, batch, between)
    horizons = tuple(_horizons(world, name, oracle, true, actions, made, shuffled))
    return Rolled(split, horizons, true, made.frames)


def _made(
    world: OpenWorld,
    name: str,
    true: NDArray[np.uint8],
    actions: NDArray[np.float32] | None,
    choosing: Choosing,
    seeds: list[int],
    batch: int,
    between: Callable[[], None],
) -> _Made:
    steps = true.shape[1] - GIVEN
    frames, codes = [], []
    for first in range(0, len(true), batch):
        rows = slice(first, first + batch)
        taken = None if actions is None else actions[rows, GIVEN - 1 :]
        going = world.rollout({name: true[rows, :GIVEN]}, taken, choosing=choosing, seeds=seeds[rows], steps=steps)
        made = list(going)
        frames.append(np.stack([step.values[name] for step in made], axis=1))
        codes.append(np.stack([step.codes[name] for step in made], axis=1))
        between()
    return _Made(np.concatenate([true[:, :GIVEN], np.concatenate(frames)], axis=1), np.concatenate(codes))


def _horizons(
    world: OpenWorld,
    name: str,
    oracle: Oracle | None,
    true: NDArray[np.uint8],
    actions: NDArray[np.float32] | None,
    made: _Made,
    shuffled: _Made | None,
) -> list[Horizon]:
    B, T = true.shape[:2]
    codes = encode_steps(world.tokenizers[name], true.reshape(B * T, *true.shape[2:])).reshape(B, T, -1)
    last = GIVEN - 1
    read = _read(world, oracle, name, true, actions, made)
    misread = None if shuffled is None else _read(world, oracle, name, true, actions, shuffled)
    return [
        Horizon(
            horizon=at - last,
            psnr=_psnr(true[:, at], made.frames[:, at]),
            shuffled_psnr=None if shuffled is None else _psnr(true[:, at], shuffled.frames[:, at]),
            copy_psnr=_psnr(true[:, at], true[:, last]),
            code_accuracy=float((codes[:, at] == made.codes[:, at - GIVEN]).mean()),
            shuffled_code_accuracy=None if shuffled is None else float((codes[:, at] == shuffled.codes[:, at - GIVEN]).mean()),
            copy_code_accuracy=float((codes[:, at] == codes[:, last]).mean()),
            action_accuracy=None if read is None else read[at - GIVEN],
            shuffled_action_accuracy=None if misread is None else misread[at - GIVEN],
        )
        for at in range(GIVEN, T)
    ]


def _read(
    world: OpenWorld, oracle: Oracle | None, name: str, true: NDArray[Any], actions: NDArray[np.float32] | None, made: _Made
) -> list[float] | None:
    """By horizon, the share of rows in which the oracle reads the true action from the frames; None without one that reads both."""
    view = None if oracle is None else oracle.reads_actions
    if view is None or actions is None:
        return None
    about = world.dataset.streams
    action = next(iter(clock_of(world).given))
    asked = [view.read["action"](row, about[action]) for row in actions]
    answered = [view.read["video"](row, about[name]) for row in made.frames]
    steps = range(GIVEN - 1, true.shape[1] - 1)
    pairs = list(zip(asked, answered, strict=True))
    return [sum(a is not None and b is not None and a[at] == b[at] for a, b in pairs) / len(pairs) for at in steps]


def _psnr(true: NDArray[np.uint8], made: NDArray[np.uint8]) -> float:
    """dB over all rows; at most 99, where nothing differs."""
    error = float(((true.astype(np.float64) - made) ** 2).mean())
    return min(99.0, 10 * float(np.log10(255**2 / max(error, 1e-12))))
