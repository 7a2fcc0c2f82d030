"""One measured figure beside its peer, and how two contestants are timed fairly: alternating, in one process."""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple


class Figure(NamedTuple):
    """What is printed, one JSON object a line; `ratio` is the value over the peer's, `goal` what it must at least (or at most) be."""

    figure: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float
    goal: float
    holds: bool

    def line(self) -> str:
        rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in self._asdict().items()}
        return json.dumps(rounded)


def at_least(figure: str, value: float, unit: str, peer: str, peer_value: float, goal: float) -> Figure:
    """A figure whose ratio to the peer must reach `goal`."""
    ratio = value / peer_value
    return Figure(figure, value, unit, peer, peer_value, ratio, goal, ratio >= goal)


def at_most(figure: str, value: float, unit: str, peer: str, peer_value: float, goal: float) -> Figure:
    """A figure whose ratio to the peer must stay within `goal`."""
    ratio = value / peer_value
    return Figure(figure, value, unit, peer, peer_value, ratio, goal, ratio <= goal)


def seconds_of(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each contestant; they take turns, so that what else happens on the machine hits all. The first turn is not counted."""
    return median_of({name: partial(seconds_for, work) for name, work in contestants.items()}, rounds)


def median_of(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of what each contestant says of its turns; they take turns as in `seconds_of`."""
    told: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, work in contestants.items():
            value = work()
            if turn:
                told[name].append(value)
    return {name: statistics.median(values) for name, values in told.items()}


def seconds_for(work: Callable[[], object]) -> float:
    """How long it takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
