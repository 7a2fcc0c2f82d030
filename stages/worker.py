"""Who runs a stage: one of `world_size` workers, with a way to ask whether to stop and a way to say how far it is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Item = TypeVar("Item")


class Interrupted(Exception):
    """The run was asked to stop and has left everything needed to go on."""


def _never() -> bool:
    return False


def _silent(done: int, total: int, unit: str, notes: dict[str, float]) -> None:
    pass


@dataclass(frozen=True)
class Worker:
    """Worker `rank` of `world_size`: "shard r of w" in encoding and "rank r of w" in training."""

    rank: int = 0
    world_size: int = 1
    threads: int = 1  # CPU threads that this worker may use
    zero: int = 1  # ZeRO stage of a training gang
    offload: Literal["none", "cpu"] = "none"  # where the gang keeps masters and optimizer; under ZeRO 3 the parameters too
    stopping: Callable[[], bool] = _never  # True once somebody asked the run to stop
    # done by this worker, total of the whole stage, unit, numbers worth showing
    report: Callable[[int, int, str, dict[str, float]], None] = _silent

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """This worker's part of `items`; together the workers' shares are all items, each once.

        Take one, do it, take the next: which items come may depend on how fast the workers are, and whoever takes all
        at once leaves the others none.
        """
        yield from items[self.rank :: self.world_size]

    def check(self) -> None:
        """Raises Interrupted when the run was asked to stop: call it where stopping loses nothing."""
        if self.stopping():
            raise Interrupted
