"""Ends a rank that has not finished a step for too long: where one rank is stuck, the others would wait for it for ever."""

import faulthandler
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = "hung-rank-{rank}.txt"  # in the stage's logs


@contextmanager
def hang_guard(logs: Path, rank: int, seconds: float | None) -> Iterator[Callable[[], None]]:
    """Gives a function to call at every step. If no call comes for `seconds` (None: for ever), where every thread stands is written to
    logs/hung-rank-<rank>.txt and the process ends at once; the checkpoints are what the next start goes on from."""
    if seconds is None:
        yield lambda: None
        return
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / FILE.format(rank=rank)
    with open(path, "w", encoding="utf-8") as file:
        try:
            # By a thread that needs no interpreter: it wakes up even where a library never comes back to Python.
            yield lambda: faulthandler.dump_traceback_later(seconds, file=file, exit=True)
        finally:
            faulthandler.cancel_dump_traceback_later()
            path.unlink(missing_ok=True)  # however the training ends: whoever comes by here did not hang


def hung_ranks(logs: Path) -> list[int]:
    """The ranks that their guards have ended: a file without a word in it is of one that ended otherwise, as by a kill."""
    return sorted(rank for rank, path in _files(logs) if path.stat().st_size)


def forget_hung_ranks(logs: Path) -> None:
    """Takes away what an earlier start, perhaps of more ranks, has left."""
    for _, path in _files(logs):
        path.unlink()


def _files(logs: Path) -> Iterator[tuple[int, Path]]:
    for path in logs.glob(FILE.format(rank="*")):
        if found := re.fullmatch(r"hung-rank-(\d+)\.txt", path.name):
            yield int(found[1]), path
