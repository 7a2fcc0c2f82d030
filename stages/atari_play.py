"""A game, played: clips of T steps that follow one on the other, and how screens are brought to a clip's size.

At step t stand the frame, the action that is taken there, and what comes of it until the next frame.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.arcade import Arcade
from worldloom.stages.atari_games import KNOWN, Memory
from worldloom.stages.atari_settings import Follow, Policy, Sticky

Picture = NDArray[np.uint8]


class Clip(NamedTuple):
    """T steps; behind the game's end it stands still."""

    screens: NDArray[np.uint8]  # [T, height, width, 3]
    actions: NDArray[np.int64]  # [T] numbers of the actions that may be taken
    rewards: NDArray[np.float32]  # [T]
    ends: NDArray[np.bool_]  # [T] whether the game is over behind the step
    sound: NDArray[np.float32]  # [T * samples of a step]
    memories: tuple[Memory, Memory]  # at the first step and the second


class Player:
    """Who takes actions: a policy, the actions that it may take, and a generator."""

    def __init__(self, game: str, policy: Policy, actions: Sequence[str], generator: np.random.Generator) -> None:
        self.actions, self.generator, self.keep = tuple(actions), generator, policy.keep
        self._choose = _CHOOSERS[type(policy)](game, policy, self)
        self._last = 0

    def __call__(self, memory: Memory) -> int:
        """The number of the next action."""
        if self.generator.random() >= self.keep:
            self._last = self._choose(memory)
        return self._last

    def any(self) -> int:
        return int(self.generator.integers(len(self.actions)))


def _sticky(game: str, policy: Sticky, player: Player) -> Callable[[Memory], int]:
    return lambda memory: player.any()


def _follow(game: str, policy: Follow, player: Player) -> Callable[[Memory], int]:
    aim = KNOWN[game].aim

    def choose(memory: Memory) -> int:
        return player.any() if player.generator.random() < policy.noise else player.actions.index(aim(memory))

    return choose


_CHOOSERS: dict[type, Callable[..., Callable[[Memory], int]]] = {Sticky: _sticky, Follow: _follow}


def play(arcade: Arcade, player: Player, steps: int, frame_skip: int, merge: int, head_start: int) -> Iterator[Clip]:
    """Clips of `steps` steps, for ever, from a new game and a drawn number of steps up to `head_start` on; whose game is over begins anew.

    A frame is, at each pixel, the brightest of the last `merge` of the game's own.
    """
    arcade.begin()
    frame = arcade.screen
    for _ in range(int(player.generator.integers(head_start + 1))):
        frame = _merged(arcade.act(player.actions[player(arcade.memory)], frame_skip, merge).screens)
        if arcade.over:
            arcade.begin()
            frame = arcade.screen
    while True:
        screens, actions, rewards, ends, sounds, memories = [], [], [], [], [], []
        for _ in range(steps):
            screens.append(frame)
            memories.append(arcade.memory)
            actions.append(player(memories[-1]))
            played = arcade.act(player.actions[actions[-1]], frame_skip, merge)
            frame = _merged(played.screens)
            rewards.append(played.reward)
            sounds.append(played.sound)
            ends.append(arcade.over)
        yield Clip(
            np.stack(screens),
            np.array(actions, np.int64),
            np.array(rewards, np.float32),
            np.array(ends),
            np.concatenate(sounds),
            (memories[0], memories[min(1, steps - 1)]),
        )
        if arcade.over:
            arcade.begin()
            frame = arcade.screen


def shrink_area(screens: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """[T, H, W, 3] -> [T, height, width, 3], the mean of what each pixel covers."""
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(screen).resize((width, height), Image.Resampling.BOX)) for screen in screens])


def shrink_brightest(screens: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """As `shrink_area`, but of what each pixel touches the brightest: a ball of two pixels stays one, in its own colour."""
    rows, columns = _touched(screens.shape[1], height), _touched(screens.shape[2], width)
    cells = screens[:, rows[:, None, :, None], columns[None, :, None, :]].reshape(len(screens), height, width, -1, 3)
    brightest = cells.astype(np.int64).sum(axis=-1).argmax(axis=-1)
    return np.take_along_axis(cells, brightest[..., None, None], axis=3)[..., 0, :]


SHRINKERS: dict[str, Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]] = {"area": shrink_area, "brightest": shrink_brightest}


def _touched(size: int, into: int) -> NDArray[np.int64]:
    """[into, k] the places that each of `into` parts touches, the last one repeated where there are fewer."""
    first = np.arange(into) * size // into
    last = -(-(np.arange(into) + 1) * size // into) - 1
    return np.minimum(first[:, None] + np.arange((last - first).max() + 1), last[:, None])


def _merged(screens: Sequence[Picture]) -> Picture:
    merged: Picture = np.max(np.stack(screens), axis=0)
    return merged


def resampled(sound: NDArray[np.float32], seconds: float, sample_rate: int, samples: int) -> NDArray[np.float32]:
    """A sound of so many seconds -> float32 [samples] at another rate, cut or filled with silence at its end."""
    import soxr

    heard = soxr.resample(sound, round(len(sound) / seconds), sample_rate, quality="HQ")[:samples]
    return np.pad(np.clip(heard, -1, 1), (0, samples - len(heard))).astype(np.float32)
