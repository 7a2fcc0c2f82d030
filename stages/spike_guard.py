"""Notices when a loss leaps and stays up, so that the training can go back to before and pass over the batches that did it.

A loss leaps where it is above the median of its last 200 steps by six median absolute deviations, and above 1.5 times that median;
three leaps in twenty steps are a spike. The total is watched, and every stream's loss for itself: the total hides a rare stream.

Labels that are rare (a reward, the end of a game, a sound in silence) make a loss that is low at most steps and high at some, whose median
and deviations know nothing of the high ones. So a leap must also be above all of those 200 steps but the last twenty, and above 1.5 times
every leap of the last 2,000 that was no part of a spike.
"""

import statistics
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from worldloom.stages.learner import Mean, Turn

WINDOW = 200  # steps that the median is taken over
LEAST = 100  # steps without which nothing is judged; after 50, one loss in 30 whose labels are rare has not shown yet how high it goes
DEVIATIONS = 6.0
FACTOR = 1.5
LEAPS, WITHIN = 3, 20  # so many leaps in so many steps
MEMORY = 2_000  # steps for which a leap that was no part of a spike is remembered


class Spike(Exception):
    """A loss has leapt `LEAPS` times; `first` is the step of the first leap, `positions` are those behind the batches that leapt."""

    def __init__(self, name: str, first: int, last: int, positions: list[dict[str, Any]]) -> None:
        super().__init__(name)
        self.name, self.first, self.last, self.positions = name, first, last, positions


class Leap(NamedTuple):
    step: int
    name: str
    position: dict[str, Any]  # of the data, behind the batch
    value: float = 0.0  # of the loss


class SpikeGuard:
    """Watches the losses of all ranks together, so that all come to the same conclusion. Its state belongs into the checkpoint."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self._history: dict[str, list[float]] = state.get("history", {})
        self._leaps = [Leap(*leap) for leap in state.get("leaps", [])]
        self._pending: list[tuple[str, Tensor, Tensor | float]] = []

    def note(self, turn: Turn, loss: Tensor) -> None:
        """A turn that was taken. Nothing is read from the device yet."""
        each = 1 / dist.get_world_size()
        self._pending.append(("loss", (loss.detach() - turn.unjudged) * each, each if turn.step else 0.0))
        for name, metric in turn.metrics.items():
            if name.startswith("loss/") and isinstance(metric, Mean):
                total = torch.as_tensor(metric.total, dtype=torch.float64, device=loss.device).detach()
                self._pending.append((name, total, metric.weight))

    def end_step(self, step: int, position: dict[str, Any]) -> None:
        """Judges the losses noted since the last call; raises Spike. Every rank calls it."""
        for name, value in self._means().items():
            history = self._history.setdefault(name, [])
            if _leaps(value, history) and value > FACTOR * self._highest(name, step):
                self._leaps.append(Leap(step, name, position, value))
            history.append(value)
            del history[:-WINDOW]
        self._leaps = [leap for leap in self._leaps if leap.step > step - MEMORY]
        recent = [leap for leap in self._leaps if leap.step > step - WITHIN]
        for name in dict.fromkeys(leap.name for leap in recent):
            mine = [leap for leap in recent if leap.name == name]
            if len(mine) >= LEAPS:
                raise Spike(name, mine[0].step, step, [leap.position for leap in mine])

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"history": self._history, "leaps": [list(leap) for leap in self._leaps]}

    def _highest(self, name: str, step: int) -> float:
        """The highest leap that is too long ago to be part of a spike."""
        return max((leap.value for leap in self._leaps if leap.name == name and leap.step <= step - WITHIN), default=0.0)

    def _means(self) -> dict[str, float]:
        """The mean of each loss over the step's turns and all ranks."""
        # Brought together first, so that the device is waited for once.
        device = self._pending[0][1].device if self._pending else "cpu"
        flat = [torch.as_tensor(x, dtype=torch.float64, device=device) for _, total, weight in self._pending for x in (total, weight)]
        numbers = torch.stack(flat).tolist() if flat else []
        mine = [(name, *numbers[2 * at : 2 * at + 2]) for at, (name, _, _) in enumerate(self._pending)]
        self._pending.clear()
        shares: list[Any] = [mine]
        if dist.get_world_size() > 1:
            shares = [None] * dist.get_world_size()
            dist.all_gather_object(shares, mine)
        sums: dict[str, list[float]] = {}
        for name, total, weight in (entry for share in shares for entry in share):
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + total, entry[1] + weight
        return {name: total / weight for name, (total, weight) in sums.items() if weight}


def _leaps(value: float, history: list[float]) -> bool:
    if len(history) < LEAST:
        return False
    median = statistics.median(history)
    deviation = statistics.median(abs(other - median) for other in history)
    # Without the last steps: a loss that climbs to where it stays has not been there before.
    highest = max(history[:-WITHIN], default=0.0)
    return value > median + DEVIATIONS * deviation and value > FACTOR * median and value > highest
