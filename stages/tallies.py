"""What the training loop counts between two lines of metrics: means, rates, totals and failures."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from worldloom.stages.learner import Mean, Turn

PATIENCE = 20  # failures in a row after which a training has no future


class Diverged(RuntimeError):
    """Losses or gradients have stopped being numbers."""


class Tallies:
    """One rank's counters; `state` goes into the checkpoint, so that a resumed training writes the same metrics."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.seconds: float = state.get("seconds", 0.0)  # of training, without saving; over all starts
        self._window_seconds: float = state.get("window_seconds", 0.0)
        self._sums: dict[str, list[float]] = state.get("sums", {})  # name -> total, weight; since the last line
        self._counts: dict[str, float] = state.get("counts", {})  # since the last line, this rank
        self._totals: dict[str, float] = state.get("totals", {})  # since step 0, all ranks
        self._failures: int = state.get("failures", 0)  # in a row
        self._pending: list[tuple[str, Tensor | float, Tensor | float]] = []
        self._noted = False  # whether a turn of this step was taken

    def note(self, turn: Turn, loss: Tensor) -> None:
        """A turn that was taken. Nothing is read from the device yet."""
        self._noted = True
        self._add("loss", loss, 0.0)
        for name, value in turn.losses.items():
            self._add(f"loss/{name}", value, float(turn.step))  # the turns of one step add up
        for name, metric in turn.metrics.items():
            total, weight = metric if isinstance(metric, Mean) else (metric, 1.0)
            self._add(name, total, weight)
        for name, count in turn.counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def succeed(self, player: str, norm: float) -> None:
        """A player has stepped."""
        self._add(f"gradient_norm/{player}", norm, 1.0)
        self._failures = 0

    def fail(self, what: str, step: int) -> None:
        """A turn was left out because `what` is not finite; raises Diverged when that goes on."""
        self._counts["skipped"] = self._counts.get("skipped", 0) + 1
        self._failures += 1
        if self._failures >= PATIENCE:
            raise Diverged(
                f"{what} was not finite {PATIENCE} times in a row, last at step {step}; lower learning_rate, lengthen warmup, "
                "or set precision: fp32; the last checkpoint is from before"
            )

    def end_step(self, seconds: float) -> None:
        """A step is over, after `seconds`."""
        if self._noted:
            self._add("loss", 0.0, 1.0)  # a step's loss is the sum over its turns
        self._noted = False
        self.seconds += seconds
        self._window_seconds += seconds

    def close_window(self) -> dict[str, float]:
        """Means over the window and all ranks, totals since step 0 and rates per second; every rank calls it."""
        self._settle()
        shares: list[Any] = [(self._sums, self._counts)]
        if dist.get_world_size() > 1:
            shares = [None] * dist.get_world_size()
            dist.all_gather_object(shares, (self._sums, self._counts))
        values: dict[str, float] = {}
        for name in dict.fromkeys(name for sums, _ in shares for name in sums):
            total, weight = (math.fsum(sums[name][part] for sums, _ in shares if name in sums) for part in (0, 1))
            if weight and math.isfinite(total):
                values[name] = total / weight
        for name in dict.fromkeys(name for _, counts in shares for name in counts):
            count = sum(counts.get(name, 0) for _, counts in shares)
            self._totals[name] = self._totals.get(name, 0) + count
            if self._window_seconds and name != "skipped":
                values[f"{name}_per_second"] = round(count / self._window_seconds, 1)
        values |= self._totals
        self._sums, self._counts, self._window_seconds = {}, {}, 0.0
        return values

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        self._settle()
        return {
            "seconds": self.seconds,
            "window_seconds": self._window_seconds,
            "sums": self._sums,
            "counts": self._counts,
            "totals": self._totals,
            "failures": self._failures,
        }

    def _add(self, name: str, total: Tensor | float, weight: Tensor | float) -> None:
        self._pending.append((name, _detached(total), _detached(weight)))

    def _settle(self) -> None:
        for name, total, weight in self._pending:
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(total)
            entry[1] += float(weight)
        self._pending.clear()


def _detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, torch.Tensor) else value
