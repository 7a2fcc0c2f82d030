"""Answers that are kept for a while under their Idempotency-Key, so that a request that is sent again has one effect and one answer."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from worldloom.pipeline.service.errors import ServiceError

MOST, SECONDS = 4_096, 600.0  # answers, and how long each is kept
MOST_BYTES = 1 << 20  # of an answer that is kept; a request whose answer is larger is done again, which is why it must have no effect


class Answer(NamedTuple):
    """What was answered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class _Entry:
    digest: bytes
    begun: float
    answer: "asyncio.Future[Answer | None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Replays:
    """Of all tenants, the oldest forgotten first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    async def begin(self, tenant: str, key: str, digest: bytes) -> Answer | None:
        """The answer to the same request; None: it is new, and `end` must be called. ServiceError for another request under the key."""
        while (entry := self._find((tenant, key))) is not None:
            if entry.digest != digest:
                raise ServiceError(
                    "idempotency_conflict", 409, "this Idempotency-Key was used for another request; use a new one", "Idempotency-Key"
                )
            answer = await asyncio.shield(entry.answer)
            if answer is not None:
                return answer
        self._entries[tenant, key] = _Entry(digest, time.monotonic())
        while len(self._entries) > MOST:
            self._drop(next(iter(self._entries)))
        return None

    def end(self, tenant: str, key: str, answer: Answer | None) -> None:
        """None: nothing that would be worth repeating; whoever waits for it tries on its own."""
        entry = self._entries.get((tenant, key))
        if entry is None:
            return
        if not entry.answer.done():
            entry.answer.set_result(answer)
        if answer is None:
            self._entries.pop((tenant, key), None)

    def _find(self, key: tuple[str, str]) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None and time.monotonic() - entry.begun > SECONDS and entry.answer.done():
            self._drop(key)
            return None
        return entry

    def _drop(self, key: tuple[str, str]) -> None:
        entry = self._entries.pop(key)
        if not entry.answer.done():
            entry.answer.set_result(None)


class Recording:
    """What goes out through `send`, kept as long as it is small."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self._start: Any = None
        self._body = bytearray()

    def note(self, message: Any) -> None:
        """One message of the answer."""
        if message["type"] == "http.response.start":
            self._start = message
        elif self._start is not None:
            self._body += message.get("body", b"")
            if len(self._body) > MOST_BYTES:
                self._start = None
            elif not message.get("more_body", False) and self._start["status"] < 429:
                self.answer = Answer(self._start["status"], list(self._start.get("headers", ())), bytes(self._body))
