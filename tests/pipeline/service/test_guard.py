"""Who gets in, what is refused by its head or its form alone, and that nothing of it is written down."""

import asyncio
import json
import logging
import socket
import time

import httpx
import pytest

from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.replays import Replays
from worldloom.pipeline.service.tenants import Tenants, add_token

JSON = {"content-type": "application/json"}
OPEN = {"/health/live", "/health/ready", "/metrics"}
LOGGER = "worldloom.service"


def token_of(tenant, quota=None):
    token, line = add_token(tenant, None, quota)
    name, digest, *_ = line.split()
    return token, (name, digest, quota)


ADA, ADAS = token_of("ada")
BOB, BOBS = token_of("bob")
EVE, EVES = token_of("eve", 1000.0)


def bearer(token):
    return {"authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(serve, clocked_root):
    with serve(
        [str(clocked_root)], Limits(body_bytes=50_000, values=16, rollouts=2, pixels=1 << 16), Tenants([ADAS, BOBS, EVES])
    ) as service:
        yield service


def listed(service):
    about = service.app.openapi()
    return sorted((method.upper(), path) for path, methods in about["paths"].items() for method in methods)


def test_every_route_but_health_and_metrics_needs_a_token_that_is_known(guarded):
    checked = 0
    for method, path in listed(guarded):
        filled = path.replace("{id}", "batch_0").replace("{name}", "DONE.json").replace("{", "").replace("}", "")
        for headers in (
            {},
            bearer("wrong"),
            bearer(""),
            {"authorization": ADA},
            {"authorization": f"Basic {ADA}"},
            {"cookie": f"token={ADA}"},
        ):
            answer = guarded(method, filled, headers=headers)
            if path in OPEN:
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401, (method, path, headers)
                assert answer.json()["error"]["code"] == "unauthorized" and answer.headers["www-authenticate"] == "Bearer"
            checked += 1
        if path not in OPEN:
            assert guarded(method, filled, headers=bearer(ADA)).status_code != 401, (method, path)
    assert checked >= 6 * 17


def test_the_answer_to_a_wrong_token_is_that_to_none(guarded):
    none, wrong = (guarded("GET", "/v1/info", headers=headers).json()["error"] for headers in ({}, bearer("wrong")))
    assert {**none, "request_id": ""} == {**wrong, "request_id": ""}


def test_a_session_of_another_tenant_looks_as_if_it_were_not_there(guarded):
    opened = guarded("POST", "/v1/rollouts", json={}, headers=bearer(ADA))
    assert opened.status_code == 201, opened.text
    name = opened.json()["id"]
    for method, path, body in (("POST", "/act", {"action": 0}), ("DELETE", "", None)):
        theirs, missing = (
            guarded(method, f"/v1/rollouts/{which}{path}", headers=bearer(BOB), **({} if body is None else {"json": body}))
            for which in (name, "0" * 32)
        )
        assert theirs.status_code == missing.status_code == 404
        assert {**theirs.json()["error"], "request_id": ""} == {**missing.json()["error"], "request_id": ""}
    assert guarded("GET", "/v1/rollouts", headers=bearer(BOB)).json()["data"] == []
    assert [one["id"] for one in guarded("GET", "/v1/rollouts", headers=bearer(ADA)).json()["data"]] == [name]
    assert guarded("DELETE", f"/v1/rollouts/{name}", headers=bearer(ADA)).status_code == 204


def test_a_quota_is_spent_by_cost_and_says_when_to_come_again(guarded):
    text = {"tokenizer": "words", "input": "x" * 600}
    first, second = (guarded("POST", "/v1/tokenize", json=text, headers=bearer(EVE)) for _ in range(2))
    assert first.status_code == 200 and first.json()["usage"]["cost"] == 600
    assert second.status_code == 429 and second.json()["error"]["code"] == "quota_exceeded"
    assert 0 < int(second.headers["retry-after"]) <= 60
    never = guarded("POST", "/v1/tokenize", json={**text, "input": "x" * 1001}, headers=bearer(EVE))
    assert never.status_code == 413 and never.json()["error"]["code"] == "too_costly"
    assert guarded("GET", "/v1/info", headers=bearer(EVE)).json()["quota"]["per_minute"] == 1000


DEEP = b'{"tokenizer": "words", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
MALFORMED = {
    "no body": (b"", JSON, 400, "json_invalid"),
    "half an object": (b'{"tokenizer": "words"', JSON, 400, "json_invalid"),
    "not UTF-8": (b'{"tokenizer": "words", "input": "\xff"}', JSON, 400, "json_invalid"),
    "UTF-16": ('{"tokenizer": "words", "input": "a"}'.encode("utf-16"), JSON, 400, "json_invalid"),
    "a byte order mark": (b'\xef\xbb\xbf{"tokenizer": "words", "input": "a"}', JSON, 400, "json_invalid"),
    "a doubled key": (b'{"tokenizer": "words", "tokenizer": "view", "input": "a"}', JSON, 400, "json_invalid"),
    "NaN": (b'{"tokenizer": "push", "input": [[[NaN]]]}', JSON, 400, "json_invalid"),
    "infinity": (b'{"tokenizer": "push", "input": [[[-Infinity]]]}', JSON, 400, "json_invalid"),
    "a number beyond all bounds": (b'{"tokenizer": "push", "input": [[[1e999]]]}', JSON, 400, "json_invalid"),
    "5,000 digits": (b'{"tokenizer": "push", "input": [[[' + b"1" * 5000 + b"]]]}", JSON, 400, "json_invalid"),
    "depth of 100,000": (DEEP[:40_000] + DEEP[-8_000:], JSON, 400, "json_invalid"),
    "depth in objects": (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, JSON, 400, "json_invalid"),
    "only brackets": (b"[" * 40_000, JSON, 400, "json_invalid"),
    "two values": (b"{} {}", JSON, 400, "json_invalid"),
    "a comment": (b'{"tokenizer": "words", /* a */ "input": "a"}', JSON, 400, "json_invalid"),
    "a trailing comma": (b'{"tokenizer": "words", "input": "a",}', JSON, 400, "json_invalid"),
    "single quotes": (b"{'tokenizer': 'words', 'input': 'a'}", JSON, 400, "json_invalid"),
    "an unescaped line break": (b'{"tokenizer": "words", "input": "a\nb"}', JSON, 400, "json_invalid"),
    "half an escape": (b'{"tokenizer": "words", "input": "\\u12"}', JSON, 400, "json_invalid"),
    "NUL outside of strings": (b'\x00{"tokenizer": "words", "input": "a"}', JSON, 400, "json_invalid"),
    "a list": (b"[]", JSON, 400, "request_invalid"),
    "null": (b"null", JSON, 400, "request_invalid"),
    "a string": (b'"words"', JSON, 400, "request_invalid"),
    "a key too many": (b'{"tokenizer": "words", "input": "a", "x": 1}', JSON, 400, "request_invalid"),
    "a key too few": (b'{"tokenizer": "words"}', JSON, 400, "request_invalid"),
    "no tokenizer": (b'{"input": "a"}', JSON, 400, "request_invalid"),
    "a tokenizer that is a number": (b'{"tokenizer": 1, "input": "a"}', JSON, 400, "request_invalid"),
    "a tokenizer that is a path": (b'{"tokenizer": "../words", "input": "a"}', JSON, 400, "request_invalid"),
    "a tokenizer in capitals": (b'{"tokenizer": "WORDS", "input": "a"}', JSON, 400, "request_invalid"),
    "a long tokenizer": (b'{"tokenizer": "' + b"w" * 64 + b'", "input": "a"}', JSON, 400, "request_invalid"),
    "an unknown tokenizer": (b'{"tokenizer": "nothing", "input": "a"}', JSON, 404, "tokenizer_unknown"),
    "null as the input": (b'{"tokenizer": "words", "input": null}', JSON, 400, "request_invalid"),
    "a number as the input": (b'{"tokenizer": "words", "input": 1}', JSON, 400, "request_invalid"),
    "an object as the input": (b'{"tokenizer": "words", "input": {"text": "a"}}', JSON, 400, "request_invalid"),
    "an empty list": (b'{"tokenizer": "words", "input": []}', JSON, 400, "request_invalid"),
    "numbers for text": (b'{"tokenizer": "words", "input": [[1.0]]}', JSON, 400, "request_invalid"),
    "too many values": (b'{"tokenizer": "words", "input": [' + b'"a",' * 16 + b'"a"]}', JSON, 413, "too_many_values"),
    "10,000 values": (b'{"tokenizer": "words", "input": [' + b'"",' * 9_999 + b'""]}', JSON, 413, "too_many_values"),
    "no base64": (b'{"tokenizer": "clip", "input": "%%%"}', JSON, 400, "base64_invalid"),
    "base64 with a line break": (b'{"tokenizer": "clip", "input": "AAAA\\nAAAA"}', JSON, 400, "base64_invalid"),
    "base64 without its end": (b'{"tokenizer": "clip", "input": "AAAAA"}', JSON, 400, "base64_invalid"),
    "a lone surrogate": (b'{"tokenizer": "words", "input": "\\ud800"}', JSON, 400, "text_not_utf8"),
    "another answer": (b'{"tokenizer": "words", "input": "a", "return": "pickle"}', JSON, 400, "request_invalid"),
    "no type": (b'{"tokenizer": "words", "input": "a"}', {}, 415, "media_type_not_allowed"),
    "a form": (b"tokenizer=words&input=a", {"content-type": "application/x-www-form-urlencoded"}, 415, "media_type_not_allowed"),
    "plain text": (b'{"tokenizer": "words", "input": "a"}', {"content-type": "text/plain"}, 415, "media_type_not_allowed"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), {**JSON, "content-encoding": "gzip"}, 415, "encoding_not_allowed"),
    "too long": (b" " * 50_001, JSON, 413, "body_too_large"),
    "multipart without a boundary": (b"--x\r\n", {"content-type": "multipart/form-data"}, 400, "multipart_invalid"),
    "multipart that is none": (b"what", {"content-type": "multipart/form-data; boundary=x"}, 400, None),
    "a length that is no number": (b"{}", {**JSON, "content-length": "-1"}, 413, "body_too_large"),
    "a timeout that is no number": (b"{}", {**JSON, "x-request-timeout": "soon"}, 400, "request_invalid"),
    "an empty idempotency key": (b"{}", {**JSON, "idempotency-key": ""}, 400, "request_invalid"),
    "a long idempotency key": (b"{}", {**JSON, "idempotency-key": "k" * 201}, 400, "request_invalid"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_has_its_code_and_the_next_one_is_answered(guarded, case):
    content, headers, status, code = MALFORMED[case]
    answer = guarded("POST", "/v1/tokenize", content=content, headers={**headers, **bearer(ADA)})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "param", "request_id"} and error["request_id"] == answer.headers["x-request-id"]
    assert code is None or error["code"] == code
    good = guarded("POST", "/v1/tokenize", json={"tokenizer": "words", "input": "a"}, headers=bearer(ADA))
    assert good.status_code == 200


def test_a_body_that_grows_beyond_its_bound_is_not_read_to_its_end(guarded):
    read = []

    async def endless():
        for number in range(1_000):
            read.append(number)
            yield bytes(10_000)

    answer = guarded("POST", "/v1/tokenize", content=endless(), headers={**JSON, **bearer(ADA)})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert read == [0, 1, 2, 3, 4, 5], "five parts are as long as a body may be"


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/tokenizers/", "/nothing", "/V1/info", "/v1//info"])
def test_what_is_not_there_is_said_in_the_one_shape(guarded, path):
    answer = guarded("GET", path, headers=bearer(ADA))
    assert answer.status_code in (404, 307) and (answer.status_code == 307 or answer.json()["error"]["code"] == "not_found")


def test_another_method_is_said_in_the_one_shape(guarded):
    answer = guarded("GET", "/v1/tokenize", headers=bearer(ADA))
    assert answer.status_code == 405 and answer.json()["error"]["code"] == "method_not_allowed"


def test_without_tokens_only_this_machine_by_its_own_names_is_answered(tiny):
    for host in ("evil.example", "evil.example:80", "10.0.0.1", "localhost.evil.example", "[::2]", ""):
        answer = tiny("GET", "/v1/info", headers={"host": host})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_forbidden", host
    for host in ("localhost", "localhost:8484", "127.0.0.1:8484", "[::1]:8484"):
        assert tiny("GET", "/v1/info", headers={"host": host}).status_code == 200, host


def test_a_page_of_another_site_is_refused(tiny):
    for origin in ("https://evil.example", "null", "", "http://[", "http://[::1", "http://localhost.evil.example"):
        answer = tiny("POST", "/v1/tokenize", json={"tokenizer": "words", "input": "a"}, headers={"origin": origin})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "origin_forbidden", origin
    assert tiny("GET", "/v1/info", headers={"origin": "http://localhost", "host": "localhost"}).status_code == 200


def test_a_request_keeps_its_id_and_a_strange_one_is_replaced(tiny):
    assert tiny("GET", "/health/live", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert tiny("GET", "/health/live", headers={"x-request-id": "a b\t"}).headers["x-request-id"] != "a b\t"


def test_the_same_request_under_one_key_has_one_answer_and_another_is_a_conflict(clocked):
    headers = {"idempotency-key": "one"}
    first, second = (clocked("POST", "/v1/rollouts", json={"seed": 1}, headers=headers) for _ in range(2))
    assert first.status_code == 201 and first.content == second.content and second.headers["idempotent-replay"] == "true"
    assert "idempotent-replay" not in first.headers
    other = clocked("POST", "/v1/rollouts", json={"seed": 2}, headers=headers)
    assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency_conflict"
    clocked("DELETE", f"/v1/rollouts/{first.json()['id']}")


def test_of_a_route_without_effect_nothing_is_kept(tiny):
    for text in ("a", "a", "b"):
        answer = tiny("POST", "/v1/tokenize", json={"tokenizer": "words", "input": text}, headers={"idempotency-key": "one"})
        assert answer.status_code == 200 and "idempotent-replay" not in answer.headers
    assert not tiny.app.state.gate.replays._kept


def test_a_step_of_a_rollout_that_is_sent_twice_is_taken_once(clocked):
    name = clocked("POST", "/v1/rollouts", json={}).json()["id"]
    headers = {"idempotency-key": f"step of {name}"}
    first, second = (clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}, headers=headers) for _ in range(2))
    assert first.json() == second.json() and first.json()["data"][0]["step"] == 1
    assert clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}).json()["data"][0]["step"] == 2
    clocked("DELETE", f"/v1/rollouts/{name}")


@pytest.fixture
def held(clocked, monkeypatch):
    """Steps of rollouts are taken, but not told before this is called."""
    act, told = clocked.engine.act, asyncio.Event()

    async def late(*asked):
        made = await act(*asked)
        await told.wait()
        return made

    monkeypatch.setattr(clocked.engine, "act", late)
    return lambda: clocked._loop.call_soon_threadsafe(told.set)


def test_a_step_whose_deadline_passes_is_taken_once_under_its_key(clocked, held):
    name = clocked("POST", "/v1/rollouts", json={}).json()["id"]
    headers = {"idempotency-key": f"late step of {name}"}
    late = clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}, headers={**headers, "x-request-timeout": "0.1"})
    assert late.status_code == 504 and late.json()["error"]["code"] == "deadline_exceeded"
    assert clocked.app.state.gate.in_progress == 1, "what goes on takes the place of a request"
    held()
    again = clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}, headers=headers)
    assert again.json()["data"][0]["step"] == 1 and again.headers["idempotent-replay"] == "true"
    assert clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}).json()["data"][0]["step"] == 2
    assert clocked.app.state.gate.in_progress == 0
    clocked("DELETE", f"/v1/rollouts/{name}")


def test_a_step_whose_client_is_lost_is_taken_once_under_its_key(clocked, held, listening, caplog):
    name = clocked("POST", "/v1/rollouts", json={}).json()["id"]
    headers = {"idempotency-key": f"lost step of {name}", "content-type": "application/json"}
    path, body = f"/v1/rollouts/{name}/act", b'{"action": 1}'
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    asked = (head + "".join(f"{key}: {value}\r\n" for key, value in headers.items()) + "\r\n").encode() + body
    with listening(clocked) as address, caplog.at_level(logging.INFO, LOGGER):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            connection.sendall(asked)
            until = time.monotonic() + 30
            while not clocked.app.state.gate.in_progress:
                assert time.monotonic() < until
        while "client_gone" not in caplog.text:
            assert time.monotonic() < until
        held()
        again = httpx.post(address + path, content=body, headers=headers)
        assert again.json()["data"][0]["step"] == 1 and again.headers["idempotent-replay"] == "true"
    assert clocked("POST", path, json={"action": 1}).json()["data"][0]["step"] == 2
    clocked("DELETE", f"/v1/rollouts/{name}")


def test_a_client_that_leaves_within_its_body_is_no_fault_of_ours(clocked, listening, caplog):
    with listening(clocked) as address, caplog.at_level(logging.INFO, LOGGER):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            connection.sendall(
                b"POST /v1/detokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
            )
            until = time.monotonic() + 30
            while not clocked.app.state.gate.in_progress:
                assert time.monotonic() < until
        while "client_gone" not in caplog.text:
            assert time.monotonic() < until
    assert '"status": 500' not in caplog.text


def test_a_step_whose_answer_is_too_large_to_be_kept_is_not_taken_again(clocked, monkeypatch):
    monkeypatch.setattr(clocked.app.state.gate, "replays", Replays(most_answer=100))
    name = clocked("POST", "/v1/rollouts", json={}).json()["id"]
    headers = {"idempotency-key": "large"}
    first, second = (clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}, headers=headers) for _ in range(2))
    assert first.json()["data"][0]["step"] == 1
    assert second.status_code == 410 and second.json()["error"]["code"] == "answer_gone"
    assert clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}).json()["data"][0]["step"] == 2
    clocked("DELETE", f"/v1/rollouts/{name}")


async def endless(*_):
    await asyncio.Event().wait()


def test_an_answer_that_does_not_begin_in_time_is_not_waited_for(clocked, monkeypatch):
    monkeypatch.setattr(clocked.engine, "encode", endless)
    monkeypatch.setattr(clocked.engine, "sessions", endless)
    for method, path, body in (("POST", "/v1/tokenize", {"json": {"tokenizer": "words", "input": "a"}}), ("GET", "/v1/rollouts", {})):
        answer = clocked(method, path, headers={"x-request-timeout": "0.1"}, **body)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"


def test_the_time_for_an_answer_begins_when_the_body_is_whole(tiny):
    async def slowly():
        yield b'{"tokenizer": "words", '
        await asyncio.sleep(0.5)
        yield b'"input": "a"}'

    answer = tiny("POST", "/v1/tokenize", content=slowly(), headers={**JSON, "x-request-timeout": "0.2"})
    assert answer.status_code == 200, answer.text


def test_an_answer_that_has_begun_in_time_is_not_cut(tiny, monkeypatch):
    async def slowly(asked):
        yield {"event": "segment", "stream": "words"}
        await asyncio.sleep(0.5)
        yield {"event": "end", "legal": True, "tokens": 0}

    monkeypatch.setattr(tiny.engine, "generate", slowly)
    answer = tiny("POST", "/v1/generate", json={}, headers={"x-request-timeout": "0.2"})
    assert [json.loads(line)["event"] for line in answer.text.splitlines()] == ["begin", "segment", "end"]


def test_logs_say_what_was_asked_but_neither_content_nor_token(guarded, caplog):
    marks = ["MARKED-TEXT", ADA, "MARKED-WRONG", "MARKED-COOKIE", "MARKED-PATH", "MARKED-QUERY"]
    with caplog.at_level(logging.DEBUG):
        guarded(
            "POST", "/v1/tokenize", json={"tokenizer": "words", "input": "MARKED-TEXT"}, headers={**bearer(ADA), "cookie": "MARKED-COOKIE"}
        )
        guarded("POST", "/v1/tokenize", json={"tokenizer": "clip", "input": "MARKED-TEXT"}, headers=bearer(ADA))
        guarded("GET", "/v1/info?token=MARKED-QUERY", headers=bearer("MARKED-WRONG"))
        guarded("GET", "/v1/batches/MARKED-PATH", headers=bearer(ADA))
        guarded("POST", "/v1/generate", json={"given": {"words": "MARKED-TEXT"}}, headers=bearer(ADA))
    own = [json.loads(record.getMessage()) for record in caplog.records if record.name == LOGGER]
    assert [line["status"] for line in own] == [200, 400, 401, 404, 200] and own[0]["tenant"] == "ada" and own[0]["cost"] == 11
    assert own[0]["route"] == "/v1/tokenize" and own[3]["route"] == "/v1/batches/{id}"
    whole = "\n".join(record.getMessage() for record in caplog.records if record.name != "httpx")
    assert not [mark for mark in marks if mark in whole]


def test_an_error_of_ours_is_said_without_what_it_quotes(guarded, caplog, monkeypatch):
    async def broken(*_):
        raise RuntimeError("MARKED-TEXT")

    monkeypatch.setattr(guarded.engine, "encode", broken)
    with caplog.at_level(logging.INFO, LOGGER):
        answer = guarded("POST", "/v1/tokenize", json={"tokenizer": "words", "input": "a"}, headers=bearer(ADA))
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal"
    assert "MARKED-TEXT" not in answer.text + caplog.text and "RuntimeError at test_guard.py" in caplog.text


def test_a_draining_service_answers_health_and_refuses_the_rest(guarded):
    guarded.app.state.gate.draining = True
    try:
        refused = guarded("GET", "/v1/info", headers=bearer(ADA))
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert guarded("GET", "/health/ready").status_code == 503 and guarded("GET", "/health/live").status_code == 200
    finally:
        guarded.app.state.gate.draining = False
    assert guarded("GET", "/health/ready").status_code == 200


def test_more_requests_at_once_than_allowed_are_refused_with_a_time_to_come_again(serve, tiny_root):
    with serve([str(tiny_root)], Limits(requests=1)) as service:
        service.app.state.gate.in_progress += 1
        refused = service("GET", "/v1/info")
        service.app.state.gate.in_progress -= 1
        assert refused.status_code == 429 and refused.headers["retry-after"] == "2"
        assert service("GET", "/v1/info").status_code == 200
