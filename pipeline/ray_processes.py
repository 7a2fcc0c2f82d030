"""The processes of a Ray of our own: out of the way of signals to this process's group, and watched."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ESSENTIAL = ("gcs_server", "raylet")  # without them Ray waits a minute and then ends this process

_apart = threading.Event()


@contextmanager
def in_groups_of_their_own() -> Iterator[None]:
    """While it lasts, processes that Ray starts lead process groups of their own.

    `timeout`, Ctrl-C and the like signal the whole group of a command. Ray's processes would die of it before the workers
    could save; this way only this process hears the signal, and Ray's end with it (they ask Linux for that themselves).
    """
    _register()
    _apart.set()
    try:
        yield
    finally:
        _apart.clear()


@cache
def _register() -> None:
    os.register_at_fork(after_in_child=_leave_the_group)  # there is no way to unregister, hence the flag


def _leave_the_group() -> None:
    if _apart.is_set():
        os.setpgid(0, 0)


def essential_children() -> tuple[int, ...]:
    """The ids of this process's children without which Ray cannot go on."""
    return tuple(child for child in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_essential(child))


def is_alive(process: int) -> bool:
    """Whether a process is there and not merely waiting to be buried."""
    state = _status(process)
    return state is not None and state.state not in "ZX"


class _Status:
    """What /proc/<id>/stat says: the name, in brackets, may hold anything."""

    def __init__(self, line: str) -> None:
        self.name = line[line.index("(") + 1 : line.rindex(")")]
        self.state, parent = line[line.rindex(")") + 1 :].split()[:2]
        self.parent = int(parent)


def _is_essential(process: int) -> bool:
    status = _status(process)
    return status is not None and status.parent == os.getpid() and status.name in ESSENTIAL


def _status(process: int) -> _Status | None:
    try:
        return _Status(Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None
