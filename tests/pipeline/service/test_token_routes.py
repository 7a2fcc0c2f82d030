"""Tokens from the service are those of the encode stage, to the byte."""

import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from worldloom.pipeline.service import tokenizer_worker
from worldloom.pipeline.service.errors import ServiceError
from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset
from worldloom.stages.shards import IndexedShard
from worldloom.stages.streams import kind_of


def stored(root, stream, split="train"):
    """The contents of a stream and the bytes of its tokens, sample by sample, of the first shard of a split."""
    data = Dataset(Artifact.open(root / "artifacts" / "data" / "0123456789abcdef"))
    tokens = root / "artifacts" / "tokens" / "0123456789abcdef" / "tokens" / split / stream
    shard = IndexedShard(tokens / "shard-000000.tar", tokens / "shard-000000.idx.npy")
    contents = data.reader(split, "shard-000000", stream)
    return [bytes(contents.content(row)) for row in range(len(shard))], [bytes(shard.content(row)) for row in range(len(shard))]


def sent(stream, contents):
    return [content.decode() if stream == "words" else base64.b64encode(content).decode() for content in contents]


def arrays(content):
    stream = io.BytesIO(content)
    while stream.tell() < len(content):
        yield np.load(stream)


def npy(array):
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


@pytest.mark.parametrize("stream", ["words", "clip", "push", "sound"])
@pytest.mark.parametrize("together", [1, 3, 8])
def test_tokens_are_those_of_the_encode_stage_to_the_byte_whatever_they_are_sent_with(clocked, clocked_root, stream, together):
    contents, tokens = stored(clocked_root, stream)
    for first in range(0, len(contents), together):
        asked = {"tokenizer": stream, "input": sent(stream, contents[first : first + together]), "return": "npy"}
        answer = clocked("POST", "/v1/tokenize", json=asked)
        assert answer.status_code == 200, answer.text
        found = list(arrays(answer.content))
        found = found if stream == "words" else list(found[0])
        assert [npy(one) for one in found] == tokens[first : first + together]


def test_pictures_have_the_tokens_of_the_encode_stage_in_json_too(tiny, tiny_root):
    contents, tokens = stored(tiny_root, "view")
    answer = tiny("POST", "/v1/tokenize", json={"tokenizer": "view", "input": sent("view", contents)}).json()
    found = [npy(np.array(one["codes"], answer["dtype"])) for one in answer["data"]]
    assert found == tokens
    assert [tuple(one["shape"]) for one in answer["data"]] == [(2, 2)] * len(tokens)


@pytest.mark.parametrize("stream", ["clip", "view"])
def test_an_array_of_values_has_the_tokens_of_their_files(request, stream):
    service, root = (
        request.getfixturevalue(f"{name}{end}") for name in ["clocked" if stream == "clip" else "tiny"] for end in ("", "_root")
    )
    contents, tokens = stored(root, stream)
    about = service.engine.tokenizers[stream].stream
    values = npy(np.stack([kind_of(about.kind).decode(content, about) for content in contents]))
    answer = service("POST", f"/v1/tokenize?tokenizer={stream}&return=npy", content=values, headers={"Content-Type": "application/x-npy"})
    assert answer.status_code == 200, answer.text
    assert [npy(one) for one in np.load(io.BytesIO(answer.content))] == tokens
    said = service("POST", f"/v1/tokenize?tokenizer={stream}", content=values, headers={"Content-Type": "application/x-npy"}).json()
    files = service("POST", "/v1/tokenize", json={"tokenizer": stream, "input": sent(stream, contents)}).json()
    assert said["data"] == files["data"] and said["usage"]["values"] == len(contents)


@pytest.mark.parametrize(
    ("stream", "array", "status", "code", "message"),
    [
        ("view", np.zeros((2, 16, 16, 3)), 422, "array_form", r"values are uint8 \[values, 16, 16, 3\], got float64 \[2, 16, 16, 3\]"),
        ("view", np.zeros((16, 16, 3), np.uint8), 422, "array_form", r"got uint8 \[16, 16, 3\]"),
        ("view", np.zeros((0, 16, 16, 3), np.uint8), 400, "request_invalid", "there is no value in it"),
        ("words", np.zeros((2, 3), np.uint8), 422, "array_form", "read of pictures and clips, this stream is text: send its files"),
        ("view", np.zeros((1_025, 16, 16, 3), np.uint8), 413, "too_many_values", "1025 values in one request, at most 1024"),
    ],
)
def test_an_array_of_another_form_is_refused(tiny, stream, array, status, code, message):
    answer = tiny("POST", f"/v1/tokenize?tokenizer={stream}", content=npy(array), headers={"Content-Type": "application/x-npy"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert re.search(message, answer.json()["error"]["message"])


def test_what_is_no_array_is_refused(tiny):
    answer = tiny("POST", "/v1/tokenize?tokenizer=view", content=b"\x93NUMPY", headers={"Content-Type": "application/x-npy"})
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (415, "type_mismatch", "body")


def test_files_and_arrays_in_one_batch_have_their_own_tokens(tiny, tiny_root):
    contents, tokens = stored(tiny_root, "view")
    worker = tiny.engine.calls.workers["tokenizer:view"]
    mixed = [content if row % 2 else kind_of("image").decode(content, worker.stream) for row, content in enumerate(contents)]
    found = worker.encode(mixed)
    assert found.refused == [] and [npy(one) for one in found.codes] == tokens


def test_one_value_that_cannot_be_read_is_refused_alone(clocked, caplog, monkeypatch):
    worker = clocked.engine.calls.workers["tokenizer:push"]
    good, bad = b"[0, 1, 2, 3]", b"[0, 1, 2, " + b"9" * 400 + b"]"
    found = worker.encode([good, bad, good])
    assert [(one.at, one.code) for one in found.refused] == [(1, "action_invalid")]
    assert found.codes[0].tolist() == found.codes[2].tolist() == worker.encode([good]).codes[0].tolist()
    decode = kind_of("action").decode

    def let_something_out(content, stream):
        return decode(content, stream) if content == good else 1 / 0

    monkeypatch.setattr(tokenizer_worker, "kind_of", lambda kind: replace(kind_of(kind), decode=let_something_out))
    answer = clocked("POST", "/v1/tokenize", data={"tokenizer": "push"}, files=[("file", ("x", content)) for content in (good, b"[0]")])
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]) == (422, "value_unreadable", "file[1]")
    (line,) = (json.loads(record.getMessage()) for record in caplog.records if "decoder_failed" in record.getMessage())
    assert line["tokenizer"] == "push" and line["error"].startswith("ZeroDivisionError at test_token_routes.py:")


def test_where_every_tokenizer_is_busy_that_is_said_before_the_application_begins(tiny, monkeypatch):
    def busy(values=1):
        raise ServiceError("busy", 429, "come again in a while", None, 2.0)

    for batcher in tiny.engine.batchers.values():
        answer = tiny("POST", "/v1/tokenize", content=b"{", headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "json_invalid", "one of them still takes some"
        monkeypatch.setattr(batcher, "check_room", busy)
    answer = tiny("POST", "/v1/tokenize", content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "2" and answer.headers.get("connection") != "close"
    assert re.search(r'worldloom_requests_total\{code="429",route="/v1/tokenize",tokenizer="-"\} \d', tiny("GET", "/metrics").text)
