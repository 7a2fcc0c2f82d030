"""Clients that cost little: requests written ahead, over kept connections, in closed loops or at the times of a fixed schedule."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

PATIENCE = 60.0  # seconds for one answer
MOST = 1_500  # connections


class Load(NamedTuple):
    """What came of many requests."""

    seconds: float
    statuses: Counter[int]  # 0: the connection was lost; -1: not sent
    latencies: list[float]  # seconds, of those that were answered with 200
    waits: int  # refusals that said when to come again
    failed_twice: int  # after one more try
    good: int  # answers with 200 within `seconds`

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds

    @property
    def offered(self) -> float:
        """Requests sent a second."""
        return (self.statuses.total() - self.statuses[-1]) / self.seconds

    @property
    def refused(self) -> int:
        """Requests that were sent and not answered with 200."""
        return self.statuses.total() - self.statuses[200] - self.statuses[-1]

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, 100 * share)) if self.latencies else float("inf")


def request(path: str, body: bytes, headers: Sequence[str] = ("Content-Type: application/json",)) -> bytes:
    """A POST, as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Connections:
    """Kept open and taken by whoever needs one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, content: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body; 0 where the connection is lost."""
        reader, writer = self._take()
        try:
            if reader is None or writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(content)
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                lower = head.lower()
                at = lower.index(b"content-length:") + 15
                body = await reader.readexactly(int(lower[at : lower.index(b"\r", at)]))
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            if writer is not None:
                writer.close()
            return 0, b"", b""
        if b"connection: close" in lower or len(self._free) >= MOST:
            writer.close()
        else:
            self._free.append((reader, writer))
        return int(head[9:12]), head, body

    def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | tuple[None, None]:
        """The one that was used last, of those that the server has not closed meanwhile, as it may where nothing came for a while."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None, None

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def closed(port: int, contents: Sequence[bytes], connections: int, seconds: float, retry: bool = False) -> Load:
    """So many clients, each of which asks again as soon as it is answered."""
    pool, load = Connections(port), _Tally(retry)
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        while time.monotonic() < until:
            await load.ask(pool, contents[number % len(contents)])
            number += connections

    begun = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(connections)))
    pool.close()
    return load.load(time.monotonic() - begun, load.statuses[200])


async def open_loop(
    port: int, contents: Sequence[bytes], rate: float, seconds: float, retry: bool = False, over: asyncio.Event | None = None
) -> Load:
    """Requests at random times (Poisson) that do not wait for answers; more than `MOST` at once are not sent. `over` ends it early."""
    pool, load = Connections(port), _Tally(retry)
    times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    begun, running = time.monotonic(), set[asyncio.Task[None]]()
    for number, at in enumerate(times):
        if over is not None and over.is_set():
            break
        if (wait := begun + at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        if len(running) >= MOST:
            load.statuses[-1] += 1
            continue
        task = asyncio.create_task(load.ask(pool, contents[number % len(contents)]))
        running.add(task)
        task.add_done_callback(running.discard)
    lasted, good = time.monotonic() - begun, load.statuses[200]
    if running:
        await asyncio.wait(running)
    pool.close()
    return load.load(lasted, good)


class _Tally:
    def __init__(self, retry: bool) -> None:
        self.retry = retry
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.waits = self.failed_twice = 0

    async def ask(self, pool: Connections, content: bytes) -> None:
        begun = time.monotonic()
        status, head, _ = await pool.ask(content)
        if self.retry and status != 200:
            await asyncio.sleep(0.5)
            status, head, _ = await pool.ask(content)
            self.failed_twice += status != 200
        self.statuses[status] += 1
        self.waits += status == 429 and b"retry-after" in head.lower()
        if status == 200:
            self.latencies.append(time.monotonic() - begun)

    def load(self, seconds: float, good: int) -> Load:
        return Load(seconds, self.statuses, self.latencies, self.waits, self.failed_twice, good)


def rounds(contestants: dict[str, Callable[[], Load]], turns: int) -> dict[str, list[Load]]:
    """The contestants take turns; the first of each is not counted."""
    found: dict[str, list[Load]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            load = run()
            if turn:
                found[name].append(load)
    return found
