"""Calls of workers on this machine over Unix sockets, one process to the other: what a handle of Ray Serve takes some milliseconds for.

Serve still places the workers, looks after them and replaces them. A worker opens a `Station` once it may be asked; the front finds it by
its socket in a folder of theirs alone, and holds connections to it, each with a thread of the worker's at its other end.

What goes over them are values of JSON, bytes and arrays: a head in JSON, and behind it, as it says, the bytes of the latter two.
"""

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from worldloom.pipeline.service.errors import place_of

log = logging.getLogger("worldloom.service")

ENDING = ".sock"  # of sockets that can be asked
LOOK = 0.25  # seconds between looks for workers that have come
MOST_QUEUED = 64  # connections that a station has not accepted yet
_LENGTHS = struct.Struct("<QQ")  # of the head, and of what is behind it


class Lost(Exception):
    """A connection ended before the answer came: its worker is gone."""


class Failed(Exception):
    """The worker raised, what nobody expected; its own log says where."""


class Station:
    """The worker's end: calls come in, answers go out, in as many threads as there are connections."""

    def __init__(self, folder: Path, answer: Callable[[Any], Any]) -> None:
        """`answer` gets what was asked in lists for tuples, and its answer goes back so."""
        path = folder / f"{os.getpid()}{ENDING}"
        self._path, self._answer = path, answer
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Lock()
        self._closed = False
        self._listening = socket.socket(socket.AF_UNIX)
        coming = path.with_suffix(".new")  # listens before anybody finds it
        self._listening.bind(str(coming))
        self._listening.listen(MOST_QUEUED)
        os.rename(coming, path)
        threading.Thread(target=self._accept, name="station", daemon=True).start()

    def close(self, seconds: float) -> None:
        """No more calls; those that are under way are answered."""
        self._path.unlink(missing_ok=True)
        with self._closing:
            if self._closed:
                return
            self._closed = True
            for connection in self._open:
                _shut(connection, socket.SHUT_RD)  # its thread ends behind the call that it has
        _shut(self._listening, socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(seconds)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with self._closing:
                if self._closed:
                    connection.close()
                    return
                self._open.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), name="wire", daemon=True)
                self._threads = [one for one in self._threads if one.is_alive()] + [thread]
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while (asked := _receive(connection)) is not None:
                connection.sendall(self._answered(*asked))
        with self._closing:
            self._open.discard(connection)

    def _answered(self, head: bytearray, rest: bytearray) -> bytes:
        try:
            return packed((True, self._answer(unpacked(head, rest))))
        except Exception as error:  # the connection and those behind it go on
            log.error(json.dumps({"event": "call_failed", "error": place_of(error)}))
            return packed((False, type(error).__name__))


class Wires:
    """The front's end, of all workers that are called the same."""

    def __init__(self, folder: Path, lanes: int) -> None:
        """`lanes`: connections to each worker."""
        self.folder, self._lanes = folder, lanes
        self._open: dict[str, list[_Wire]] = {}  # by the worker's socket
        self._looking: asyncio.Task[None] | None = None

    @property
    def free(self) -> int:
        """Calls that could begin now."""
        return sum(not wire.busy for wires in self._open.values() for wire in wires)

    def take(self) -> "_Wire | None":
        """A connection for one call, to the worker that has the fewest; None where none is free."""
        for wire in [wire for wires in self._open.values() for wire in wires if not wire.busy and wire.gone()]:
            self._let_go(wire)
        least = min(self._open.values(), key=lambda wires: (all(wire.busy for wire in wires), sum(wire.busy for wire in wires)), default=[])
        for wire in least:
            if not wire.busy:
                wire.busy = True
                return wire
        return None

    async def call(self, wire: "_Wire", asked: Any) -> Any:
        """What the worker answers; Lost, Failed."""
        try:
            done, answer = await wire.ask(asked)
        except BaseException:
            self._let_go(wire)  # an answer that nobody waits for would be taken for the next one's
            raise
        wire.busy = False
        if not done:
            raise Failed(answer)
        return answer

    async def look(self) -> None:
        """Connects to the workers that have come since; goes on by itself from then on."""
        await self._connect()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_again())

    async def close(self) -> None:
        """Lets go of all connections."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        for wire in [wire for wires in self._open.values() for wire in wires]:
            self._let_go(wire)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            await self._connect()

    async def _connect(self) -> None:
        try:
            await self._connect_all()
        except OSError as error:  # too many files are open, say; handles do meanwhile
            log.error(json.dumps({"event": "look_failed", "error": place_of(error)}))

    async def _connect_all(self) -> None:
        there = sorted(name for name in os.listdir(self.folder) if name.endswith(ENDING))
        self._open = {name: wires for name, wires in self._open.items() if wires or name in there}
        for name in there:
            wires = self._open.setdefault(name, [])
            try:
                while len(wires) < self._lanes:
                    wires.append(await _Wire.to(self.folder / name))
            except ConnectionRefusedError:  # it was killed, and its name stayed
                (self.folder / name).unlink(missing_ok=True)
            except FileNotFoundError:  # it has just ended
                continue

    def _let_go(self, wire: "_Wire") -> None:
        wire.close()
        for wires in self._open.values():
            if wire in wires:
                wires.remove(wire)


class _Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.busy = False

    @classmethod
    async def to(cls, path: Path) -> "_Wire":
        return cls(*await asyncio.open_unix_connection(path))

    def gone(self) -> bool:
        return self._reader.at_eof() or self._writer.is_closing()

    async def ask(self, asked: Any) -> tuple[bool, Any]:
        """Whether the worker could answer, and what, or what it raised."""
        try:
            self._writer.write(packed(asked))
            await self._writer.drain()
            head, rest = _LENGTHS.unpack(await self._reader.readexactly(_LENGTHS.size))
            done, answer = unpacked(await self._reader.readexactly(head), bytearray(await self._reader.readexactly(rest)))
            return done, answer
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Lost from error

    def close(self) -> None:
        self._writer.close()


def packed(value: Any) -> bytes:
    """Of None, numbers, strings, bytes, arrays, and lists and tuples of them, with their lengths before them."""
    parts: list[bytes] = []

    def plain(one: Any) -> Any:
        if isinstance(one, bytes):
            parts.append(one)
            return {"bytes": len(one)}
        if isinstance(one, np.ndarray):
            parts.append(one.tobytes())
            return {"type": one.dtype.str, "shape": one.shape}
        return [plain(each) for each in one] if isinstance(one, list | tuple) else one

    head = json.dumps(plain(value)).encode()
    return b"".join([_LENGTHS.pack(len(head), sum(map(len, parts))), head, *parts])


def unpacked(head: bytes | bytearray, rest: bytearray) -> Any:
    """What was packed, in lists."""
    at = 0

    def taken(about: dict[str, Any]) -> bytes | np.ndarray[Any, Any]:
        nonlocal at
        begun = at
        if "bytes" in about:
            at += about["bytes"]
            return bytes(rest[begun:at])
        dtype, shape = np.dtype(about["type"]), about["shape"]
        count = math.prod(shape)
        at += count * dtype.itemsize
        return np.frombuffer(rest, dtype, count, begun).reshape(shape) if count else np.zeros(shape, dtype)

    return json.loads(head, object_hook=taken)


def _receive(connection: socket.socket) -> tuple[bytearray, bytearray] | None:
    """A head and what is behind it; None where the other side has ended."""
    lengths = _exactly(connection, _LENGTHS.size)
    if lengths is None:
        return None
    head, rest = (_exactly(connection, length) for length in _LENGTHS.unpack(lengths))
    return None if head is None or rest is None else (head, rest)


def _exactly(connection: socket.socket, length: int) -> bytearray | None:
    content = bytearray(length)
    view, got = memoryview(content), 0
    while got < length:
        count = connection.recv_into(view[got:])
        if not count:
            return None
        got += count
    return content


def _shut(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(how)
