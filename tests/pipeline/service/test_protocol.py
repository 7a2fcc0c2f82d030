"""What comes before the application, over a real socket: slow clients, strange frames, and a service that ends."""

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
import uvloop
from fastapi import Response
from fastapi.responses import StreamingResponse

from worldloom.pipeline.service.app import create_app
from worldloom.pipeline.service.calls import NoCalls
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import COME_AGAIN
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.protocol import bounded
from worldloom.pipeline.service.serve import Server, check_address
from worldloom.pipeline.service.served import Served

LIMITS = Limits(header_seconds=0.6, receive_seconds=0.6, receive_rate=1_000_000, header_bytes=4_096, body_bytes=100_000)
LARGE = 32 << 20  # bytes: more than the kernel takes for a client that does not read
HEAD = b"POST /v1/tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@contextmanager
def listening(limits=LIMITS, new_loop=asyncio.new_event_loop):
    """The port of a service without workers, and its server."""
    app = create_app(Engine(NoCalls(), Served((), None, (), ()), limits))

    @app.get("/v1/slow")
    async def slow() -> str:
        while not app.state.gate.draining:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        return "answered"

    @app.get("/v1/late")
    async def late() -> str:
        await asyncio.sleep(2 * LIMITS.header_seconds)
        return "late"

    @app.get("/v1/large")
    async def large() -> Response:
        return Response(bytes(LARGE))

    @app.get("/v1/parts")
    async def parts() -> Response:
        return StreamingResponse(bytes(1 << 16) for _ in range(LARGE >> 16))

    app.router.routes[:0] = [app.router.routes.pop() for _ in range(4)]  # before the page, which takes everything
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=bounded(app.state.gate), ws="none", log_config=None, access_log=False)
    server = Server(config, app.state.gate)

    def serve():
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(server.serve())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def port():
    with listening() as (number, _):
        yield number


def said(port, *parts, pause=0.0, seconds=20.0):
    """All that comes back for bytes that are sent, until the other side ends the connection; and how long that took."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            while got := connection.recv(65_536):
                answer += got
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer, time.monotonic() - begun


def got(port, path):
    """The status and the body."""
    answer, _ = said(port, b"GET %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n" % path.encode(), seconds=60)
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def good(port):
    return got(port, "/health/live")[0] == 200


def refusal(answer):
    """What the one shape of errors says, whoever refused."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower() and b"content-length: %d" % len(body) in head.lower(), answer
    (name, told), *others = json.loads(body).items()
    assert name == "error" and not others and list(told) == ["code", "message", "param", "request_id"]
    assert b"x-request-id: " + told["request_id"].encode() in head and b"x-content-type-options: nosniff" in head
    return told


def alive(connection):
    """Whether a connection that is kept open has the answer that everything is well."""
    connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\r\n\r\nlive\n"):
        part = connection.recv(65_536)
        assert part, answer
        answer += part
    return answer.startswith(b"HTTP/1.1 200")


def test_connections_beyond_the_limit_are_told_to_come_again_and_others_go_on(caplog):
    with listening(Limits(connections=3)) as (port, _):
        with contextlib.ExitStack() as stack:
            held = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(3)]
            assert all(map(alive, held))  # an answer says that the connection is one of the service's
            with caplog.at_level(logging.INFO, "worldloom.service"):
                answer, _ = said(port)
            assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after: 2\r\n" in answer
            told = refusal(answer)
            assert told["code"] == "busy" and told["message"].startswith("too many connections are open; come again in a while")
            (line,) = [line for record in caplog.records if (line := json.loads(record.getMessage()))["request_id"] == told["request_id"]]
            assert (line["status"], line["error"]) == (429, "busy")
            assert alive(held[0])
        until = time.monotonic() + 20
        while not good(port):
            assert time.monotonic() < until


@contextmanager
def full(limits):
    """A port where nobody else's request is taken, and the server."""
    with listening(limits, uvloop.new_event_loop) as (port, server):
        waiting = [threading.Thread(target=got, args=(port, "/v1/slow")) for _ in range(limits.requests)]
        for one in waiting:
            one.start()
        until = time.monotonic() + 30
        while server.gate.in_progress < limits.requests:
            assert time.monotonic() < until
            time.sleep(0.01)
        try:
            yield port, server
        finally:
            server.gate.draining = True  # which is what they wait for
            for one in waiting:
                one.join()


def answers_in(received):
    """The answers that came one behind the other, each with its body."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        found.append(head + b"\r\n\r\n" + rest[:length])
        received = rest[length:]
    return found


POST = b"POST /v1/tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def test_where_there_is_no_room_a_request_is_refused_and_its_connection_goes_on_after_a_while():
    with full(Limits(requests=2)) as (port, server):
        first = POST + b"x-request-id: mine-1\r\ncontent-length: 2\r\n\r\n"
        chunked = POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        last = POST + b"content-length: 2\r\nconnection: close\r\n\r\n{}"
        received, seconds = said(port, first, b"{}", chunked, last, pause=0.05)
        answers = answers_in(received)
        assert [answer[:13] for answer in answers] == [b"HTTP/1.1 429 "] * 3, received
        assert {refusal(answer)["code"] for answer in answers} == {"busy"} and all(b"retry-after: 2\r\n" in answer for answer in answers)
        assert [b"connection: close\r\n" in answer for answer in answers] == [False, False, True]
        assert refusal(answers[0])["request_id"] == "mine-1" != refusal(answers[1])["request_id"]
        assert seconds >= COME_AGAIN, "behind a refusal nobody listens for a while"
        assert got(port, "/v1/info")[0] == 429 and server.gate.in_progress == 2, "who is refused takes no room"
        assert b'worldloom_requests_total{code="429",route="/v1/tokenize",tokenizer="-"} 3.0' in got(port, "/metrics")[1]


def test_where_many_connections_are_open_a_refused_one_is_closed_at_once():
    with full(Limits(requests=1, connections=4)) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=20) as another:
        assert alive(another)
        answer, seconds = said(port, POST + b"content-length: 2\r\n\r\n{}")
        assert refusal(answer)["code"] == "busy" and b"connection: close\r\n" in answer and seconds < COME_AGAIN


def test_a_service_that_ends_says_so_whether_there_is_room_or_not():
    with full(Limits(requests=1)) as (port, server):
        server.gate.draining = True
        answer, _ = said(port, POST + b"content-length: 2\r\nconnection: close\r\n\r\n{}")
        assert answer.startswith(b"HTTP/1.1 503 ") and refusal(answer)["code"] == "draining"


def test_a_refused_request_may_not_hold_its_connection_with_its_body():
    with full(Limits(requests=1, header_seconds=0.5, body_bytes=100_000)) as (port, _):
        answer, seconds = said(port, POST + b"content-length: 10\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 429 ") and b"connection: close\r\n" in answer and refusal(answer)["code"] == "busy"
        assert 0.4 < seconds < 5
        answer, _ = said(port, POST + b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n" % 200_000 + bytes(200_000))
        assert answer == b"" or (answer.startswith(b"HTTP/1.1 429 ") and b"connection: close\r\n" in answer)
        expecting = POST + b"content-length: 2\r\nexpect: 100-continue\r\n\r\n"
        answer, _ = said(port, expecting)
        assert answer.startswith(b"HTTP/1.1 429 ") and b"connection: close\r\n" in answer, "the body is not asked for"


def test_a_request_behind_one_that_is_worked_on_waits_for_it_whether_there_is_room_or_not():
    with full(Limits(requests=1)) as (port, server), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        server.gate.in_progress -= 1  # room for one more
        connection.sendall(b"GET /v1/slow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until = time.monotonic() + 20
        while server.gate.in_progress < 1:
            assert time.monotonic() < until
            time.sleep(0.01)
        connection.sendall(POST + b"content-length: 2\r\n\r\n{}")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        server.gate.in_progress += 1


FRAMES = {
    "two lengths": (HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}x", 400, "http_invalid"),
    "a length and chunks": (HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400, "http_invalid"),
    "chunks and a length": (HEAD + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400, "http_invalid"),
    "chunks twice": (HEAD + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "http_invalid"),
    "another coding": (HEAD + b"transfer-encoding: gzip\r\n\r\n", 400, "http_invalid"),
    "a coding in disguise": (HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400, "http_invalid"),
    "a negative length": (HEAD + b"content-length: -1\r\n\r\n", 400, "http_invalid"),
    "a length in hex": (HEAD + b"content-length: 0x10\r\n\r\n", 400, "http_invalid"),
    "a length with a plus": (HEAD + b"content-length: +2\r\n\r\n{}", 400, "http_invalid"),
    "a length of 30 digits": (HEAD + b"content-length: " + b"9" * 30 + b"\r\n\r\n", 400, "http_invalid"),
    "a chunk that is no number": (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400, "http_invalid"),
    "two hosts": (HEAD + b"host: evil\r\n\r\n", 400, "http_invalid"),
    "a folded header": (HEAD + b"x-a: b\r\n c\r\n\r\n", 400, "http_invalid"),
    "a space before the colon": (HEAD + b"content-length : 2\r\n\r\n{}", 400, "http_invalid"),
    "NUL in a header": (HEAD + b"x-a: b\0c\r\n\r\n", 400, "http_invalid"),
    "a bare line feed": (b"GET / HTTP/1.1\nhost: localhost\n\n", 400, "http_invalid"),
    "no version, and so no host": (b"GET /\r\n\r\n", 403, "host_forbidden"),
    "another version": (b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n", 400, "http_invalid"),
    "no method": (b" / HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, "http_invalid"),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "http_invalid"),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "http_invalid"),
    "10,000 headers": (HEAD + b"x-a: b\r\n" * 10_000 + b"\r\n", 431, "head_too_large"),
    "a header of 5,000 bytes": (HEAD + b"x-a: " + b"b" * 5_000 + b"\r\n\r\n", 431, "head_too_large"),
    "a line without end": (b"GET /" + b"a" * 5_000, 431, "head_too_large"),
    "a body too long by its head": (HEAD + b"content-length: 100001\r\n\r\n", 413, "body_too_large"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_a_frame_that_two_readers_could_read_in_two_ways_ends_the_connection(port, case):
    content, status, code = FRAMES[case]
    answer, _ = said(port, content)
    assert answer.startswith(b"HTTP/1.1 %d" % status), (case, answer[:200])
    assert answer.count(b"HTTP/1.1 ") == 1, "nothing of the rest was taken for a request"
    assert refusal(answer)["code"] == code
    assert good(port)


SLOW = {
    "nothing at all": ((), "head_too_slow"),
    "half a head": ((HEAD,), "head_too_slow"),
    "a head, a byte at a time": ([HEAD[at : at + 1] for at in range(40)], "head_too_slow"),
    "no body": ((HEAD + b"content-length: 10\r\n\r\n",), "body_too_slow"),
    "a body, a byte at a time": ((HEAD + b"content-length: 1000\r\n\r\n", *[b"x"] * 40), "body_too_slow"),
    "chunks, a byte at a time": ((HEAD + b"transfer-encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 40), "body_too_slow"),
}


@pytest.mark.parametrize("case", SLOW)
def test_a_slow_client_is_sent_away_and_others_are_answered_meanwhile(port, case):
    (parts, code), found = SLOW[case], []
    slow = threading.Thread(target=lambda: found.append(said(port, *parts, pause=0.05)))
    slow.start()
    assert good(port)
    slow.join()
    answer, seconds = found[0]
    assert seconds < 10
    if answer or len(parts) < 2:  # whoever goes on sending may lose the answer with the connection
        assert answer.startswith(b"HTTP/1.1 408") and refusal(answer)["code"] == code


def test_a_request_that_came_with_the_one_before_it_is_not_under_the_deadline_of_a_head(port):
    first = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n"
    second = b"GET /v1/late HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    answer, _ = said(port, first + second)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200") == 2 and answer.endswith(b'"late"')


CLOSE = b"connection: close\r\n"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@contextmanager
def reading_little(port, path, more=b""):
    """A connection that has asked for something large, and has its first byte; the kernel keeps little of the rest for it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET %s HTTP/1.1\r\nhost: localhost\r\n%s\r\n" % (path, more))
        assert connection.recv(1) == b"H"
        yield connection


@pytest.mark.parametrize("new_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("path", [b"/v1/large", b"/v1/parts"], ids=["in one part", "in many"])
@pytest.mark.parametrize("more", [b"", CLOSE], ids=["kept open", "closed"])
def test_whoever_does_not_read_an_answer_is_let_go(new_loop, path, more):
    with listening(Limits(send_seconds=0.3, receive_rate=1 << 30), new_loop) as (port, server), reading_little(port, path, more):
        until = time.monotonic() + 20
        while server.server_state.connections or server.gate.in_progress:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_whoever_reads_slowly_has_the_whole_answer():
    with listening(Limits(send_seconds=0.3, receive_rate=LARGE >> 5)) as (port, _), reading_little(port, b"/v1/large", CLOSE) as connection:
        size = 0
        for _ in range(4):
            time.sleep(0.2)
            size += len(connection.recv(1 << 10))
        while part := connection.recv(1 << 20):
            size += len(part)
        assert size > LARGE


def test_what_was_accepted_is_answered_before_the_service_ends():
    with listening(Limits(drain_seconds=0.2)) as (port, server):
        answers = []

        def ask():
            answers.append(got(port, "/v1/slow"))

        asking = [threading.Thread(target=ask) for _ in range(20)]
        for one in asking:
            one.start()
        until = time.monotonic() + 30
        while server.gate.in_progress < 20:
            assert time.monotonic() < until
            time.sleep(0.01)
        server.handle_exit(15, None)
        assert got(port, "/v1/info")[0] == 503
        for one in asking:
            one.join()
        assert answers == [(200, b'"answered"')] * 20
        with pytest.raises(ConnectionRefusedError):
            got(port, "/health/live")


def test_without_tokens_only_loopback_is_listened_on(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.com"):
        with pytest.raises(ValueError, match="without --token-file the service listens on"):
            check_address(host, None)
        check_address(host, tmp_path)
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        check_address(host, None)
