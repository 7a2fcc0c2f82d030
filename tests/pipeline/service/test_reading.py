"""JSON of strangers: how deep it is, how much of it there is, and that nobody else waits for it."""

import json
import threading
import time

import pytest

from worldloom.pipeline.service import reading
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.reading import AT_ONCE, parse_json

JSON = {"content-type": "application/json"}
SHALLOW = [
    "[[[1]]]",
    '{"a": [{"b": "[[[[{{{"}]}',
    r'["\"[[[[", [[1]]]',
    r'["\\", [[1]]]',
    "[[], [], [[]], {}, [{}], [], [], []]",
    '["[", "{", "]]]]]", [[2]]]',
]
DEEP = ["[[[[1]]]]", '{"a": {"a": {"a": {}}}}', r'["\"", [[[1]]]]', r'["\\", [[["]"]]]]', "[[], [], [[[]]]]", "[" * 9, "[[[[]]]"]


@pytest.mark.parametrize("text", SHALLOW)
def test_depth_is_that_of_what_lies_outside_of_strings(text):
    assert parse_json(text.encode(), 3) == json.loads(text)


@pytest.mark.parametrize("text", DEEP)
def test_what_lies_deeper_than_allowed_is_refused_before_it_is_parsed(text, monkeypatch):
    monkeypatch.setattr(reading.json, "loads", None)
    with pytest.raises(ServiceError, match="more than 3 deep within each other"):
        parse_json(text.encode(), 3)


def test_millions_of_brackets_are_refused_at_once(tiny):
    body = b'{"tokenizer": "words", "input": [' + b"[]," * 3_000_000 + b"[]]}"
    begun = time.process_time()
    answer = tiny("POST", "/v1/tokenize", content=body, headers=JSON)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "json_too_large"
    assert time.process_time() - begun < 1


def test_brackets_and_commas_are_counted_as_a_limit_says(serve, tiny_root):
    with serve([str(tiny_root)], Limits(json_parts=5)) as service:
        statuses = [service("POST", "/v1/tokenize", json={"tokenizer": "words", "input": ["a"] * count}).status_code for count in (3, 4)]
    assert statuses == [200, 413]


def test_a_long_body_is_parsed_beside_the_loop_and_a_short_one_in_it(tiny, monkeypatch):
    threads = []

    def noted(content, depth):
        threads.append(threading.current_thread())
        return parse_json(content, depth)

    monkeypatch.setattr(reading, "parse_json", noted)
    for text in ("a", "a" * AT_ONCE):
        assert tiny("POST", "/v1/tokenize", json={"tokenizer": "words", "input": text}).status_code == 200
    assert threads[0] is tiny._thread and threads[1] is not tiny._thread


def test_a_doubled_key_among_many_is_found_in_one_look():
    pairs = [f'"{number}": 0' for number in range(200_000)]
    begun = time.process_time()
    with pytest.raises(ServiceError, match="the key '199999' stands there twice"):
        parse_json(("{" + ",".join([*pairs, pairs[-1]]) + "}").encode(), 3)
    assert time.process_time() - begun < 5
