"""The wish to stop: a flag in the driver, a file for workers elsewhere."""

import threading
import time
from pathlib import Path

LOOK_EVERY = 0.1  # seconds; workers ask at every step, the file system need not be


class Stop:
    """Set once, for good; `path` tells other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._flag = threading.Event()

    def set(self) -> None:
        """Asks everybody to stop."""
        self._flag.set()
        self.path.touch()

    def is_set(self) -> bool:
        return self._flag.is_set()


class StopFiles:
    """Looks for the files of `Stop`s, at most every LOOK_EVERY seconds; one of them is enough."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self._looked = -LOOK_EVERY
        self._seen = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._seen and now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._seen = any(path.exists() for path in self.paths)
        return self._seen
