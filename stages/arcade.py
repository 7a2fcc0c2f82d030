"""The door to the Arcade Learning Environment (arXiv:1207.4708): one game, frame by frame, with its picture, sound and memory.

Needs the extra `atari`; the games lie in its wheel. Actions are named as there, in small letters: noop, fire, up, right, upfire.
"""

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FRAME_SAMPLES = 512  # of sound that a frame of the game brings
SILENCE = 128  # of a sound's unsigned bytes


class Played(NamedTuple):
    """What a step brought."""

    screens: tuple[NDArray[np.uint8], ...]  # [height, width, 3] of its last frames
    sound: NDArray[np.float32]  # [frames * FRAME_SAMPLES] in [-1, 1]
    reward: float


class Arcade:
    """One game; the same actions give the same game."""

    def __init__(self, game: str) -> None:
        """ValueError where the extra is missing or there is no such game."""
        ale_py, path = _ale(), _rom(game)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale: Any = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)  # what is written down is what was done
        self._ale.setInt("random_seed", 0)
        self._ale.setBool("sound_obs", True)
        self._ale.loadROM(path)
        self._actions = {action.name.lower(): action for action in self._ale.getLegalActionSet()}
        self.actions: tuple[str, ...] = tuple(action.name.lower() for action in self._ale.getMinimalActionSet())
        self.begin()

    def begin(self) -> None:
        """A new game."""
        self._ale.reset_game()

    @property
    def over(self) -> bool:
        return bool(self._ale.game_over())

    @property
    def screen(self) -> NDArray[np.uint8]:
        """[height, width, 3] as it is now."""
        screen: NDArray[np.uint8] = self._ale.getScreenRGB()
        return screen

    @property
    def memory(self) -> tuple[int, ...]:
        """The console's 128 bytes."""
        return tuple(self._ale.getRAM().tolist())

    def act(self, action: str, frames: int, last: int = 1) -> Played:
        """Holds an action for so many frames, less where the game ends; `last` of their screens are kept."""
        screens, sound, reward = [self.screen], np.full(frames * FRAME_SAMPLES, SILENCE, np.uint8), 0.0
        for frame in range(frames):
            if self.over:
                break
            reward += self._ale.act(self._actions[action])
            sound[frame * FRAME_SAMPLES : (frame + 1) * FRAME_SAMPLES] = self._ale.getAudio()
            if frame >= frames - last:
                screens.append(self.screen)
        heard = sound.astype(np.float32) - np.float32(SILENCE)
        return Played(tuple(screens[-last:]), heard / np.float32(SILENCE), reward)


def games() -> Sequence[str]:
    """All games that come with the extra."""
    _ale()
    from ale_py import roms

    return sorted(roms.get_all_rom_ids())


def _rom(game: str) -> str:
    from ale_py import roms

    known = games()
    if game not in known:
        close = difflib.get_close_matches(game, known, n=1)
        said = f"did you mean {close[0]}?" if close else f"there are {len(known)}, {', '.join(known[:5])} ..."
        raise ValueError(f"game: there is no game called {game!r}; {said}")
    return str(roms.get_rom_path(game))


def _ale() -> Any:
    try:
        import ale_py
    except ImportError:
        raise ValueError("playing a game needs the Arcade Learning Environment: pip install 'worldloom[atari]'") from None
    return ale_py
