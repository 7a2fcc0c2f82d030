"""Averages of weights around any learner: the plain formula, and the same whether they are asked for between steps or not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from worldloom.stages.averaged import Averaged
from worldloom.stages.learner import Player, Turn


class Walk:
    """A learner whose weights are set to given values, one a step."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.module = nn.BatchNorm1d(1)  # has a counter of whole numbers, too
        self.players = (Player("walker", self.module, 1e-3),)

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        yield Turn("walker", {})
        with torch.no_grad():  # as the optimizer does, once the turn is taken
            self.module.weight.fill_(self.values[step])
            self.module.num_batches_tracked.fill_(step)

    def state(self) -> dict[str, Any]:
        return {"own": 7}

    def load_state(self, state: dict[str, Any]) -> None:
        assert state == {"own": 7}


VALUES = [3.0, 1.0, -4.0, 8.0, 0.5]


def expected(decay: float) -> float:
    average = VALUES[0]
    for taken, value in enumerate(VALUES[1:], start=1):
        d = min(decay, (1 + taken) / (10 + taken))
        average = d * average + (1 - d) * value
    return average


@pytest.mark.parametrize("decay", [0.2, 0.99])
@pytest.mark.parametrize("asked", [(), (1, 3), (0, 1, 2, 3, 4)])
def test_averages_follow_the_formula_whenever_they_are_asked_for(decay: float, asked: tuple[int, ...]) -> None:
    walk = Walk(VALUES)
    averaged = Averaged(walk, walk.module, decay)
    for step in range(5):
        assert [turn.player for turn in averaged.turns(None, step)] == ["walker"]
        if step in asked:
            averaged.state()
    averaged.put()
    assert walk.module.weight.item() == pytest.approx(expected(decay), rel=1e-5)
    assert walk.module.num_batches_tracked.item() == 4


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_going_on_from_a_state_equals_not_stopping(stop: int) -> None:
    first = Walk(VALUES)
    before = Averaged(first, first.module, 0.99)
    for step in range(stop):
        list(before.turns(None, step))
    second = Walk(VALUES)
    second.module.load_state_dict(first.module.state_dict())
    after = Averaged(second, second.module, 0.99)
    after.load_state(before.state())
    for step in range(stop, 5):
        list(after.turns(None, step))
    after.put()
    assert second.module.weight.item() == pytest.approx(expected(0.99), rel=1e-5)
