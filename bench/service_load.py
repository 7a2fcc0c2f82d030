"""Clients that cost little: requests written ahead, over kept connections, in closed loops or at the times of a fixed schedule."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np

PATIENCE = 60.0  # seconds for one answer
MOST = 1_500  # requests at once
BEHIND = 16  # requests sent without a look at what is answered, where the schedule is missed
AGAIN = 0.5  # seconds until a request is sent again where the answer, or that there is none, does not say when
LOST = (0, b"", b"")  # status, head and body where there is no answer

Answered = Callable[[int, bytes, bytes], object]
"""Hears of an answer: status, head in small letters, body."""


class Load(NamedTuple):
    """What came of many requests."""

    seconds: float
    statuses: Counter[int]  # 0: the connection was lost; -1: not sent
    latencies: list[float]  # seconds, of those that were answered with 200
    waits: int  # refusals that said when to come again
    failed_twice: Counter[int]  # after one more try, by status
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
    """Kept open and taken by whoever needs one. Callbacks, not tasks: a client takes its share of the machine from what it measures."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._free: list[_Connection] = []
        self._opening = set[asyncio.Task[None]]()

    def send(self, content: bytes, answered: Answered) -> None:
        """Asks; `answered` hears of the answer, once, or, after `PATIENCE` at the latest, that it is `LOST`."""
        while self._free:
            connection = self._free.pop()  # the one that was used last, unless the server has closed it meanwhile
            if connection.open:
                connection.ask(content, partial(self._answered, connection, answered))
                return
        opening = asyncio.create_task(self._open(content, answered))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def ask(self, content: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body; `LOST` where no answer comes."""
        answer = asyncio.get_running_loop().create_future()
        self.send(content, lambda *said: answer.set_result(said))
        found: tuple[int, bytes, bytes] = await answer
        return found

    def close(self) -> None:
        """Those that nobody uses."""
        for connection in self._free:
            connection.transport.abort()

    async def _open(self, content: bytes, answered: Answered) -> None:
        connection = _Connection(content)
        connection.ended = partial(self._answered, connection, answered)
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", self.port)
        except OSError:
            connection.end(*LOST)

    def _answered(self, connection: "_Connection", answered: Answered, status: int, head: bytes, body: bytes) -> None:
        if connection.open:
            if b"connection: close" in head:
                connection.transport.close()
            else:
                self._free.append(connection)
        answered(status, head, body)


class _Connection(asyncio.Protocol):
    """One request at a time; the first is sent as soon as it is open, since a server may answer before anybody else knows that it is."""

    def __init__(self, content: bytes) -> None:
        self.open = False
        self.ended: Answered | None = None  # hears of the answer
        self._first = content
        self._got, self._head, self._whole = bytearray(), 0, 0  # bytes of the head, and of the answer; 0 where they are not known yet
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.open = True
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._ask(self._first)

    def ask(self, content: bytes, ended: Answered) -> None:
        self.ended = ended
        self._ask(content)

    def _ask(self, content: bytes) -> None:
        self._waiting = asyncio.get_running_loop().call_later(PATIENCE, self.transport.abort)
        self.transport.write(content)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if not self._whole and (end := self._got.find(b"\r\n\r\n")) >= 0:
            length = _header(bytes(self._got[:end]).lower(), b"content-length")
            if not length.isdigit():  # nothing that is asked here is answered without
                self.transport.abort()
                return
            self._head = end + 4
            self._whole = self._head + int(length)
        if self._whole and len(self._got) >= self._whole:
            head, body = bytes(self._got[: self._head]).lower(), bytes(self._got[self._head :])
            self._got, self._whole = bytearray(), 0
            self.end(int(head[9:12]), head, body)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self.end(*LOST)

    def end(self, status: int, head: bytes, body: bytes) -> None:
        """Says what came of the request, where there is one."""
        if self._waiting is not None:
            self._waiting.cancel()
        ended, self.ended = self.ended, None
        if ended is not None:
            ended(status, head, body)


def _header(head: bytes, name: bytes) -> bytes:
    """In a head of small letters; b"" where it is not there."""
    _, _, behind = head.partition(b"\r\n" + name + b":")
    return behind.partition(b"\r")[0].strip()


async def closed(port: int, contents: Sequence[bytes], connections: int, seconds: float, retry: bool = False) -> Load:
    """So many clients, each of which asks again as soon as it is answered."""
    pool, load = Connections(port), _Tally(retry)
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        if time.monotonic() < until:
            load.send(pool, contents[number % len(contents)], partial(client, number + connections))

    begun = time.monotonic()
    for number in range(connections):
        client(number)
    await asyncio.sleep(seconds)
    await load.over(pool)
    return load.load(time.monotonic() - begun, load.statuses[200])


async def open_loop(
    port: int, contents: Sequence[bytes], rate: float, seconds: float, retry: bool = False, over: asyncio.Event | None = None
) -> Load:
    """Requests at random times (Poisson) that do not wait for answers; more than `MOST` at once are not sent. `over` ends it early."""
    pool, load = Connections(port), _Tally(retry)
    times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds))).tolist()
    begun = time.monotonic()
    for number, at in enumerate(times):
        if over is not None and over.is_set():
            break
        if (wait := begun + at - time.monotonic()) > 0 or number % BEHIND == 0:  # behind its times or not, it hears of answers
            await asyncio.sleep(max(wait, 0))
        if load.running >= MOST:
            load.statuses[-1] += 1
        else:
            load.send(pool, contents[number % len(contents)])
    lasted, good = time.monotonic() - begun, load.statuses[200]
    await load.over(pool)
    return load.load(lasted, good)


class _Tally:
    def __init__(self, retry: bool) -> None:
        self.retry = retry
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.failed_twice: Counter[int] = Counter()
        self.waits = 0
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def send(self, pool: Connections, content: bytes, then: Callable[[], None] = lambda: None) -> None:
        """Counts what comes of a request; `then` is called behind it."""
        begun = time.monotonic()
        self.running += 1
        self._idle.clear()

        def first(status: int, head: bytes, body: bytes) -> None:
            if self.retry and status != 200:
                asyncio.get_running_loop().call_later(_told_to_wait(head), pool.send, content, second)
            else:
                done(status, head)

        def second(status: int, head: bytes, body: bytes) -> None:
            if status != 200:
                self.failed_twice[status] += 1
            done(status, head)

        def done(status: int, head: bytes) -> None:
            self.statuses[status] += 1
            self.waits += status == 429 and _header(head, b"retry-after") != b""
            if status == 200:
                self.latencies.append(time.monotonic() - begun)
            self.running -= 1
            then()
            if not self.running:
                self._idle.set()

        pool.send(content, first)

    async def over(self, pool: Connections) -> None:
        """Waits until all is answered or lost."""
        await self._idle.wait()
        pool.close()

    def load(self, seconds: float, good: int) -> Load:
        return Load(seconds, self.statuses, self.latencies, self.waits, self.failed_twice, good)


def _told_to_wait(head: bytes) -> float:
    """Seconds until a request is sent again."""
    try:
        return float(_header(head, b"retry-after"))
    except ValueError:
        return AGAIN


def rounds(contestants: dict[str, Callable[[], Load]], turns: int) -> dict[str, list[Load]]:
    """The contestants take turns; the first of each is not counted."""
    found: dict[str, list[Load]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            load = run()
            if turn:
                found[name].append(load)
    return found
