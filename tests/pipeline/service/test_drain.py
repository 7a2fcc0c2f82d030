"""The end of a real service: what it accepted is answered, and it says that all went well."""

import json
import socket
import time

import pytest

IN_FLIGHT = 20
BODIES = [json.dumps({"tokenizer": "words_codes", "input": f"a red circle {number}"}).encode() for number in range(IN_FLIGHT)]


def begun(port, body):
    """A request whose body is not whole yet."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST /v1/tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body[:10])
    return connection


def answered(connection):
    """The status and the body, once the other side has closed the connection."""
    with connection:
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False


def until(true, seconds=60):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.parametrize("drain_seconds", ["0", "0.5"])
def test_all_that_was_in_flight_at_sigterm_is_answered_and_the_exit_code_is_0(plain, free_port, tiny_root, tmp_path, drain_seconds):
    (tokenizer,) = tiny_root.glob("artifacts/words_codes/*/tokenizer")
    limits = {"WORLDLOOM_RECEIVE_SECONDS": "60", "WORLDLOOM_DRAIN_SECONDS": drain_seconds}
    with plain(tokenizer, tmp_path, free_port, **limits) as (process, client):
        expected = [client.post("/v1/tokenize", content=body, headers={"content-type": "application/json"}).json() for body in BODIES]
        connections = [begun(free_port, body) for body in BODIES]
        until(lambda: f"worldloom_requests_in_progress {IN_FLIGHT + 1}.0" in client.get("/metrics").text)  # and this one
        client.close()
        process.terminate()
        until(lambda: refuses(free_port))
        for connection, body in zip(connections, BODIES, strict=True):
            connection.sendall(body[10:])
        assert [answered(connection) for connection in connections] == [(200, answer) for answer in expected]
        assert process.wait(60) == 0
