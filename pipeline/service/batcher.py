"""Requests side by side become batches, by what they cost and without waiting for more: whenever a worker is free it takes what is there.

A worker gets its next batch while it still has one, so that it never waits, but only one that is worth it: it takes as long over one value
as over TOGETHER, because it fills up what is less, for the same codes in whatever company.

The queue is bounded, in values and in the seconds that they will take at the rate of late. What nobody waits for any more is dropped before
any work is done for it.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from worldloom.pipeline.service.errors import COME_AGAIN, ServiceError
from worldloom.pipeline.service.values import TOGETHER, Content, Encoded, Refused

MOST_VALUES = 8 * TOGETHER  # of a batch; a call of Ray Serve costs as much as 16 small pictures, on both of its sides
MOST_COST = {"pixels": 1 << 22, "samples": 1 << 21, "characters": 1 << 18, "numbers": 1 << 18}  # of a batch of more than one part
FADING = 0.8  # of what is known of the rate, with each batch


class Bounds(NamedTuple):
    """How much may wait."""

    values: int
    seconds: float


@dataclass(eq=False)
class _Part:
    """Values of one request, at most a batch of them."""

    contents: Sequence[Content]
    cost: int
    result: "asyncio.Future[Encoded]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """One for each tokenizer."""

    def __init__(
        self,
        run: Callable[[list[Content]], Awaitable[Encoded]],
        lanes: int,
        unit: str,
        bounds: Bounds,
        watch: Callable[[int], None] = lambda values: None,
        workers: int = 1,
    ) -> None:
        """`lanes` of `workers`; `watch` hears of the values of every batch."""
        self._run, self._most_cost, self._bounds, self._watch = run, MOST_COST[unit], bounds, watch
        self._free, self._workers, self._lanes_in_all = lanes, workers, lanes
        self._waiting: deque[_Part] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._rate = _Rate()
        self.queued = 0  # values that wait
        self._cost = 0  # that waits or is under way

    async def __call__(self, contents: Sequence[Content], costs: Sequence[int]) -> Encoded:
        """The codes of the values, in order; ServiceError(busy) where the queue is full."""
        self.check_room(len(contents))
        parts = list(self._parts(contents, costs))
        for part in parts:
            self._waiting.append(part)
            self.queued += len(part.contents)
            self._cost += part.cost
        self._start()
        try:
            found = [await part.result for part in parts]
        finally:
            for part in parts:
                part.result.cancel()
        if len(found) == 1:
            return found[0]
        return _joined(found)

    def seconds(self) -> float:
        """How long a value that comes now will wait, by the rate of late."""
        return self._cost / self._rate.value if self._rate.value else 0.0

    def check_room(self, values: int = 1) -> None:
        """ServiceError(busy) where so many more may not wait."""
        wait = self.seconds()
        if self.queued and (self.queued + values > self._bounds.values or wait > self._bounds.seconds):
            raise ServiceError(
                "busy", 429, f"{self.queued} values wait for this tokenizer; come again in a while", None, max(COME_AGAIN, wait)
            )

    def _parts(self, contents: Sequence[Content], costs: Sequence[int]) -> "Sequence[_Part]":
        parts = []
        first = 0
        while first < len(contents):
            last, cost = first + 1, costs[first]
            while last < len(contents) and last - first < MOST_VALUES and cost + costs[last] <= self._most_cost:
                cost += costs[last]
                last += 1
            parts.append(_Part(contents[first:last], cost))
            first = last
        return parts

    def _start(self) -> None:
        while self._free and self._waiting and self._worth_it():
            self._free -= 1
            lane = asyncio.create_task(self._work())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)

    def _worth_it(self) -> bool:
        """Whether a lane that is free takes what waits: at once where a worker has nothing to do, otherwise once it is a full batch."""
        return self._lanes_in_all - self._free < self._workers or self.queued >= TOGETHER

    async def _work(self) -> None:
        while batch := self._take():
            try:
                await self._do(batch)
            finally:
                self._free += 1
            if not self._worth_it():
                return
            self._free -= 1
        self._free += 1

    def _take(self) -> list[_Part]:
        """The parts at the front that go together."""
        batch: list[_Part] = []
        values = cost = 0
        most = min(MOST_VALUES, max(TOGETHER, self.queued - self.queued % TOGETHER))
        while self._waiting:
            part = self._waiting[0]
            if part.result.done():  # whoever asked has left
                self._cost -= part.cost
            elif batch and (values + len(part.contents) > most or cost + part.cost > self._most_cost):
                break
            else:
                batch.append(part)
                values += len(part.contents)
                cost += part.cost
            self._waiting.popleft()
            self.queued -= len(part.contents)
        return batch

    async def _do(self, batch: list[_Part]) -> None:
        cost, begun = sum(part.cost for part in batch), time.monotonic()
        found = await self._found(batch)
        self._cost -= cost
        self._rate.note(cost, begun, time.monotonic())
        for part, each in zip(batch, found, strict=True):
            if part.result.done():
                continue
            if isinstance(each, Exception):
                part.result.set_exception(each)
            else:
                part.result.set_result(each)

    async def _found(self, batch: list[_Part]) -> list[Encoded | Exception]:
        """What comes of each part. Where a batch fails as nobody expected, each goes by itself: the failure is theirs who brought it."""
        contents = [content for part in batch for content in part.contents]
        self._watch(len(contents))
        try:
            encoded = await self._run(contents)
        except ServiceError as error:  # of the worker, not of a value
            return [error for _ in batch]
        except Exception as error:  # it belongs to those who asked, and the lane goes on
            if len(batch) == 1:
                return [error]
            return [error if part.result.done() else (await self._found([part]))[0] for part in batch]
        found: list[Encoded | Exception] = []
        first = 0
        for part in batch:
            last = first + len(part.contents)
            refused = [each._replace(at=each.at - first) for each in encoded.refused if first <= each.at < last]
            found.append(Encoded(encoded.codes[first:last], refused))
            first = last
        return found


class _Rate:
    """Cost a second: of batches that follow each other closely, by the time between their ends."""

    def __init__(self) -> None:
        self._cost = self._seconds = self._last = 0.0

    @property
    def value(self) -> float:
        """0 where nothing is known."""
        return self._cost / self._seconds if self._seconds else 0.0

    def note(self, cost: int, begun: float, ended: float) -> None:
        self._cost = FADING * self._cost + cost
        self._seconds = FADING * self._seconds + max(ended - max(begun, self._last), 1e-6)
        self._last = ended


def _joined(found: Sequence[Encoded]) -> Encoded:
    refused: list[Refused] = []
    before = 0
    for one in found:
        refused += [each._replace(at=each.at + before) for each in one.refused]
        before += len(one.codes)
    if isinstance(found[0].codes, np.ndarray):
        return Encoded(np.concatenate([one.codes for one in found]), refused)
    return Encoded([codes for one in found for codes in one.codes], refused)


def retry_after(seconds: float) -> str:
    """The header: whole seconds, one at least."""
    return str(max(1, math.ceil(seconds)))
