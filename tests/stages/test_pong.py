"""The oracle of Pong against the console's memory."""

from itertools import islice

import numpy as np
import pytest

from worldloom.stages import pong
from worldloom.stages.arcade import Arcade
from worldloom.stages.atari_games import KNOWN, describe_breakout, describe_pong
from worldloom.stages.atari_play import Player, play, shrink_brightest
from worldloom.stages.atari_settings import Follow
from worldloom.stages.oracles import ORACLES
from worldloom.stages.settings import ActionStream, VideoStream

ACTIONS = ("noop", "right", "left")
STREAM = ActionStream(kind="action", steps=5, choices=3, names=ACTIONS)


@pytest.fixture(scope="module")
def clips() -> list:
    player = Player("pong", Follow(), ACTIONS, np.random.default_rng(4))
    return list(islice(play(Arcade("pong"), player, 6, 4, 1, 20), 60))


def shown(clip) -> np.ndarray:
    top, left, height, width = KNOWN["pong"].field
    return shrink_brightest(clip.screens[:, top : top + height, left : left + width], 64, 64)


def test_pictures_and_captions_say_the_same(clips) -> None:
    said = [pong.read_caption(describe_pong(*clip.memories)) for clip in clips]
    seen = [pong.read_clip(shown(clip)) for clip in clips]
    assert None not in said and None not in seen
    for at in range(4):  # at a border between two words they may differ
        assert np.mean([a[at] == b[at] for a, b in zip(said, seen, strict=True)]) > 0.85
    assert {each.side for each in said} == {"on the left", "in the middle", "on the right", "no ball"}


def test_the_paddle_goes_where_the_memory_says_that_it_goes(clips) -> None:
    right = []
    for clip in clips:
        places = [pong.paddle_at(frame) for frame in shown(clip)]
        assert places[0] == pytest.approx((clip.memories[0][51] - 48 + 8) / 160, abs=0.07)
        if abs(places[1] - places[0]) > 0.02:
            right.append((places[1] > places[0]) == (clip.memories[1][51] > clip.memories[0][51]))
    assert len(right) > 20 and np.mean(right) > 0.9  # the memory is a frame ahead of the picture


def test_where_the_paddle_moves_it_mostly_moves_as_it_is_told_and_not_as_in_another_clip(clips) -> None:
    view = ORACLES["pong"].reads_actions
    assert view is not None
    frames = VideoStream(kind="video", size=64, frames=6, frame_rate=15)
    asked = [view.read["action"](clip.actions[:5, None].astype(np.float32), STREAM) for clip in clips]
    seen = [view.read["video"](shown(clip), frames) for clip in clips]

    def agreeing(asked: list) -> list[bool]:
        pairs = [pair for told, read in zip(asked, seen, strict=True) for pair in zip(told, read, strict=True)]
        return [told == read for told, read in pairs if not {told, read} & view.silent]

    own, others = agreeing(asked), agreeing(asked[20:] + asked[:20])
    assert len(own) > 60 and np.mean(own) > 0.85  # it has some inertia
    assert len(others) > 60 and np.mean(others) < 0.65  # up and down are all that there is to say


def test_an_empty_picture_shows_nothing() -> None:
    nothing = np.full((3, 64, 64, 3), pong.GROUND, np.uint8)
    assert pong.read_clip(nothing) is None and pong.read_moves(nothing) == ("gone", "gone") and pong.ball_at(nothing[0]) is None
    assert pong.read_caption("a red circle at the top left") is None


def test_actions_without_names_are_the_games_own() -> None:
    own = ActionStream(kind="action", steps=6, choices=6)
    assert Arcade("pong").actions == pong.ACTIONS
    assert pong.read_actions(np.arange(6)[:, None], own) == ("still", "still", "up", "down", "up", "down")
    assert pong.read_actions(np.arange(3)[:, None], STREAM) == ("still", "up", "down")


def test_what_pong_and_breakout_say_of_points_is_what_they_gave() -> None:
    for game, describe in (("pong", describe_pong), ("breakout", describe_breakout)):
        arcade = Arcade(game)
        player = Player(game, Follow(keep=0.5, noise=0.8 if game == "pong" else 0.1), arcade.actions, np.random.default_rng(0))
        won = lost = 0.0
        for clip in islice(play(arcade, player, 40, 4, 1, 0), 8):
            caption = describe(*clip.memories)
            assert caption.startswith(f"{lost:g} to {won:g};" if game == "pong" else f"{won:g} points, ")
            if clip.ends.any():
                break
            won, lost = won + clip.rewards.clip(0).sum(), lost - clip.rewards.clip(max=0).sum()
        assert won + lost >= 2
