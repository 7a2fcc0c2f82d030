"""Rolled-out worlds measured: one that knows what comes is right at every horizon, one that never learnt is not."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from worldloom.stages.dataset import Dataset
from worldloom.stages.dream_env import DreamEnv
from worldloom.stages.evaluate_world_model import EvaluateWorldModel
from worldloom.stages.evaluation import directions, judged
from worldloom.stages.evaluation_card import evaluation_card
from worldloom.stages.evaluation_figures import figures_of, measure
from worldloom.stages.evaluation_rollouts import can_roll, roll_out
from worldloom.stages.open_world import Choosing, OpenWorld, open_world
from worldloom.stages.oracles import ORACLES
from worldloom.stages.rollouts import Step
from worldloom.stages.step_values import encode_steps
from worldloom.stages.worker import Worker

SETTINGS = EvaluateWorldModel(
    run="evaluate_world_model", world="world", prompts=2, unconditional=2, batch=3, shown=4, rollouts=4, most_codes=60
)


class Prophet(OpenWorld):
    """Stands in for a trained world: looks up how the sample with these actions really went on; without any, all stands still."""

    def rollout(self, context, actions, **options):
        for step in range(options["steps"]):
            frames = context["clip"][:, -1] if actions is None else np.stack([self._clip(row)[step + 1] for row in actions])
            yield Step({"clip": frames}, {"clip": encode_steps(self.tokenizers["clip"], frames)})

    def _clip(self, actions):
        for i in range(self.dataset.samples("validation")):
            found = self.dataset.value("validation", "push", i)
            if found is not None and np.array_equal(found, actions):
                return self.dataset.value("validation", "clip", i)
        raise AssertionError("no sample has these actions")


@pytest.fixture(scope="module")
def world(clocked_world):
    return open_world(clocked_world)


def test_a_world_that_knows_what_comes_is_right_at_every_horizon_and_with_other_actions_it_is_not(world):
    prophet = Prophet(**{field.name: getattr(world, field.name) for field in fields(world)})
    rolled = roll_out(prophet, "validation", 5, ORACLES["shapes"], Choosing(), 0, 3, lambda: None)
    assert [at.horizon for at in rolled.horizons] == [1, 2, 3, 4]
    for at in rolled.horizons:
        assert at.psnr == 99.0 and at.code_accuracy == 1.0 and at.action_accuracy > 0.7  # at 16 pixels the oracle misreads some
        assert at.shuffled_psnr < 60 and at.copy_psnr < 60
        assert at.without_psnr == at.copy_psnr and at.without_code_accuracy == at.copy_code_accuracy
        assert at.without_action_accuracy is not None
    assert np.array_equal(rolled.true, rolled.dreamed)


def test_a_copy_of_the_last_frame_is_measured_against_the_true_frames(world):
    rolled = roll_out(world, "held_out", 3, None, Choosing(), 0, 2, lambda: None)
    true = rolled.true.astype(float)
    for at in rolled.horizons:
        error = ((true[:, at.horizon] - true[:, 0]) ** 2).mean()
        assert at.copy_psnr == pytest.approx(10 * np.log10(255**2 / error))
        assert at.action_accuracy is None and at.code_accuracy < 0.6
    assert roll_out(world, "nowhere", 3, None, Choosing(), 0, 2, lambda: None) is None


def test_behind_two_true_frames_a_rollout_begins_with_the_third(world):
    rolled = roll_out(world, "validation", 3, ORACLES["shapes"], Choosing(), 0, 2, lambda: None, given=2)
    assert rolled.given == 2 and [at.horizon for at in rolled.horizons] == [1, 2, 3]
    assert np.array_equal(rolled.true[:, :2], rolled.dreamed[:, :2]) and not np.array_equal(rolled.true[:, 2], rolled.dreamed[:, 2])
    true = rolled.true.astype(float)
    assert rolled.horizons[0].copy_psnr == pytest.approx(10 * np.log10(255**2 / ((true[:, 2] - true[:, 1]) ** 2).mean()))
    assert can_roll(world, 4) and not can_roll(world, 5)


def test_steps_at_which_nothing_is_told_of_the_action_are_not_counted(world):
    told = ORACLES["shapes"]
    silent = frozenset({"left", "right", "up", "down"})
    quiet = told._replace(views=tuple(view._replace(silent=silent) if view.properties == ("push",) else view for view in told.views))
    first = roll_out(world, "validation", 5, told, Choosing(), 0, 3, lambda: None).horizons[0]
    none = roll_out(world, "validation", 5, quiet, Choosing(), 0, 3, lambda: None).horizons[0]
    assert first.action_accuracy is not None and first.true_action_accuracy > 0.5
    assert none.true_action_accuracy in (None, 1.0)  # only pushes of none are left


def test_a_set_without_the_clips_that_its_world_learnt_elsewhere_has_nothing_to_begin_with(world, tiny_world):
    pictures = Dataset(tiny_world.input("tokens").input("data"))
    for name, stream in world.dataset.streams.items():
        pictures.add_from_elsewhere(name, stream)
    assert [*pictures.streams] == ["view", "words", "clip", "push", "sound"] and pictures.value("train", "words", 0)
    other = replace(world, dataset=pictures)
    assert roll_out(other, "validation", 3, None, Choosing(), 0, 2, lambda: None) is None
    with pytest.raises(ValueError, match=r"no sample of the split 'train' has the stream 'clip', .* open it with one that has the stream"):
        DreamEnv(other)


def test_directions_on_one_clock_go_forwards_only(world, tiny_world):
    clock = world.vocabulary.clock
    pairs = {(pair.source, pair.target) for pair in directions(world.streams, None, clock)}
    assert {("push", "clip"), ("clip", "sound"), ("push", "sound"), ("words", "clip"), ("sound", "words")} <= pairs
    assert not {("clip", "push"), ("sound", "clip"), ("sound", "push")} & pairs
    assert can_roll(world) and not can_roll(open_world(tiny_world))


def test_an_oracle_of_actions_is_not_asked_about_rewards(world):
    streams = {**world.dataset.streams, "push": world.dataset.streams["push"].model_copy(update={"role": "reward"})}
    other = SimpleNamespace(held=world.held, dataset=SimpleNamespace(streams=streams))
    assert {*judged(world, ORACLES["shapes"])} - {*judged(other, ORACLES["shapes"])} == {"push"}
    assert judged(other, None) == world.held


def test_the_whole_evaluation_has_the_rollouts_figures_curves_and_clips(world, tmp_path):
    measured = measure(world, SETTINGS, Worker())
    figures = figures_of(measured)
    assert {"rollout.psnr_1", "rollout.shuffled_psnr_4", "rollout.held_out_without_psnr_2", "rollout.action_accuracy_3"} <= set(figures)
    assert figures["legal_share"] == 1.0 and "push_to_clip.accuracy" in figures
    card = evaluation_card(measured, 4, tmp_path).model_dump()
    titles = [block.get("title", "") for block in card["blocks"]]
    assert sum(title.startswith("Rolled out from one frame: ") for title in titles) == 2 * 5
    assert len((tmp_path / "logs" / "rollout-validation.jsonl").read_text().splitlines()) == 4
