"""A world as an environment, by Gymnasium's own rules."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from worldloom.stages.dream_env import DreamEnv
from worldloom.stages.open_world import Choosing, open_world


@pytest.fixture(scope="module")
def world(clocked_world):
    return open_world(clocked_world)


def test_gymnasium_finds_nothing_wrong_with_it(world):
    check_env(DreamEnv(world, render_mode="rgb_array"), skip_render_check=True)


def test_an_episode_follows_from_its_seed_and_its_actions_and_is_cut_in_the_end(world):
    def episode(seed, actions):
        env = DreamEnv(world, most_steps=7)
        seen, info = env.reset(seed=seed)
        assert np.array_equal(seen, world.dataset.value("train", "clip", info["sample"])[0])
        steps = [env.step(action) for action in actions]
        assert [step[3] for step in steps] == [False] * 6 + [True] and {step[2] for step in steps} == {False}
        assert {step[1] for step in steps} == {0.0} and set(steps[0][4]) == {"push", "sound"}
        return np.stack([seen, *(step[0] for step in steps)])

    actions = [1, 2, 3, 4, 0, 1, 1]
    first = episode(3, actions)
    assert np.array_equal(first, episode(3, actions))
    assert not np.array_equal(first, episode(4, actions))
    assert DreamEnv(world).action_space == gymnasium.spaces.Discrete(5)


def test_behind_two_true_frames_an_episode_goes_on_as_a_rollout_does(world):
    env = DreamEnv(world, given=2)
    seen, info = env.reset(seed=3, options={"sample": env.starts[1]})
    clip, push = (world.dataset.value("train", name, info["sample"]) for name in ("clip", "push"))
    sound = world.dataset.value("train", "sound", info["sample"])[..., :512]
    assert np.array_equal(seen, clip[1])
    context = {"clip": clip[None, :2], "push": push[None, :1], "sound": sound[None]}
    seeds = [int(np.random.Generator(np.random.PCG64(3)).integers(1 << 31))]
    (expected,) = world.rollout(context, np.ones((1, 1, 1)), choosing=Choosing(temperature=0.25), seeds=seeds)
    assert np.array_equal(env.step(1)[0], expected.values["clip"][0])


def test_what_cannot_begin_is_refused(world, tiny_world):
    with pytest.raises(ValueError, match="given must be from 1 to the 5 frames of a sample's clip, got 6"):
        DreamEnv(world, given=6)
    with pytest.raises(ValueError, match="no streams on a clock"):
        DreamEnv(open_world(tiny_world))
    with pytest.raises(ValueError, match="no sample of the split 'nowhere' has the stream 'clip'"):
        DreamEnv(world, split="nowhere")
    with pytest.raises(ValueError, match="an episode begins with reset"):
        DreamEnv(world).step(0)
