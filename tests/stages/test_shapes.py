import numpy as np
import pytest

from worldloom.stages import shapes


def things(count: int, seed: int = 5) -> list[shapes.Thing]:
    generator = np.random.default_rng(seed)
    return [shapes.imagine(shapes.COMBINATIONS[i % len(shapes.COMBINATIONS)], generator) for i in range(count)]


@pytest.mark.parametrize("side", [24, 32, 56])
def test_the_oracle_reads_every_combination_from_its_picture(side: int) -> None:
    for thing in things(len(shapes.COMBINATIONS)):
        assert shapes.read_picture(shapes.draw(thing, side)) == (thing.shape, thing.colour, thing.place)


def test_the_oracle_reads_through_the_noise_of_a_reconstruction() -> None:
    generator = np.random.default_rng(3)
    for thing in things(72):
        noisy = shapes.draw(thing, 32) + generator.normal(0, 12, size=(32, 32, 3))
        assert shapes.read_picture(np.clip(noisy, 0, 255).astype(np.uint8)) == (thing.shape, thing.colour, thing.place)


def test_the_oracle_sees_nothing_in_pictures_that_are_not_of_this_world() -> None:
    generator = np.random.default_rng(7)
    empty = np.full((32, 32, 3), shapes.GROUND, dtype=np.uint8)
    noise = generator.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    left, right = (shapes.draw(thing, 32) for thing in (things(1)[0], things(9)[8]))
    half = np.concatenate([left[:, :6], np.full((32, 26, 3), shapes.GROUND, dtype=np.uint8)], axis=1)
    assert shapes.read_picture(empty) is None
    assert shapes.read_picture(noise) is None
    assert shapes.read_picture(np.minimum(left, right)) is None  # two things
    assert shapes.read_picture(half) is None


@pytest.mark.parametrize("wording", shapes.WORDINGS)
def test_every_wording_reads_back(wording: str) -> None:
    for thing in things(18):
        assert shapes.read_caption(shapes.describe(thing, wording)) == (thing.shape, thing.colour, thing.place)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red blue circle at the top",
        "a red circle at the top, a circle at the left",
        "a bright red circle",
        "a red circle atop",
    ],
)
def test_a_caption_that_is_not_one_thing_is_not_read(text: str) -> None:
    assert shapes.read_caption(text) is None


def test_held_out_combinations_leave_every_pair_of_properties_seen_often() -> None:
    held_out = [combination for combination in shapes.COMBINATIONS if shapes.is_held_out(combination)]
    assert len(held_out) == 24
    for pair in ((0, 1), (0, 2), (1, 2)):
        hidden = [(combination[pair[0]], combination[pair[1]]) for combination in held_out]
        assert max(hidden.count(one) for one in hidden) == 1


def test_new_wordings_are_apart_from_known_ones_and_of_the_same_words() -> None:
    assert not set(shapes.NEW_WORDINGS) & set(shapes.KNOWN_WORDINGS)
    assert set(" ".join(shapes.NEW_WORDINGS).split()) <= set(" ".join(shapes.KNOWN_WORDINGS).split())


def test_a_thing_never_leaves_the_picture() -> None:
    for thing in things(432):
        assert thing.radius <= min(thing.x, thing.y) + 0.04
        edge = shapes.draw(thing, 32)
        assert (np.abs(edge[0].astype(int) - shapes.GROUND).max() < 230) and edge.shape == (32, 32, 3)
