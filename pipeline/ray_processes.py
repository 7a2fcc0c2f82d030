"""The processes of a Ray of our own: deaf to signals that are meant for the run as a whole, watched, and ended in the end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

ESSENTIAL = ("gcs_server", "raylet")  # without them Ray waits a minute and then ends this process
FOR_THE_RUN = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
LOOK_EVERY = 0.02  # seconds

_deaf = threading.Event()


class Process(NamedTuple):
    """What /proc/<id>/stat says of a process."""

    id: int
    name: str
    state: str  # one letter; Z and X are dead
    parent: int


@contextmanager
def deaf_children() -> Iterator[None]:
    """While it lasts, processes that are started, and their children, do not hear the signals that ask a run to stop.

    Ctrl-C and `timeout` signal the whole group of a command, schedulers all processes of a job. Ray's would die of it before
    the workers could save. This way only this process hears the signal; Ray's end with it, they ask Linux for that themselves.
    """
    _register()
    _deaf.set()
    try:
        yield
    finally:
        _deaf.clear()


@contextmanager
def ended_when_asked() -> Iterator[None]:
    """While it lasts, deaf children that are asked to end, end at once, instead of after the second that Ray gives each."""
    over = threading.Event()
    helper = threading.Thread(target=_end_asked, args=(over,), daemon=True)
    helper.start()
    try:
        yield
    finally:
        over.set()
        helper.join()


def essential_children() -> tuple[int, ...]:
    """The ids of this process's children without which Ray cannot go on."""
    return tuple(child.id for child in _children() if child.name in ESSENTIAL)


def is_alive(process: int) -> bool:
    """Whether a process is there and not merely waiting to be buried."""
    known = _read(process)
    return known is not None and known.state not in "ZX"


@cache
def _register() -> None:
    os.register_at_fork(after_in_child=_stop_listening)  # there is no way to unregister, hence the flag


def _stop_listening() -> None:
    if _deaf.is_set():
        signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_RUN)


def _end_asked(over: threading.Event) -> None:
    children = [child.id for child in _children()]
    while not over.wait(LOOK_EVERY):
        for child in children:
            if _is_asked_to_end(child):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


def _is_asked_to_end(process: int) -> bool:
    """Whether a SIGTERM waits for a process that does not hear it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    waiting = next((int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:")), 0)
    return bool(waiting >> (signal.SIGTERM - 1) & 1)


def _children() -> Iterator[Process]:
    for process in map(_read, map(int, filter(str.isdigit, os.listdir("/proc")))):
        if process is not None and process.parent == os.getpid():
            yield process


def _read(process: int) -> Process | None:
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    opening, closing = line.index("("), line.rindex(")")  # the name between them may hold anything
    state, parent = line[closing + 1 :].split()[:2]
    return Process(process, line[opening + 1 : closing], state, int(parent))
