"""Worlds rolled out, values in and out, with an untrained world on a clock of five steps."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from worldloom.stages.open_world import Choosing, OpenWorld, open_world
from worldloom.stages.step_values import Hearing, decode_steps, encode_steps
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.transformer import WorldModel

ONE_BY_ONE = Choosing(temperature=1.0)


@pytest.fixture(scope="module")
def world(clocked_world) -> OpenWorld:
    return open_world(clocked_world)


def clips(world, rows, name="clip"):
    moving = [world.dataset.value("train", name, i) for i in range(12)]
    return np.stack([value for value in moving if value is not None][:rows])


def test_steps_are_coded_as_the_whole_is(world):
    for name in ("clip", "push"):
        values, tokenizer = clips(world, 3, name), world.tokenizers[name]
        whole = tokenizer.encode(values)
        codes = encode_steps(tokenizer, values.reshape(-1, *values.shape[2:]))
        assert codes.reshape(whole.shape).tolist() == whole.tolist()
        assert np.array_equal(decode_steps(tokenizer, codes[:4]), tokenizer.decode(whole).reshape(-1, *values.shape[2:])[:4])


def test_sounds_heard_step_by_step_are_the_whole_sound_where_codes_hear_only_the_past(world):
    sounds = clips(world, 2, "sound")
    codes = world.tokenizers["sound"].encode(sounds)
    hearing = Hearing(world.tokenizers["sound"], 5, 2560)
    heard = [hearing(codes.reshape(2, 5, -1)[:, step]) for step in range(5)]
    np.testing.assert_allclose(np.concatenate(heard, axis=-1), world.tokenizers["sound"].decode(codes), atol=1e-5)
    assert hearing(codes.reshape(2, 5, -1)[:, 0]).shape == (2, 1, 512)  # a sixth step


def test_a_frame_and_actions_go_in_and_frames_and_sounds_come_out_beyond_the_longest_sample(world):
    frames, pushes = clips(world, 2)[:, :1], np.random.default_rng(0).integers(5, size=(2, 9, 1)).astype(np.float32)
    made = list(world.rollout(frames, pushes, prompts=[{"words": "a red circle"}, {"words": "one blue cross, left"}]))
    assert len(made) == 9
    for number, step in enumerate(made):
        assert list(step.values) == ["push", "sound", "clip"]
        assert step.values["push"].tolist() == pushes[:, number].tolist()
        assert step.values["clip"].shape == (2, 16, 16, 3) and step.values["clip"].dtype == np.uint8
        assert step.values["sound"].shape == (2, 1, 512)
    again = list(world.rollout(frames[1:], pushes[1:], prompts=[{"words": "one blue cross, left"}], seeds=[1]))
    assert [step.codes["clip"][0].tolist() for step in again] == [step.codes["clip"][1].tolist() for step in made]


def test_actions_are_numbers_in_whatever_form(world):
    frames, pushes = clips(world, 1)[:, :1], [[[1], [4]]]
    made = [list(world.rollout(frames, form)) for form in (np.array(pushes, np.float32), pushes, torch.tensor(pushes))]
    for number in range(2):
        assert [steps[number].codes["clip"].tolist() for steps in made] == [made[0][number].codes["clip"].tolist()] * 3
    for wrong, got in (([[1, 4]], r"an array \(1, 2\)"), (["left", "up"], "list"), (pushes * 2, r"an array \(2, 2, 1\)")):
        with pytest.raises(ValueError, match=rf"actions are numbers .* here \[1, steps, 1\], or a function .*, got {got}"):
            world.rollout(frames, wrong)


def test_a_policy_is_asked_at_every_step_and_sees_the_last_frame(world):
    seen = []

    def policy(last):
        seen.append(last["clip"])
        return np.full((2, 1), len(seen) % 5)

    frames = clips(world, 2)[:, :2]
    made = list(islice(world.rollout({"clip": frames, "push": clips(world, 2, "push")[:, :1]}, policy), 3))
    assert [step.values["push"][0, 0] for step in made] == [1, 2, 3]
    assert all(np.array_equal(last, step.values["clip"]) for last, step in zip(seen[1:], made, strict=False))
    assert np.array_equal(seen[0], decode_steps(world.tokenizers["clip"], encode_steps(world.tokenizers["clip"], frames[:, 1])))


def test_what_is_given_on_the_clock_stands_in_the_steps_of_what_is_wanted(world):
    pushes, clip = clips(world, 2, "push"), clips(world, 2)
    given = [{"push": pushes[0], "words": "a red circle"}, {"clip": clip[1]}]
    one, two = world.sample(given, ["sound", "words"][:1], [3, 4], ONE_BY_ONE)
    assert one.legal and two.legal
    assert one.values["push"].tolist() == pushes[0].tolist() and set(one.values) == {"words", "push", "sound"}
    assert np.array_equal(two.values["clip"], world.tokenizers["clip"].decode(world.tokenizers["clip"].encode(clip[1:]))[0])
    alone = world.sample(given[:1], ["sound"], [3], ONE_BY_ONE)[0]
    assert alone.tokens.tolist() == one.tokens.tolist()
    said = world.sample([{"push": pushes[0]}], ["clip", "words"], [3], ONE_BY_ONE)[0]
    assert said.legal and set(said.values) == {"push", "clip", "words"}


def test_in_whatever_order_streams_of_the_clock_are_given_they_stand_in_its_own(world):
    clip, push, words = clips(world, 1)[0], clips(world, 1, "push")[0], "a red circle"
    given = [{"push": push, "words": words, "clip": clip}, {"clip": clip, "push": push, "words": words}]
    assert world.prompts(given[:1])[0].tolist() == world.prompts(given[1:])[0].tolist()
    assert all(one.legal for one in world.sample(given, None, [1, 1], ONE_BY_ONE))


def test_holes_of_a_stream_on_the_clock_lie_in_any_of_its_steps(world):
    ids = replace(world.vocabulary, sentinels=3)
    shape = replace(world.model.shape, vocab_size=ids.size)
    knows = replace(world, model=WorldModel(shape, torch.Generator().manual_seed(0)), grammar=Grammar(ids))
    given = [{"clip": clips(world, 1)[0], "push": clips(world, 1, "push")[0]}]
    (before,) = knows.prompts(given)
    (made,) = knows.infill(given, [{"clip": range(3, 6), "push": range(2, 3)}], [5], ONE_BY_ONE)
    # Four codes a frame and one a push, each step's between its own two control tokens.
    holes = {2 + 3, 9 + 2, 9 + 3, 2 * 9 + 8}
    assert made.legal and set(np.flatnonzero(made.tokens[:-1] != before)) <= holes
    with pytest.raises(ValueError, match="clip has 20 codes in this row; its hole must lie within them"):
        knows.infill(given, [{"clip": range(20, 21)}], [5], ONE_BY_ONE)


def test_codes_are_filled_in_beside_what_is_given_and_several_streams_of_the_clock_in_turn(world):
    world, filled = replace(world, objectives=("next_token", "masked")), Choosing(fill_steps=2)
    (one,) = world.sample([{"clip": clips(world, 1)[0]}], ["push", "sound"], [1], filled)
    assert one.legal and set(one.values) == {"clip", "push", "sound"}
    (two,) = world.sample([{}], ["clip", "push", "words"], [1], filled)
    assert two.legal and set(two.values) == {"clip", "push", "words"}


def test_the_model_writes_streams_of_the_clock_from_nothing(world):
    made = world.sample([{}] * 5, None, range(5), ONE_BY_ONE)
    assert all(one.legal for one in made)
    (one,) = world.sample([{"words": "a red circle"}], ["push", "clip"], [1], ONE_BY_ONE)
    assert one.values["clip"].shape == (5, 16, 16, 3) and one.values["push"].shape == (4, 1)


@pytest.mark.parametrize(
    ("context", "options", "message"),
    [
        ({"push": np.zeros((1, 1, 1))}, {}, "a rollout begins with clip; the context has only push"),
        (
            {"clip": np.zeros((1, 1, 16, 16, 3), np.uint8), "words": np.zeros(1)},
            {},
            "words is not on the clock; on it are clip, push, sound",
        ),
        (np.zeros((1, 1, 16, 16, 3), np.uint8), {"choosing": Choosing(guidance=2.0)}, "leave guidance at 1"),
        (
            {"clip": np.zeros((1, 6, 16, 16, 3), np.uint8), "sound": np.zeros((1, 1, 2561), np.float32)},
            {},
            "sounds of 2561 samples are longer than the 2560 of a whole sample",
        ),
    ],
)
def test_what_cannot_be_rolled_out_is_refused(world, context, options, message):
    with pytest.raises(ValueError, match=message):
        world.rollout(context, None, **options)


def test_a_world_without_a_clock_or_next_tokens_and_guidance_beside_what_is_given_are_refused(world, tiny_world):
    with pytest.raises(ValueError, match="this world has no streams on a clock, so it cannot be rolled out"):
        open_world(tiny_world).rollout(np.zeros((1, 1, 16, 16, 3), np.uint8), None)
    with pytest.raises(ValueError, match="learnt masked and not next tokens, so it cannot write rollouts token by token; sample from it"):
        replace(world, objectives=("masked",)).rollout(np.zeros((1, 1, 16, 16, 3), np.uint8), None)
    with pytest.raises(ValueError, match="guidance cannot be had beside what is given on the clock"):
        world.sample([{"push": clips(world, 1, "push")[0]}], ["clip"], [1], Choosing(guidance=2.0))
