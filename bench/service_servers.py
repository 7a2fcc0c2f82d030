"""Servers in processes of their own, ended with all that they started; and what /proc says of them."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

START = 300.0  # seconds that a server may take to begin
PORTS = range(20_000, 32_000)
END = 90.0  # seconds that it may take to end
BACK = 120.0  # seconds that replicas may take to be replaced


class Server(NamedTuple):
    """One that answers."""

    port: int
    process: int  # its id
    said: BinaryIO  # what it wrote on stdout and stderr

    def length(self) -> int:
        """Bytes that it has written so far."""
        return os.fstat(self.said.fileno()).st_size

    def has_said(self, words: bytes, since: int) -> bool:
        """Whether it has written them behind its first `since` bytes."""
        return words in os.pread(self.said.fileno(), self.length() - since, since)


@contextlib.contextmanager
def server(command: Sequence[str], ready: str, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """`command` with a free port behind it, once GET `ready` answers with 200."""
    port = _free_port()
    with tempfile.TemporaryFile() as said:
        # A group of its own: what Ray signals to the group of its driver must not reach the bench. Not a session, which would have a share
        # of the CPU of its own where Linux groups by sessions.
        process = subprocess.Popen(
            [*command, str(port)], stdout=said, stderr=said, env={**os.environ, **(environment or {})}, process_group=0
        )
        try:
            until = time.monotonic() + START
            while b" 200 " not in _get(port, ready):
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start: {said.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield Server(port, process.pid, said)
        finally:
            _end(process)


def _free_port() -> int:
    """Below those that Linux gives out by itself: Ray's processes, which begin before the service listens, take many of them."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def memory() -> float:
    """MB of the fronts and of Ray Serve's processes: what is theirs alone."""
    total = 0.0
    for process in descendants():
        with contextlib.suppress(OSError):
            if b"serve" in (process / "cmdline").read_bytes().lower():
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
    return total


def counts() -> tuple[int, int]:
    """Open descriptors and processes."""
    processes, descriptors = descendants(), 0
    for process in processes:
        with contextlib.suppress(OSError):
            descriptors += len(list((process / "fd").iterdir()))
    return descriptors, len(processes)


def kill_replica(served: Server, replicas: int) -> None:
    """Kills one once all are there."""
    _wait_for(lambda: len(_replicas()) >= replicas, f"{replicas} replicas")
    os.kill(_replicas()[0], signal.SIGKILL)


def update(served: Server, replicas: int) -> None:
    """Replaces all replicas, and waits until the service says that it has."""
    before = served.length()
    os.kill(served.process, signal.SIGHUP)
    _wait_for(lambda: served.has_said(b'"event": "updated"', before), "an update")


def descendants(root: int | None = None) -> list[Path]:
    """/proc of all processes that a process, by default this one, has started, and that they have."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, todo = [], [root or os.getpid()]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return [Path("/proc") / str(number) for number in found]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks it to end; what it leaves behind is killed, each process by the id and the start that it had."""
    started = {path: _begun(path) for path in descendants(process.pid)}
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for path, begun in started.items():
        if begun and _begun(path) == begun:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name), signal.SIGKILL)


def _begun(process: Path) -> str:
    """When it began, in ticks; "" where it is gone."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _replicas() -> list[int]:
    """Those that can be asked: a replica is a process long before."""
    sockets = Path("/proc/self/net/unix").read_text().splitlines()  # by the names that they were bound to
    asked = {Path(line.split()[-1]).stem for line in sockets if line.endswith(".new")}
    return sorted(int(process.name) for process in descendants() if process.name in asked)


def _wait_for(there: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + BACK
    while not there():
        if time.monotonic() > until:
            raise RuntimeError(f"there was no sign of {what} for {BACK:.0f} seconds")
        time.sleep(0.2)


def _get(port: int, path: str) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(200)
    except OSError:
        return b""
