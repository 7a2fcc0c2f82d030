"""Who waits for a worker: so many calls are under way at a time, and no more wait behind them than a bound."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worldloom.pipeline.service.errors import COME_AGAIN, ServiceError

FADING = 0.8  # of what is known of how long a call takes, with each call


class Line:
    """One for the calls of each worker, one for its streams."""

    def __init__(self, places: int, most: int) -> None:
        """`places`: calls under way at a time; at most `most` wait for one of them."""
        self._places, self._most = places, most
        self._free = asyncio.Semaphore(places)
        self._asked = 0  # calls that are under way or wait
        self._taken = 0.0  # seconds of a call, of late

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return max(0, self._asked - self._places)

    def seconds(self) -> float:
        """How long a call that comes now will wait, by those of late."""
        return (self.waiting + 1) * self._taken / self._places

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """One of the places, in the order of asking; ServiceError(busy) where too many wait."""
        if self._asked >= self._places + self._most:
            raise ServiceError(
                "busy", 429, f"{self.waiting} requests wait for this; come again in a while", None, max(COME_AGAIN, self.seconds())
            )
        self._asked += 1
        try:
            async with self._free:
                begun = time.monotonic()
                try:
                    yield
                finally:
                    self._taken = FADING * self._taken + (1 - FADING) * (time.monotonic() - begun)
        finally:
            self._asked -= 1
