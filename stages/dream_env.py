"""A trained world as an environment of Gymnasium (arXiv:2407.17032): an agent acts, and the world dreams what comes of it.

An episode begins with the first frame of a sample of the dataset, or the first few. Needs the extra `gym`.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from worldloom.stages.evaluate_world_model import ANSWERING
from worldloom.stages.evaluation import pick_samples
from worldloom.stages.open_world import Choosing, OpenWorld
from worldloom.stages.rollouts import Step, beginning, clock_of
from worldloom.stages.settings import ActionStream, VideoStream


class DreamEnv(gymnasium.Env[NDArray[np.uint8], Any]):
    """Observations are frames, uint8 [height, width, 3]; rewards and ends those of the world's streams of these roles, 0 and never without.

    The same seed and actions give the same episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        world: OpenWorld,
        split: str = "train",
        choosing: Choosing | None = None,
        most_steps: int = 100,
        window: int | None = None,
        slide: int = 1,
        render_mode: str | None = None,
        given: int = 1,
    ) -> None:
        """Episodes of `most_steps` steps at most, from samples of `split`; `window` and `slide` as in a rollout.

        `given` true frames, with what stands between them, are before the world at reset, which shows the last: two tell what moves where.
        `choosing` is that of the evaluation by default.
        """
        clock = clock_of(world)
        self.frame, about = clock.streams[0], world.dataset.streams[clock.streams[0]]
        if not isinstance(about, VideoStream) or len(clock.given) != 1:
            raise ValueError(
                f"an environment needs a clip and one stream of actions on the clock, and this world has {', '.join(clock.streams)} there"
            )
        if not 1 <= given <= about.frames:
            raise ValueError(f"given must be from 1 to the {about.frames} frames of a sample's {self.frame}, got {given}")
        self.world, self.split, self.choosing, self.given = world, split, choosing or Choosing(temperature=ANSWERING), given
        self.most_steps, self.window, self.slide, self.render_mode = most_steps, window, slide, render_mode
        self.starts = pick_samples(world.dataset, split, [self.frame], world.dataset.samples(split), 0)
        if not self.starts:
            raise ValueError(
                f"no sample of the split {split!r} has the stream {self.frame!r}, so no episode can begin; name another split or, where "
                f"the world learnt from several sets of tokens, open it with one that has the stream"
            )
        self.metadata = {**self.metadata, "render_fps": about.frame_rate}
        self.observation_space = gymnasium.spaces.Box(0, 255, (about.height, about.width, 3), np.uint8)
        self.action_space = _space(world, clock.given[0])
        roles = {name: stream.role for name in clock.streams if isinstance(stream := world.dataset.streams[name], ActionStream)}
        self._rewards = [name for name, role in roles.items() if role == "reward"]
        self._ends = [name for name, role in roles.items() if role == "end"]
        self._going: Iterator[Step] | None = None
        self._action: NDArray[np.float32] = np.zeros((1, 1), np.float32)
        self._seen: NDArray[np.uint8] = np.zeros((about.height, about.width, 3), np.uint8)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The last given frame of a sample, drawn or that of number options["sample"]."""
        super().reset(seed=seed)
        sample = (options or {}).get("sample")
        if sample is None:
            sample = self.starts[int(self.np_random.integers(len(self.starts)))]
        context = beginning(self.world, self.split, sample, self.given)
        self._going = self.world.rollout(
            context,
            lambda last: self._action,
            choosing=self.choosing,
            seeds=[int(self.np_random.integers(1 << 31))],
            window=self.window,
            slide=self.slide,
        )
        self._seen, self._steps = context[self.frame][0, -1], 0
        return self._seen.copy(), {"sample": sample}

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """The next frame, the reward, whether the episode ended, whether it was cut, and all other streams of the step."""
        if self._going is None:
            raise ValueError("an episode begins with reset; call it first")
        self._action = np.asarray(action, np.float32).reshape(1, -1)
        step = next(self._going)
        self._steps += 1
        self._seen = step.values[self.frame][0]
        reward = float(sum(step.values[name].sum() for name in self._rewards))
        ended = any(bool((step.values[name] > 0.5).any()) for name in self._ends)
        others = {name: values[0] for name, values in step.values.items() if name != self.frame}
        return self._seen.copy(), reward, ended, self._steps >= self.most_steps, others

    def render(self) -> NDArray[np.uint8] | None:
        """The last frame, in the mode rgb_array."""
        return self._seen.copy() if self.render_mode == "rgb_array" else None


def _space(world: OpenWorld, name: str) -> "gymnasium.spaces.Space[Any]":
    stream = world.dataset.streams[name]
    assert isinstance(stream, ActionStream)
    if stream.choices is not None:
        return gymnasium.spaces.Discrete(stream.choices) if stream.dimensions == 1 else _many([stream.choices] * stream.dimensions)
    edges = getattr(world.tokenizers[name], "edges", ())
    low, high = (np.array([limits[at] for limits in edges], np.float32) for at in (0, -1))
    return gymnasium.spaces.Box(low, high, dtype=np.float32)


def _many(choices: list[int]) -> "gymnasium.spaces.Space[Any]":
    return gymnasium.spaces.MultiDiscrete(choices)
