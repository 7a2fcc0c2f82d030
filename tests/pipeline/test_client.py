"""The client against the application itself, and against one that fails as services do."""

import asyncio
import io

import httpx
import numpy as np
import pytest

from worldloom.pipeline.client import AsyncClient, Client, ServiceFailure, _written
from worldloom.pipeline.service.app import create_app
from worldloom.pipeline.service.engine import local_engine


def patient(handler, retries=3, **options):
    return Client(retries=retries, transport=httpx.MockTransport(handler), **options)


@pytest.fixture
def pauses(monkeypatch):
    """The seconds that clients would wait."""
    waited = []
    monkeypatch.setattr("worldloom.pipeline.client.time.sleep", waited.append)
    return waited


def test_a_busy_service_is_asked_again_when_it_says_so_under_the_same_key(pauses):
    seen = []

    def handler(request):
        seen.append(request.headers.get("idempotency-key"))
        if len(seen) == 3:
            return httpx.Response(202, json={"id": "batch_1"})
        busy = {"error": {"code": "busy", "message": "", "param": None, "request_id": "1"}}
        return httpx.Response(429, headers={"retry-after": "7"}, json=busy)

    assert patient(handler).batch({"view": "view"}, "data/x")["id"] == "batch_1"
    assert len(seen) == 3 and len(set(seen)) == 1 and seen[0]
    assert len(pauses) == 2 and min(pauses) >= 7


def test_a_lost_connection_is_tried_again_with_growing_pauses_and_at_last_is_raised(pauses):
    def handler(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(httpx.ConnectError):
        patient(handler, retries=3).info()
    assert len(pauses) == 3 and pauses[0] < 0.31 and pauses[2] >= 0.4


def test_what_is_wrong_with_a_request_is_not_tried_again(pauses):
    def handler(request):
        error = {"code": "image_truncated", "message": "cut", "param": "input[1]", "request_id": "r"}
        return httpx.Response(422, json={"error": error})

    with pytest.raises(ServiceFailure, match=r"image_truncated \(422\): cut \[input\[1\]\]") as failed:
        patient(handler).tokenize("view", [b"a", b"b"])
    assert failed.value.request_id == "r" and not pauses


def test_an_answer_of_somebody_between_is_a_failure_too(pauses):
    with pytest.raises(ServiceFailure, match="unknown"):
        patient(lambda request: httpx.Response(502, text="<html>"), retries=0).info()


def test_the_token_is_sent_as_a_bearer():
    seen = []

    def handler(request):
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={"data": []})

    assert patient(handler, token="secret").tokenizers() == [] and seen == ["Bearer secret"]


def test_files_are_written_below_the_folder_only(tmp_path):
    assert _written(tmp_path, "a/b.tar", b"x").read_bytes() == b"x"
    with pytest.raises(ValueError, match="it is not written"):
        _written(tmp_path, "../b.tar", b"x")


class Lines(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends after some lines, or is lost then."""

    def __init__(self, *lines, lost=False):
        self.lines, self.lost = lines, lost

    def __iter__(self):
        yield from (line.encode() + b"\n" for line in self.lines)
        if self.lost:
            raise httpx.ReadError("lost")

    async def __aiter__(self):
        for line in self:
            yield line


BEGIN, END = '{"event": "begin"}', '{"event": "end"}'
BUSY = {"error": {"code": "busy", "message": "", "param": None, "request_id": "1"}}


def events(handler, awaited, retries=3):
    """Those of a sample, as either client hears them, and what ended it, where something did."""
    heard = []

    async def listen():
        async with AsyncClient(retries=retries, transport=httpx.MockTransport(handler)) as client:
            async for line in client.generate({"words": "a"}):
                heard.append(line["event"])

    try:
        if awaited:
            asyncio.run(listen())
        else:
            with patient(handler, retries) as client:
                heard.extend(line["event"] for line in client.generate({"words": "a"}))
    except (httpx.TransportError, ServiceFailure) as error:
        return heard, error
    return heard, None


@pytest.fixture(params=[False, True], ids=["waiting", "awaited"])
def awaited(request, monkeypatch, pauses):
    """Which client; the pauses of both are noted."""

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr("worldloom.pipeline.client.asyncio.sleep", sleep)
    return request.param


def test_a_sample_is_asked_for_again_until_its_first_line_is_there(awaited, pauses):
    answers = [
        httpx.ConnectError("refused"),
        httpx.Response(503, headers={"retry-after": "7"}, json=BUSY),
        httpx.Response(200, stream=Lines(lost=True)),
        httpx.Response(200, stream=Lines(BEGIN, END)),
    ]

    def handler(request):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert events(handler, awaited) == (["begin", "end"], None)
    assert len(pauses) == 3 and pauses[1] >= 7 and not answers


def test_a_sample_that_is_lost_behind_its_first_line_is_not_written_twice(awaited, pauses):
    asked = []

    def handler(request):
        asked.append(request)
        return httpx.Response(200, stream=Lines(BEGIN, lost=True))

    _, error = events(handler, awaited)
    assert isinstance(error, httpx.ReadError) and len(asked) == 1 and not pauses


def test_a_sample_that_is_refused_to_the_end_of_patience_is_a_failure(awaited, pauses):
    heard, error = events(lambda request: httpx.Response(429, headers={"retry-after": "1"}, json=BUSY), awaited, retries=2)
    assert heard == [] and error.code == "busy" and len(pauses) == 2


def test_a_session_whose_end_was_lost_on_the_way_has_ended(pauses):
    answers = [httpx.Response(504, json=BUSY), httpx.Response(404, json=BUSY), httpx.Response(404, json=BUSY)]
    with patient(lambda request: answers.pop(0)) as client:
        client.close_rollout("1")
        with pytest.raises(ServiceFailure):
            client.close_rollout("never was")


def test_values_go_there_and_come_back_awaited(clocked_root):
    async def work():
        app = create_app(local_engine([str(clocked_root)]))
        async with app.router.lifespan_context(app), AsyncClient("http://localhost", transport=httpx.ASGITransport(app)) as client:
            names = [one["name"] for one in await client.tokenizers()]
            texts = ["a red circle", "a", "a red circle"]
            codes = await client.tokenize("words", texts)
            assert names == ["clip", "push", "sound", "words"] and await client.detokenize("words", codes) == texts
            assert (codes[0] == codes[2]).all() and codes[0].dtype == np.uint16
            (pushes,) = await client.tokenize("push", [[[1], [2], [0], [4]]])
            assert pushes.tolist() == [1, 2, 0, 4]
            (clip,) = await client.detokenize("clip", [np.zeros((5, 2, 2), int)], "npy")
            (again,) = await client.tokenize("clip", [clip])
            assert again.shape == (5, 2, 2)
            (whole,) = await client.tokenize("clip", np.load(io.BytesIO(clip))[None])
            assert (whole == again).all()
            lines = [line async for line in client.generate({"words": "a"}, ["push"], seed=3)]
            assert [lines[0]["event"], lines[-1]["event"]] == ["begin", "end"] and lines[-1]["legal"]
            with pytest.raises(ServiceFailure, match="stream_unknown"):
                [line async for line in client.generate({"nothing": "a"})]

    asyncio.run(work())
