"""HTTP as uvicorn speaks it, with bounds on what comes before the application: time and size of heads, number of connections.

What there is no room for is sent away here, too, and then not listened to for a while: with a task and an application around it a refusal
costs nearly as much as an answer, and a service that is asked for far more than it can do would do little else.
"""

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from worldloom.pipeline.service.errors import COME_AGAIN, ServiceError
from worldloom.pipeline.service.guard import HEADERS, Gate, error_body, error_headers
from worldloom.pipeline.service.limits import Limits

TOO_MUCH = ServiceError("head_too_large", 431, "the head of this request has more bytes than it may; send less in its headers and its path")
TOO_LATE = ServiceError("head_too_slow", 408, "no whole head of a request came in time; open a connection when there is something to send")
TOO_MANY = ServiceError("busy", 429, "too many connections are open; come again in a while, and keep fewer", None, COME_AGAIN)
MALFORMED = ServiceError("http_invalid", 400, "this is no request of HTTP/1.1, or one that can be read in two ways")
FRAMING = {b"content-length", b"transfer-encoding"}
ONCE = FRAMING | {b"host"}


def bounded(gate: Gate) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.Config(http=...)`."""
    return type("BoundedProtocol", (_Bounded,), {"gate": gate, "limits": gate.limits})


class _Bounded(HttpToolsProtocol):
    """Counts the bytes of a head until it is whole; a head that is not there in time ends the connection, and so does an answer that nobody
    reads.
    """

    gate: Gate
    limits: Limits
    _busy: ServiceError | None = None  # what the request that is being received will be told
    _swallowed = 0  # bytes of its body
    _resting: asyncio.TimerHandle | None = None  # until when nobody listens to a client that was refused
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
        if self._resting is not None:
            self._resting.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._deadline is not None and self._busy is None:  # all of it belonged to a head that is not whole yet
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
        self._busy = self._refusal()
        if self._busy is not None:
            self._swallowed = 0
            return  # with the deadline of its head, which its body, too, has to keep
        self._stop_waiting()
        self._stop_watching()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._busy is not None:
            self._swallowed += len(body)
            if self._swallowed > self.limits.body_bytes:
                self._end(self._busy)
        elif not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        if self._busy is None:
            super().on_message_complete()
        else:
            if self.parser.should_keep_alive() and self._resting is None and 2 * len(self.connections) <= self.limits.connections:
                self._say(self._busy)
                self._rest()
            else:
                self._end(self._busy)
            self._busy = None

    def _rest(self) -> None:
        """Lets a client that was told to come again in a while wait that long: what it sends meanwhile stays in the kernel, where it costs
        nothing. Nor is it seen that it has left, so this is for no more than half of the connections that there may be."""
        self._stop_waiting()
        self.flow.pause_reading()
        self._resting = self.loop.call_later(COME_AGAIN, self._listen)

    def _listen(self) -> None:
        self._resting = None
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    @property
    def _path(self) -> str:
        return self.url.partition(b"?")[0].decode("latin-1")

    def _refusal(self) -> ServiceError | None:
        """Of a request that nothing but room stands against as far as is seen here; any other is judged by the application."""
        idle = (self.cycle is None or self.cycle.response_complete) and not self.transport.get_write_buffer_size()
        if not idle or self.gate.draining or self.expect_100_continue or self.parser.get_method() != b"POST":
            return None
        return self.gate.busy("POST", self._path)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        closing = self.transport.is_closing()
        if not closing and not self.cycle.response_complete:
            return  # another request has come meanwhile, and is worked on
        self._watch()
        if not closing:
            self._expect_head()

    def _watch(self) -> None:
        """Gives up, in the end, whoever does not read what was written."""
        self._stop_watching()
        if size := self.transport.get_write_buffer_size():
            seconds = self.limits.send_seconds + size / self.limits.receive_rate
            self._unread = self.loop.call_later(seconds, self._abort)

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
        self._deadline = self.loop.call_later(self.limits.header_seconds, self._end_late)

    def _end_late(self) -> None:
        self._end(self._busy or TOO_LATE)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self, error: ServiceError) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self._say(error, closing=True)
            self.transport.close()

    def _say(self, error: ServiceError, closing: bool = False) -> None:
        asked, method, path = b"", "-", ""
        if self._busy is not None:
            asked, method, path = dict(self.headers).get(b"x-request-id", b""), "POST", self._path
        request_id = self.gate.refused(asked, method, path, error)
        self.transport.write(_answer(error, request_id, closing))
        self._watch()


def _answer(error: ServiceError, request_id: str, closing: bool) -> bytes:
    """A whole one; `closing` says that nothing comes behind it."""
    body, connection = error_body(error, request_id), b"close" if closing else b"keep-alive"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", connection)]
    headers += [(b"x-request-id", request_id.encode()), *error_headers(error), *HEADERS]
    lines = [b"HTTP/1.1 %d %s" % (error.status, HTTPStatus(error.status).phrase.encode()), *(b"%s: %s" % each for each in headers)]
    return b"\r\n".join([*lines, b"", body])
