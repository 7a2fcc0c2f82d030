"""The folder in which a Ray of our own keeps its sockets and logs while it runs."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "worldloom-"
SOCKET_PATH = 107  # bytes that Linux allows for the name of a Unix socket
SESSION_NAME = len("/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.0000")


class Session:
    """A new folder with a short name. The kernel says whether its owner lives, so what killed runs left is removed here, too."""

    def __init__(self) -> None:
        for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):
            _remove_orphans(Path(parent))
        self.folder = tempfile.mkdtemp(prefix=PREFIX)
        if len(self.folder) + SESSION_NAME > SOCKET_PATH:
            os.rmdir(self.folder)
            self.folder = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
        self._owner = os.open(_owner(Path(self.folder)), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._owner, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Removes the folder; once."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._owner)


def _remove_orphans(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            owner = os.open(_owner(folder), os.O_RDWR)
        except OSError:  # somebody else's, or just being made
            continue
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # its run lives
            continue
        finally:
            os.close(owner)


def _owner(folder: Path) -> Path:
    return folder / "owner"
