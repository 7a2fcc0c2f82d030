"""Moving averages of all weights of a module, as a learner around the learner that trains it.

Averages are taken in once a step, behind the optimizer's; what is averaged is every float of the module's state, codebooks too. Whole
numbers (counts) stay those of the last step. The first steps count less, so that the average does not remember random weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from worldloom.stages.learner import Learner, Player, Turn


class Averaged:
    """Trains as `learner` does; `put` then gives `module` its averaged weights."""

    def __init__(self, learner: Learner, module: nn.Module, decay: float) -> None:
        self.learner, self.module, self.decay = learner, module, decay
        self.done = 0  # steps
        self.taken = 0  # of them, those whose weights are in the averages
        self.averages: dict[str, Tensor] = {}

    @property
    def players(self) -> tuple[Player, ...]:
        return self.learner.players

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        self._take_in()
        yield from self.learner.turns(batch, step)
        self.done = step + 1

    def state(self) -> dict[str, Any]:
        """The averages with the step just done: asked for before the next one begins, or not, they are the same."""
        self._take_in()
        return {
            "learner": self.learner.state(),
            "taken": self.taken,
            "averages": {name: value.cpu() for name, value in self.averages.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.learner.load_state(state["learner"])
        self.taken = self.done = state["taken"]
        self.averages = {name: value.clone() for name, value in state["averages"].items()}

    @torch.no_grad()
    def put(self) -> None:
        """Gives the module its averages; after the training."""
        self._take_in()
        for name, value in self.module.state_dict().items():
            if name in self.averages:
                value.copy_(self.averages[name])

    @torch.no_grad()
    def _take_in(self) -> None:
        """The weights as they are after the steps done, once."""
        if self.done == self.taken:
            return
        floats = {name: value.detach() for name, value in self.module.state_dict().items() if value.is_floating_point()}
        if not self.averages:
            self.averages = {name: value.float().clone() for name, value in floats.items()}
        # Rises to `decay` as in the exponential moving average of TensorFlow: 0.18 at the second step, 0.9 at the 90th.
        decay = min(self.decay, (1 + self.taken) / (10 + self.taken))
        for name, value in floats.items():
            average = self.averages[name] = self.averages[name].to(value.device)
            average.lerp_(value.float(), 1 - decay)
        self.taken = self.done
