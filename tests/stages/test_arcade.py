import builtins

import numpy as np
import pytest

from worldloom.stages.arcade import FRAME_SAMPLES, Arcade, games


def test_the_same_actions_give_the_same_game_in_another_emulator_and_after_a_new_beginning() -> None:
    one, other = Arcade("pong"), Arcade("pong")
    other.act("left", 40)
    other.begin()
    for game in (one, other):
        game.act("right", 90)
    assert one.memory == other.memory and np.array_equal(one.screen, other.screen)
    assert one.actions[:2] == ("noop", "fire") and one.screen.shape == (210, 160, 3)


def test_a_step_brings_its_last_screens_and_the_sound_of_all_its_frames() -> None:
    game = Arcade("breakout")
    played = game.act("fire", 3, last=2)
    assert len(played.screens) == 2 and np.array_equal(played.screens[-1], game.screen)
    assert played.sound.shape == (3 * FRAME_SAMPLES,) and played.sound.dtype == np.float32 and played.reward == 0.0


def test_the_ball_of_pong_is_heard_when_it_is_served() -> None:
    game, heard = Arcade("pong"), []
    for _ in range(40):
        heard.append(float(np.abs(game.act("noop", 4).sound).max()))
    assert 0.3 < max(heard) <= 1.0 and heard.count(0.0) > 20


def test_a_game_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    assert {"pong", "breakout"} <= {*games()}
    with pytest.raises(ValueError, match=r"no game called 'pongg'; did you mean pong\?"):
        Arcade("pongg")
    with pytest.raises(ValueError, match=r"no game called 'zzzz'; there are \d+, "):
        Arcade("zzzz")


def test_without_the_extra_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("ale_py"):
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs the Arcade Learning Environment: pip install 'worldloom\[atari\]'"):
        Arcade("pong")
