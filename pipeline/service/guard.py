"""Stands before every route: who asks, how much they send and how slowly, what goes back; one line of log a request, without its content.

A body is counted as it comes and has one deadline for the whole of it, so that a byte a second is not enough to hold a connection.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worldloom.pipeline.service.batcher import retry_after
from worldloom.pipeline.service.errors import COME_AGAIN, ServiceError, place_of
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.measures import Measures
from worldloom.pipeline.service.replays import Answer, Recording, Replays
from worldloom.pipeline.service.tenants import Tenants

log = logging.getLogger("worldloom.service")

API = "/v1"
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWN_NAMES = {"localhost", "127.0.0.1", "::1", "testserver"}
UPLOADS = f"{API}/batches"  # whose bodies may be longer
UNHEARD = 0.5  # seconds of work before it is worth while to listen whether the client has left: a tenth of what an answer costs
MOST_SWALLOWED = 1 << 20  # bytes of the body of a request that is refused
MOST_KEY = 200  # characters of an Idempotency-Key
# What else is asked by POST changes nothing, and is done again as often as it is asked.
EFFECTS = re.compile(rf"{API}/(rollouts(/[^/]+/act)?|batches/[^/]+/(cancel|resume))")
WATCHED = {"/health/live", "/health/ready", "/metrics"}  # answered while everything else is refused
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob: data:; "
        b"object-src 'none'; base-uri 'none'; form-action 'none'",
    ),
)


@dataclass
class Gate:
    """What the guard and whoever ends the service share."""

    limits: Limits
    tenants: Tenants
    measures: Measures
    draining: bool = False
    in_progress: int = 0
    replays: Replays = field(default_factory=Replays)
    rooms: Mapping[str, Callable[[], None]] = field(default_factory=dict)  # by path: raises ServiceError where no more can be posted there

    def enter(self) -> None:
        """A request has begun."""
        self.in_progress += 1
        self.measures.in_progress.inc()

    def busy(self, method: str, path: str) -> ServiceError | None:
        """What is said to a request that there is no room for, before it enters; None where there is some."""
        if path in WATCHED:
            return None
        if self.in_progress >= self.limits.requests:
            return ServiceError("busy", 429, f"{self.limits.requests} requests are in progress; come again in a while", None, COME_AGAIN)
        if method == "POST" and path in self.rooms:
            try:
                self.rooms[path]()
            except ServiceError as busy:
                return busy
        return None

    def route(self, path: str) -> str:
        """What the figures call a path that no application has looked at."""
        return path if path in self.rooms else "-"

    def refused(self, asked: bytes, method: str, path: str, error: ServiceError) -> str:
        """Notes a request that was refused before it entered, as any other; its id, which is the one `asked` for, where it may be."""
        request_id, route = request_id_of(asked), self.route(path)
        self.measures.requests.labels(route=route, tokenizer="-", code=str(error.status)).inc()
        line = {"time": round(time.time(), 3), "request_id": request_id, "tenant": None, "method": method, "route": route}
        log.info(json.dumps(line | {"status": error.status, "seconds": 0.0, "bytes": 0, "cost": 0, "error": error.code}))
        return request_id

    def leave(self) -> None:
        """A request, or what is done for one that was given up, has ended."""
        self.in_progress -= 1
        self.measures.in_progress.dec()


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Request(self.app, self.gate, scope, receive, send).run()
        else:
            await send({"type": "websocket.close", "code": 1008})


class _Request:
    def __init__(self, app: ASGIApp, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self.app, self.gate, self.scope, self._receive, self._send = app, gate, scope, receive, send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = request_id_of(self.headers.get(b"x-request-id", b""))
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.state["request_id"] = self.id
        self.begun = time.monotonic()
        self.received = 0
        self.whole_at: float | None = None  # when the body had been read
        self.status = 0  # of the answer; 0 before it begins
        self._route = "-"  # where it was refused before the application could say which it is
        self._body: bytes | None = None  # read already, for the application to read again
        self._made: asyncio.Future[Answer] | None = None  # goes on without this request
        if b"transfer-encoding" not in self.headers and self.headers.get(b"content-length", b"0") == b"0":
            self.whole_at, self._body = self.begun, b""
        self.most = gate.limits.upload_bytes if scope["path"] == UPLOADS else gate.limits.body_bytes

    async def run(self) -> None:
        busy = self.gate.busy(self.scope["method"], self.scope["path"])
        if busy is None:
            self.gate.enter()
        error = ""
        try:
            self._judge()
            if busy is not None:
                self._route = self.gate.route(self.scope["path"])
                await self._swallow()
                raise busy
            key = self._key()
            await (self._handle() if key is None else self._handle_once(key))
        except ServiceError as refused:
            error = refused.code
            await self._refuse(refused)
        except TimeoutError:
            error = "deadline_exceeded"
            await self._refuse(ServiceError("deadline_exceeded", 504, "it took longer than the request may take; ask for less, or later"))
        except ClientDisconnect:  # within its body
            error = "client_gone"
        except asyncio.CancelledError:
            error = "client_gone"
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
        except Exception as failed:
            # Where it was raised, not what it says: messages quote what they were given.
            error = place_of(failed)
            await self._refuse(ServiceError("internal", 500, "the service failed at this request; its log says where, by the request's id"))
        finally:
            if busy is None:
                self._leave()
            self._note(error)

    def _leave(self) -> None:
        if self._made is None or self._made.done():
            self.gate.leave()
        else:  # it takes the place of a request as long as it goes on
            self._made.add_done_callback(lambda _: self.gate.leave())

    def _judge(self) -> None:
        """What the head alone says; ServiceError."""
        gate, path = self.gate, self.scope["path"]
        self._check_origin()
        if path in WATCHED:
            return
        if gate.draining:
            raise ServiceError("draining", 503, "the service is about to end; ask again, another takes over", None, 1.0)
        if path.startswith(API):
            authorization = self.headers.get(b"authorization")
            self.state["tenant"] = gate.tenants.find(None if authorization is None else authorization.decode("latin-1"))
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ServiceError("encoding_not_allowed", 415, "bodies are sent as they are, without Content-Encoding")
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most:
            raise ServiceError("body_too_large", 413, f"the body may have {self.most} bytes at most; send less, or in several requests")

    def _check_origin(self) -> None:
        """Without tokens, a page of another site must not reach this service through the browser of whoever runs it."""
        host = self.headers.get(b"host", b"").decode("latin-1").lower()
        if self.gate.tenants.open and _parts(f"//{host}").hostname not in _OWN_NAMES:
            raise ServiceError("host_forbidden", 403, "without tokens the service answers to localhost and 127.0.0.1 only")
        origin = self.headers.get(b"origin")
        if origin is not None and (_parts(origin.decode("latin-1").lower()).netloc or None) != host:
            raise ServiceError("origin_forbidden", 403, "pages of other sites may not use this service")

    def _key(self) -> str | None:
        """The Idempotency-Key, where it is for the guard to keep the answer; a batch keeps its own, for longer."""
        key = self.headers.get(b"idempotency-key")
        if key is None or self.scope["method"] != "POST" or self.scope["path"] == UPLOADS or "tenant" not in self.state:
            return None
        if not 0 < len(key) <= MOST_KEY:
            raise ServiceError("request_invalid", 400, f"an Idempotency-Key has 1 to {MOST_KEY} characters", "Idempotency-Key")
        return key.decode("latin-1") if EFFECTS.fullmatch(self.scope["path"]) else None

    async def _handle_once(self, key: str) -> None:
        """Reads the body first, to know whether this is the request that the key was used for.

        What is asked is done once, and to its end; this request, and any other under the key, waits for its answer as long as it may.
        """
        seconds, self._body = self._seconds(), await self._read_body()
        about = f"{self.scope['path']}?{self.scope['query_string']!r} {self.headers.get(b'content-type')!r}\n".encode()
        digest = hashlib.sha256(about + self._body).digest()
        made, first = self.gate.replays.once(self.state["tenant"].name, key, digest, self._recorded)
        self._made = made if first else None
        await self._accompany(made, seconds)
        answer = made.result()
        headers = answer.headers if first else [*answer.headers, (b"idempotent-replay", b"true")]
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": answer.body})

    async def _read_body(self) -> bytes:
        """The whole of it; CancelledError where the client leaves meanwhile."""
        parts = list[bytes]()
        while self.whole_at is None:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
        return b"".join(parts)

    async def _swallow(self) -> None:
        """Takes in a small body of a request that is refused, so that its connection can go on; a larger one ends it."""
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) <= MOST_SWALLOWED and b"expect" not in self.headers:
            await self._read_body()

    async def _recorded(self) -> Answer:
        recording = Recording()
        await self.app(self.scope, self.receive, recording.send)
        return recording.answer

    async def _handle(self) -> None:
        seconds = self._seconds()
        handling = asyncio.ensure_future(self.app(self.scope, self.receive, self.send))
        try:
            await self._accompany(handling, seconds)
            handling.result()
        finally:
            await _cancelled(handling)

    async def _accompany(self, work: asyncio.Future[Any], seconds: float | None) -> None:
        """Waits until it is done. CancelledError once the client has left, TimeoutError where the answer does not begin in time."""
        await asyncio.wait({work}, timeout=UNHEARD if seconds is None else min(UNHEARD, seconds))
        if work.done():
            return
        watching = asyncio.create_task(self._until_gone(seconds))
        try:
            await asyncio.wait({work, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise TimeoutError if watching.result() else asyncio.CancelledError
        finally:
            await _cancelled(watching)

    async def _until_gone(self, seconds: float | None) -> bool:
        """Returns once the client has left, or, True, where the answer has not begun so many seconds after the body was whole."""
        while self.whole_at is None and self._body_left() > 0:  # till then, whoever reads it notices
            await asyncio.sleep(0.05)
        left = None if seconds is None else (self.whole_at or time.monotonic()) + seconds - time.monotonic()
        try:
            async with asyncio.timeout(left):
                await self._gone()
        except TimeoutError:
            if not self.status:
                return True
            await self._gone()
        return False

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _seconds(self) -> float | None:
        """How long the answer may take to begin; a stream, once begun, is ended by its own bounds."""
        asked = self.headers.get(b"x-request-timeout")
        most = self.gate.limits.request_seconds
        if asked is None:
            return None if self.scope["path"] == UPLOADS else most
        try:
            return min(most, max(0.05, float(asked)))
        except ValueError:
            raise ServiceError("request_invalid", 400, "X-Request-Timeout is a number of seconds", "X-Request-Timeout") from None

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self.whole_at is not None:
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._body_left(), 0)):
                message = await self._receive()
        except TimeoutError:
            rate = self.gate.limits.receive_rate
            raise ServiceError("body_too_slow", 408, f"the body came more slowly than {rate} bytes a second") from None
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            if self.received > self.most:
                raise ServiceError("body_too_large", 413, f"the body may have {self.most} bytes at most; send less, or in several requests")
            if not message.get("more_body", False):
                self.whole_at = time.monotonic()
        return message

    def _body_left(self) -> float:
        """Seconds that are left for the body."""
        limits = self.gate.limits
        return self.begun + limits.receive_seconds + self.received / limits.receive_rate - time.monotonic()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            named = [(b"x-request-id", self.id.encode()), *HEADERS]
            if self.whole_at is None and self.status >= 400:
                named.append((b"connection", b"close"))  # else the rest of the body would be waited for
            message = {**message, "headers": [*message.get("headers", ()), *named]}
        try:
            async with asyncio.timeout(self.gate.limits.send_seconds):
                await self._send(message)
        except TimeoutError:
            # Whoever does not read is as good as gone; closing the connection would wait until it reads.
            if "abort" in self.state:
                self.state["abort"]()
            raise asyncio.CancelledError from None

    async def _refuse(self, refused: ServiceError) -> None:
        if self.status:  # the answer has begun: all that is left is to end the connection
            raise refused
        body = error_body(refused, self.id)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *error_headers(refused)]
        with suppress(asyncio.CancelledError):
            await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})

    def _note(self, error: str) -> None:
        route = getattr(self.scope.get("route"), "path", self._route)
        seconds = time.monotonic() - self.begun
        measures = self.gate.measures
        measures.requests.labels(route=route, tokenizer=self.state.get("tokenizer", "-"), code=str(self.status)).inc()
        measures.seconds.labels(route=route).observe(seconds)
        if not log.isEnabledFor(logging.INFO):
            return
        tenant = self.state.get("tenant")
        line = {
            "time": round(time.time(), 3),
            "request_id": self.id,
            "tenant": None if tenant is None else tenant.name,
            "method": self.scope["method"],
            "route": route,
            "status": self.status,
            "seconds": round(seconds, 4),
            "bytes": self.received,
            "cost": self.state.get("cost", 0),
        }
        log.info(json.dumps(line | ({"error": error or self.state["error"]} if error or "error" in self.state else {})))


def request_id_of(asked: bytes) -> str:
    """What a request is called: as it asks, where that is a name, or by a new one."""
    name = asked.decode("latin-1")
    return name if _REQUEST_ID.fullmatch(name) else uuid.uuid4().hex


def error_body(error: ServiceError, request_id: str) -> bytes:
    """The one shape of errors."""
    detail = {"code": error.code, "message": error.message, "param": error.param, "request_id": request_id}
    return json.dumps({"error": detail}).encode()


def error_headers(error: ServiceError) -> Iterable[tuple[bytes, bytes]]:
    """Those that go with a status."""
    if error.retry_after is not None:
        yield b"retry-after", retry_after(error.retry_after).encode()
    if error.status == 401:
        yield b"www-authenticate", b"Bearer"


def _parts(url: str) -> SplitResult:
    """All of them empty where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


async def _cancelled(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
