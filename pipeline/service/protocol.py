"""HTTP as uvicorn speaks it, with bounds on what comes before the application: time and size of heads, number of connections."""

import asyncio
import json
import logging
import time
import uuid
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.guard import HEADERS, error_body, error_headers
from worldloom.pipeline.service.limits import Limits

log = logging.getLogger("worldloom.service")

TOO_MUCH = ServiceError("head_too_large", 431, "the head of this request has more bytes than it may; send less in its headers and its path")
TOO_LATE = ServiceError("head_too_slow", 408, "no whole head of a request came in time; open a connection when there is something to send")
TOO_MANY = ServiceError("busy", 429, "too many connections are open; come again in a while, and keep fewer", None, 1.0)
MALFORMED = ServiceError("http_invalid", 400, "this is no request of HTTP/1.1, or one that can be read in two ways")
FRAMING = {b"content-length", b"transfer-encoding"}
ONCE = FRAMING | {b"host"}


def bounded(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.Config(http=...)`."""
    return type("BoundedProtocol", (_Bounded,), {"limits": limits})


class _Bounded(HttpToolsProtocol):
    """Counts the bytes of a head until it is whole; a head that is not there in time ends the connection, and so does an answer that nobody
    reads.
    """

    limits: Limits
    _head = 0  # bytes of the head that is being received
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None  # when whoever does not read an answer is given up
    _seen: set[bytes]
    _size = 0  # bytes of the head's parts, as they are parsed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._end(TOO_MANY)
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._deadline is not None:  # all of it belonged to a head that is not whole yet
            self._head += len(data)
            if self._head > self.limits.header_bytes:
                self._end(TOO_MUCH)

    def send_400_response(self, msg: str) -> None:
        """What the parser does not take; `msg` is uvicorn's line for all of it."""
        self._end(MALFORMED)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._seen, self._size = set(), 0
        self.scope["state"]["abort"] = self.transport.abort

    def on_url(self, url: bytes) -> None:
        self._size += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._size += len(name) + len(value) + 4
        lowered = name.lower()
        if self._size > self.limits.header_bytes:
            self._end(TOO_MUCH)
        elif lowered in ONCE:
            # Two readers could take two different bodies from one that has two lengths, or two ways to say it.
            if lowered in self._seen or self._seen | {lowered} >= FRAMING:
                self._end(MALFORMED)
            self._seen.add(lowered)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._stop_waiting()
        self._stop_watching()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        closing = self.transport.is_closing()
        if not closing and not self.cycle.response_complete:
            return  # another request has come meanwhile, and is worked on
        if size := self.transport.get_write_buffer_size():
            seconds = self.limits.send_seconds + size / self.limits.receive_rate
            self._unread = self.loop.call_later(seconds, self._abort)
        if not closing:
            self._expect_head()

    def _abort(self) -> None:
        """Closing would wait for whoever does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _expect_head(self) -> None:
        self._stop_waiting()
        self._head = 0
        self._deadline = self.loop.call_later(self.limits.header_seconds, self._end, TOO_LATE)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self, error: ServiceError) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            request_id = uuid.uuid4().hex
            self.transport.write(_answer(error, request_id))
            self.transport.close()
            log.info(json.dumps({"time": round(time.time(), 3), "request_id": request_id, "status": error.status, "error": error.code}))


def _answer(error: ServiceError, request_id: str) -> bytes:
    """A whole answer, behind which the connection ends."""
    body = error_body(error, request_id)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    headers += [(b"x-request-id", request_id.encode()), *error_headers(error), *HEADERS]
    lines = [b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode()), *(b"%s: %s" % each for each in headers)]
    return b"\r\n".join([*lines, b"", body])
