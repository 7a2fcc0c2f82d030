"""What the training loop counts between two lines of metrics: means, rates, totals and failures."""

import math
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from worldloom.stages.learner import Mean, Turn, detached

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
        self._pending: list[tuple[str, Tensor | float, Tensor | float, float]] = []
        self._noted = False  # whether a turn of this step was taken

    def note(self, turn: Turn, loss: Tensor) -> None:
        """A turn that was taken. Nothing is read from the device yet."""
        self._noted = True
        each = 1 / dist.get_world_size()  # so that steps by more ranks weigh no more than others
        self._add("loss", loss, 0.0, each)
        for name, value in turn.losses.items():
            self._add(f"loss/{name}", value, float(turn.step), each)  # the turns of one step add up
        for name, metric in turn.metrics.items():
            if isinstance(metric, Mean):
                self._add(name, metric.total, metric.weight)
            else:
                self._add(name, metric, 1.0, each)
        for name, count in turn.counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def succeed(self, player: str, norm: float) -> None:
        """A player has stepped."""
        self._add(f"gradient_norm/{player}", norm, 1.0, 1 / dist.get_world_size())
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

    def set_total(self, name: str, total: float) -> None:
        """Something that is counted elsewhere, from step 0."""
        self._totals[name] = total

    def end_step(self, seconds: float) -> None:
        """A step is over, after `seconds`."""
        if self._noted:
            self._add("loss", 0.0, 1.0, 1 / dist.get_world_size())  # a step's loss is the sum over its turns
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

    def _add(self, name: str, total: Tensor | float, weight: Tensor | float, share: float = 1.0) -> None:
        self._pending.append((name, detached(total), detached(weight), share))

    def _settle(self) -> None:
        for name, total, weight, share in self._pending:
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(total) * share
            entry[1] += float(weight) * share
        self._pending.clear()


def merged(states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
    """The state of `rank` where ranks have become more or fewer: rank 0 takes over what all have counted since the last line."""
    sums: dict[str, list[float]] = {}
    counts: dict[str, float] = {}
    for state in states if rank == 0 else ():
        for name, (total, weight) in state["sums"].items():
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0], entry[1] = entry[0] + total, entry[1] + weight
        for name, count in state["counts"].items():
            counts[name] = counts.get(name, 0) + count
    return {**states[0], "sums": sums, "counts": counts}
