"""Signals: the first asks the run to stop where it loses nothing, the second ends it at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from worldloom.pipeline.stop import Stop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 3  # exit code of a run that was stopped and can go on


@contextmanager
def interruptible(stop: Stop, say: Callable[[str], None]) -> Iterator[None]:
    """While it lasts, signals set `stop`. Only a main thread may take signals; elsewhere the caller sets `stop` itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)
        stop.set()
        say(f"{signal.Signals(number).name}: stopping at the next safe point; once more to stop at once")

    # Under nohup the terminal's end is to be survived, not obeyed.
    heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_file(run_folder: Path) -> Path:
    """The file whose existence asks the workers of a run to stop, on whatever machine they are."""
    return run_folder / "stop"
