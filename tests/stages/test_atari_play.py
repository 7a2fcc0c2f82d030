from itertools import islice

import numpy as np

from worldloom.stages.arcade import Arcade
from worldloom.stages.atari_play import Player, play, resampled, shrink_area, shrink_brightest
from worldloom.stages.atari_settings import Follow, Sticky


def test_shrinking_to_the_brightest_keeps_a_small_ball_that_the_mean_washes_out() -> None:
    screens = np.full((2, 20, 30, 3), (144, 72, 17), np.uint8)
    screens[1, 9:11, 14:16] = 236
    kept, washed = shrink_brightest(screens, 8, 12), shrink_area(screens, 8, 12)
    assert kept.shape == washed.shape == (2, 8, 12, 3)
    assert (kept[1] == 236).all(axis=-1).sum() >= 2 and not (washed[1] == 236).all(axis=-1).any()
    assert {tuple(colour) for colour in kept.reshape(-1, 3).tolist()} == {(144, 72, 17), (236, 236, 236)}
    assert np.array_equal(shrink_brightest(screens, 20, 30), screens) and (kept[0] == screens[0, 0, 0]).all()


def test_every_pixel_touches_all_that_it_covers() -> None:
    for place in range(23):
        screens = np.zeros((1, 23, 5, 3), np.uint8)
        screens[0, place, 2] = 9
        assert (shrink_brightest(screens, 7, 5)[0, place * 7 // 23, 2] == 9).all()


def test_clips_follow_one_on_the_other() -> None:
    def clips(head_start: int) -> list:
        player = Player("pong", Sticky(), ("noop", "left"), np.random.default_rng(5))
        return list(islice(play(Arcade("pong"), player, 3, 4, 1, head_start), 2))

    one, other = clips(0)
    arcade = Arcade("pong")
    for action in one.actions:
        arcade.act(("noop", "left")[action], 4)
    assert np.array_equal(arcade.screen, other.screens[0]) and arcade.memory == other.memories[0]
    assert one.screens.shape == (3, 210, 160, 3) and one.sound.shape == (3 * 4 * 512,)
    assert not np.array_equal(clips(60)[0].screens, one.screens)


def test_behind_its_end_a_game_stands_still_and_the_next_clip_begins_a_new_one() -> None:
    class Short(Arcade):
        played = 0

        def begin(self) -> None:
            super().begin()
            self.played = 0

        @property
        def over(self) -> bool:
            return self.played > 5

        def act(self, action: str, frames: int, last: int = 1):
            self.played += 1
            return super().act(action, frames, last)

    player = Player("pong", Sticky(), ("noop", "left"), np.random.default_rng(5))
    first, second, third = islice(play(Short("pong"), player, 4, 2, 1, 0), 3)
    assert not first.ends.any() and second.ends.tolist() == [False, True, True, True]
    assert np.array_equal(second.screens[2], second.screens[3]) and not second.sound[2 * 2 * 512 :].any()
    assert not third.ends.any() and np.array_equal(third.screens[0], first.screens[0])


def test_who_follows_the_ball_wins_more_than_who_takes_any_action() -> None:
    def points(policy: Sticky | Follow) -> float:
        player = Player("pong", policy, ("noop", "right", "left"), np.random.default_rng(1))
        return sum(float(clip.rewards.sum()) for clip in islice(play(Arcade("pong"), player, 50, 4, 1, 0), 6))

    assert points(Follow(keep=0.0, noise=0.0)) > points(Sticky()) + 2


def test_pixels_are_the_brightest_of_the_merged_frames() -> None:
    def last(merge: int) -> np.ndarray:
        player = Player("pong", Sticky(), ("noop",), np.random.default_rng(0))
        return next(play(Arcade("pong"), player, 50, 2, merge, 0)).screens[-1]

    assert (last(2) >= last(1)).all() and (last(2) > last(1)).any()


def test_a_tone_keeps_its_pitch_and_length_at_another_rate() -> None:
    tone = np.sin(2 * np.pi * 480 * np.arange(30_720) / 30_720).astype(np.float32)
    heard = resampled(tone, 1.0, 8_000, 9_000)
    assert heard.shape == (9_000,) and not heard[8_000:].any()
    assert np.abs(np.fft.rfft(heard[:8_000])).argmax() == 480
