"""Means, totals and rates between two lines of metrics."""

import json

import pytest
import torch

from worldloom.stages.deepspeed_engine import gather_gang
from worldloom.stages.learner import Mean, Turn
from worldloom.stages.tallies import PATIENCE, Diverged, Tallies
from worldloom.stages.worker import Worker


@pytest.fixture(autouse=True)
def gang():
    gather_gang(Worker())


def turn(loss, total=0.0, weight=1, step=True):
    return Turn("model", {"a": torch.tensor(loss)}, {"size": Mean(torch.tensor(total), weight)}, {"rows": 3}, step)


def note(tallies, *turns):
    for one in turns:
        tallies.note(one, sum(one.losses.values()))
    tallies.end_step(0.5)


def test_means_are_weighted_and_totals_go_on():
    tallies = Tallies()
    note(tallies, turn(1.0, 6.0, 2))
    note(tallies, turn(2.0, 0.0, 1))
    assert tallies.close_window() == {"loss": 1.5, "loss/a": 1.5, "size": 2.0, "rows": 6, "rows_per_second": 6.0}
    note(tallies, turn(5.0))
    assert tallies.close_window()["rows"] == 9
    assert tallies.seconds == 1.5


def test_parts_of_a_step_add_up_to_its_loss():
    tallies = Tallies()
    note(tallies, turn(1.0, step=False), turn(2.0))
    note(tallies, turn(3.0, step=False), turn(4.0))
    values = tallies.close_window()
    assert values["loss"] == values["loss/a"] == 5.0


def test_a_window_survives_as_json():
    whole, first = Tallies(), Tallies()
    note(whole, turn(0.1, 0.3, 7))
    note(first, turn(0.1, 0.3, 7))
    second = Tallies(json.loads(json.dumps(first.state())))
    for tallies in (whole, second):
        note(tallies, turn(0.2, 0.7, 3))
    assert whole.close_window() == second.close_window()


def test_failures_in_a_row_end_in_an_error_and_a_success_forgives():
    tallies = Tallies()
    for step in range(PATIENCE - 1):
        tallies.fail("the loss", step)
    tallies.succeed("model", 1.0)
    for step in range(PATIENCE - 1):
        tallies.fail("the loss", step)
    with pytest.raises(Diverged, match=f"the loss was not finite {PATIENCE} times in a row, last at step 40; lower learning_rate"):
        tallies.fail("the loss", 40)


def test_a_metric_without_weight_or_number_is_left_out():
    tallies = Tallies()
    note(tallies, turn(1.0, 0.0, 0))
    note(tallies, turn(1.0)._replace(metrics={"broken": float("nan")}))
    assert set(tallies.close_window()) == {"loss", "loss/a", "rows", "rows_per_second"}
