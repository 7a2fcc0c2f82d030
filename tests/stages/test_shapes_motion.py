"""Shapes that move: the laws of their motion, and an oracle that reads pushes, pitch and looks back from every clean sample."""

import numpy as np
import pytest

from worldloom.stages import shapes
from worldloom.stages.settings import AudioStream
from worldloom.stages.shapes_motion import (
    FASTEST,
    HIGH,
    LOW,
    PITCHES,
    PUSH,
    PUSHES,
    State,
    draw_clip,
    move,
    read_clip,
    read_pushes,
    read_sound,
    sound_of,
    step,
)

SOUND = AudioStream(kind="audio", sample_rate=8_000, seconds=1.125)


def samples(count: int, frames: int = 9):
    for i in range(count):
        generator = np.random.default_rng(i)
        thing = shapes.imagine(shapes.COMBINATIONS[i % len(shapes.COMBINATIONS)], generator)
        yield thing, move(thing, frames, generator)


def test_a_push_changes_the_velocity_along_its_axis_and_a_free_thing_moves_on() -> None:
    state = State(np.array([0.5, 0.5]), np.array([0.0, 0.05]))
    for push, change in zip(range(5), [(0, 0), (-PUSH, 0), (PUSH, 0), (0, -PUSH), (0, PUSH)], strict=True):
        after, bounces = step(state, push)
        assert after.velocity == pytest.approx(state.velocity + change) and not bounces
        assert after.place == pytest.approx(state.place + after.velocity)


def test_a_wall_turns_the_velocity_and_mirrors_the_way() -> None:
    after, bounces = step(State(np.array([0.75, 0.5]), np.array([0.1, 0.0])), PUSHES.index("right"))
    assert bounces == pytest.approx((0.25,))
    assert after.place == pytest.approx([0.65, 0.5]) and after.velocity == pytest.approx([-0.2, 0.0])


def test_everything_follows_from_the_beginning_and_the_pushes_and_stays_between_the_walls() -> None:
    for thing, motion in samples(60):
        state = State(np.array([thing.x, thing.y]), np.zeros(2))
        bounced = []
        for number, push in enumerate(motion.pushes):
            state, hits = step(state, int(push))
            bounced += [number + share for share in hits]
            assert state.place == pytest.approx(motion.places[number + 1]) and np.abs(state.velocity).max() <= FASTEST + 1e-9
        assert tuple(bounced) == pytest.approx(motion.bounces)
        assert motion.places.min() >= LOW - 1e-9 and motion.places.max() <= HIGH + 1e-9


def test_nearly_every_motion_bounces_and_all_pushes_occur() -> None:
    motions = [motion for _, motion in samples(200)]
    assert sum(bool(motion.bounces) for motion in motions) > 185
    counts = np.bincount(np.concatenate([motion.pushes for motion in motions]), minlength=5)
    assert counts.min() > 100


@pytest.mark.parametrize("side", [32, 64])
def test_the_oracle_reads_every_push_and_look_from_a_clean_clip(side: int) -> None:
    steps = right = 0
    for thing, motion in samples(108):
        clip = draw_clip(thing, motion, side)
        assert read_clip(clip) == (thing.shape, thing.colour, thing.place)
        read = read_pushes(clip)
        assert read is not None
        right += sum(a == PUSHES[b] for a, b in zip(read, motion.pushes, strict=True))
        steps += len(motion.pushes)
    assert right == steps


def test_the_oracle_hears_every_pitch_and_no_other() -> None:
    for thing, motion in samples(60):
        if not motion.bounces:
            continue
        sound = sound_of(thing.shape, motion, 8.0, SOUND)
        assert sound.shape == (1, 9_000) and np.abs(sound).max() <= 1
        assert read_sound(sound, 8_000) == (thing.shape,)
        noisy = sound + np.random.default_rng(0).normal(size=sound.shape).astype(np.float32) * 0.01
        assert read_sound(noisy, 8_000) == (thing.shape,)
    time = np.arange(9_000) / 8_000
    assert read_sound(np.zeros((1, 9_000), np.float32), 8_000) is None
    assert read_sound(0.5 * np.sin(2 * np.pi * 2_500 * time)[None].astype(np.float32), 8_000) is None


def test_a_tone_begins_with_its_bounce() -> None:
    thing, motion = next((thing, motion) for thing, motion in samples(50) if motion.bounces and motion.bounces[0] > 1)
    sound = sound_of(thing.shape, motion, 8.0, SOUND)[0]
    first = int(motion.bounces[0] / 8.0 * 8_000)
    assert not sound[:first].any() and np.abs(sound[first : first + 200]).max() > 0.3
    assert len(set(PITCHES.values())) == len(shapes.SHAPES)


def test_a_clip_that_shows_nothing_is_not_read() -> None:
    assert read_pushes(np.full((3, 32, 32, 3), shapes.GROUND, np.uint8)) is None
