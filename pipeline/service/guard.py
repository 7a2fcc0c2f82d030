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
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worldloom.pipeline.service.batcher import retry_after
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.measures import Measures
from worldloom.pipeline.service.replays import Answer, Recording, Replays
from worldloom.pipeline.service.tenants import Tenants

log = logging.getLogger("worldloom.service")

API = "/v1"
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWN_NAMES = {"localhost", "127.0.0.1", "::1", "testserver"}
UPLOADS = f"{API}/batches"  # whose bodies may be longer
MOST_KEY = 200  # characters of an Idempotency-Key
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
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    replays: Replays = field(default_factory=Replays)


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
        asked = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.state["request_id"] = self.id
        self.begun = time.monotonic()
        self.received = 0
        self.whole = False  # the body has been read
        self.status = 0  # of the answer; 0 before it begins
        self._body: bytes | None = None  # read already, for the application to read again
        self._recording: Recording | None = None
        self.most = gate.limits.upload_bytes if scope["path"] == UPLOADS else gate.limits.body_bytes

    async def run(self) -> None:
        gate = self.gate
        gate.in_progress += 1
        gate.measures.in_progress.inc()
        error = ""
        try:
            self._judge()
            await (self._handle_once() if self._key() is not None else self._handle())
        except ServiceError as refused:
            error = refused.code
            await self._refuse(refused)
        except TimeoutError:
            error = "deadline_exceeded"
            await self._refuse(ServiceError("deadline_exceeded", 504, "it took longer than the request may take; ask for less, or later"))
        except asyncio.CancelledError:
            error = "client_gone"
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
        except Exception as failed:
            # Where it was raised, not what it says: messages quote what they were given.
            error = f"{type(failed).__name__} at {_place(failed)}"
            await self._refuse(ServiceError("internal", 500, "the service failed at this request; its log says where, by the request's id"))
        finally:
            gate.in_progress -= 1
            gate.measures.in_progress.dec()
            if not gate.in_progress:
                gate.idle.set()
            self._note(error)

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
        if gate.in_progress > gate.limits.requests:
            raise ServiceError("busy", 429, f"{gate.limits.requests} requests are in progress; come again in a while", None, 1.0)
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ServiceError("encoding_not_allowed", 415, "bodies are sent as they are, without Content-Encoding")
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most:
            raise ServiceError("body_too_large", 413, f"the body may have {self.most} bytes at most; send less, or in several requests")

    def _check_origin(self) -> None:
        """Without tokens, a page of another site must not reach this service through the browser of whoever runs it."""
        host = self.headers.get(b"host", b"").decode("latin-1").lower()
        if self.gate.tenants.open and _hostname(f"//{host}") not in _OWN_NAMES:
            raise ServiceError("host_forbidden", 403, "without tokens the service answers to localhost and 127.0.0.1 only")
        origin = self.headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1").lower()).netloc != host:
            raise ServiceError("origin_forbidden", 403, "pages of other sites may not use this service")

    def _key(self) -> str | None:
        """The Idempotency-Key, where it is for the guard to keep the answer; a batch keeps its own, for longer."""
        key = self.headers.get(b"idempotency-key")
        if key is None or self.scope["method"] != "POST" or self.scope["path"] == UPLOADS or "tenant" not in self.state:
            return None
        if not 0 < len(key) <= MOST_KEY:
            raise ServiceError("request_invalid", 400, f"an Idempotency-Key has 1 to {MOST_KEY} characters", "Idempotency-Key")
        return key.decode("latin-1")

    async def _handle_once(self) -> None:
        """Reads the body first, to know whether this is the request that the key was used for."""
        key, tenant, parts = self._key() or "", self.state["tenant"].name, list[bytes]()
        while not self.whole:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            parts.append(message.get("body", b""))
        body = b"".join(parts)
        about = f"{self.scope['path']}?{self.scope['query_string']!r} {self.headers.get(b'content-type')!r}\n".encode()
        found = await self.gate.replays.begin(tenant, key, hashlib.sha256(about + body).digest())
        if found is not None:
            await self._replay(found)
            return
        self._body, self._recording = body, Recording()
        try:
            await self._handle()
        finally:
            self.gate.replays.end(tenant, key, self._recording.answer)

    async def _replay(self, found: Answer) -> None:
        headers = [*found.headers, (b"idempotent-replay", b"true")]
        await self.send({"type": "http.response.start", "status": found.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": found.body})

    async def _handle(self) -> None:
        handling = asyncio.ensure_future(self.app(self.scope, self.receive, self.send))
        watching: asyncio.Task[None] | None = None
        try:
            seconds = self._seconds()
            done, _ = await asyncio.wait({handling}, timeout=0.05)  # most are answered before it is worth while to listen
            if not done:
                watching = asyncio.create_task(self._until_gone())
                done, _ = await asyncio.wait({handling, watching}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise TimeoutError
            if handling not in done:
                raise asyncio.CancelledError
            handling.result()
        finally:
            for task in (handling, watching):
                if task is not None and not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    async def _until_gone(self) -> None:
        """Returns once the client has left; before the whole body is there, that is for whoever reads it to notice."""
        while not self.whole:
            await asyncio.sleep(0.05)
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
        if self.whole:
            return await self._receive()
        limits = self.gate.limits
        left = self.begun + limits.receive_seconds + self.received / limits.receive_rate - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0)):
                message = await self._receive()
        except TimeoutError:
            raise ServiceError("body_too_slow", 408, f"the body came more slowly than {limits.receive_rate} bytes a second") from None
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            if self.received > self.most:
                raise ServiceError("body_too_large", 413, f"the body may have {self.most} bytes at most; send less, or in several requests")
            self.whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self._recording is not None:
            self._recording.note(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            named = [(b"x-request-id", self.id.encode()), *HEADERS]
            if not self.whole and self.status >= 400:
                named.append((b"connection", b"close"))  # else the rest of the body would be waited for
            message = {**message, "headers": [*message.get("headers", ()), *named]}
        try:
            async with asyncio.timeout(self.gate.limits.send_seconds):
                await self._send(message)
        except TimeoutError:
            raise asyncio.CancelledError from None  # whoever does not read is as good as gone

    async def _refuse(self, refused: ServiceError) -> None:
        if self.status:  # the answer has begun: all that is left is to end the connection
            raise refused
        body = error_body(refused, self.id)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *error_headers(refused)]
        with suppress(asyncio.CancelledError):
            await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})

    def _note(self, error: str) -> None:
        route = getattr(self.scope.get("route"), "path", "-")
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


def _hostname(netloc: str) -> str | None:
    try:
        return urlsplit(netloc).hostname
    except ValueError:
        return None


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
