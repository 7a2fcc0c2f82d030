"""Answers that are kept for a while under their Idempotency-Key, so that a request that is sent again has one effect and one answer.

What has an effect is done to its end, whether or not whoever asked still waits. Where an answer is not kept, its key still is: what was
done is not done again.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.types import Message

from worldloom.pipeline.service.errors import ServiceError

SECONDS = 600.0  # that a key is kept, which is as long as what is done under it may take
MOST = 6_144  # keys of a tenant: 10 a second, all that time, and a few
MOST_ANSWER = 4 << 20  # bytes of an answer that is kept
MOST_BYTES = 64 << 20  # of all of a tenant together


class Answer(NamedTuple):
    """What was answered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass(eq=False)
class _Entry:
    digest: bytes
    answer: asyncio.Future[Answer] | None  # None: it was given, and is not kept
    ended: float | None = None  # when
    bytes: int = 0  # that are kept


@dataclass(eq=False)
class _Kept:
    entries: dict[str, _Entry] = field(default_factory=dict)  # by key; those that have ended in the order in which they did
    bytes: int = 0  # of their answers


class Replays:
    """Each tenant's by themselves; the oldest are forgotten first, and none while it is being worked on."""

    def __init__(self, now: Callable[[], float] = time.monotonic, most_answer: int = MOST_ANSWER, most_bytes: int = MOST_BYTES) -> None:
        self._now, self._most_answer, self._most_bytes = now, most_answer, most_bytes
        self._kept: defaultdict[str, _Kept] = defaultdict(_Kept)  # by tenant

    def once(
        self, tenant: str, key: str, digest: bytes, work: Callable[[], Coroutine[Any, Any, Answer]]
    ) -> tuple[asyncio.Future[Answer], bool]:
        """The answer that is made, or was, and whether this call began it; whoever waits for it may leave, and it is made all the same.

        ServiceError for another request under the key, and for an answer that is no longer there.
        """
        for each in self._kept.values():
            self._forget(each)
        kept = self._kept[tenant]
        entry = kept.entries.get(key)
        if entry is None:
            return self._begin(kept, key, digest, work), True
        if entry.digest != digest:
            raise ServiceError(
                "idempotency_conflict", 409, "this Idempotency-Key was used for another request; use a new one", "Idempotency-Key"
            )
        if entry.answer is None:
            raise ServiceError(
                "answer_gone",
                410,
                f"this was done under its Idempotency-Key, and is not done again; answers of up to {self._most_answer} bytes are kept, "
                "as long as there is room: ask how it stands, and go on under a new key",
                "Idempotency-Key",
            )
        return entry.answer, False

    def _begin(self, kept: _Kept, key: str, digest: bytes, work: Callable[[], Coroutine[Any, Any, Answer]]) -> asyncio.Future[Answer]:
        made = asyncio.create_task(asyncio.wait_for(work(), SECONDS))
        entry = kept.entries[key] = _Entry(digest, made)
        made.add_done_callback(lambda _: self._ended(kept, key, entry, made))
        return made

    def _ended(self, kept: _Kept, key: str, entry: _Entry, made: asyncio.Task[Answer]) -> None:
        """Keeps what is worth repeating; where nothing was done, as in a refusal, or nobody knows how far, the key is as good as new."""
        del kept.entries[key]
        failed = None if made.cancelled() else made.exception()
        too_long = isinstance(failed, TimeoutError)
        if not too_long and (made.cancelled() or failed is not None or made.result().status >= 400):
            return
        kept.entries[key] = entry
        entry.ended = self._now()
        if too_long or len(made.result().body) > self._most_answer:
            entry.answer = None
        else:
            entry.bytes = len(made.result().body)
            kept.bytes += entry.bytes
            self._forget(kept)

    def _forget(self, kept: _Kept) -> None:
        """Drops what has expired; the oldest keys, where there are too many; the oldest answers, where they are too large together."""
        now, gone = self._now(), list[str]()
        for key, entry in kept.entries.items():
            if entry.ended is None:
                continue
            if now - entry.ended > SECONDS or len(kept.entries) - len(gone) > MOST:
                gone.append(key)
            elif kept.bytes > self._most_bytes:
                entry.answer = None
            else:
                break
            kept.bytes -= entry.bytes
            entry.bytes = 0
        for key in gone:
            del kept.entries[key]


class Recording:
    """Takes what an application sends, as a whole."""

    def __init__(self) -> None:
        self._start: Message = {}
        self._body: list[bytes] = []

    async def send(self, message: Message) -> None:
        """One message of the answer."""
        if message["type"] == "http.response.start":
            self._start = message
        else:
            self._body.append(message.get("body", b""))

    @property
    def answer(self) -> Answer:
        """What was sent."""
        return Answer(self._start["status"], list(self._start.get("headers", ())), b"".join(self._body))
