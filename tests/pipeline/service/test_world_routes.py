"""Worlds over HTTP: what is told on the way is what comes out in the end, and sessions go on where they stood."""

import asyncio
import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from worldloom.pipeline.dream import held_out_sample
from worldloom.pipeline.service.contract import RolloutRequest
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.world_worker import WorldWorker
from worldloom.stages.open_world import Choosing
from worldloom.stages.rollouts import beginning


def lines_of(answer):
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def told(lines):
    """Codes by stream, as they stand when all has been told."""
    found = {line["stream"]: {} for line in lines if line["event"] == "segment"}
    for line in lines:
        if line["event"] == "codes":
            found[line["stream"]].update(zip(line["places"], line["codes"], strict=True))
    return {name: [codes[place] for place in range(len(codes))] for name, codes in found.items()}


def world_of(service):
    return service.engine.calls.workers["world"].world


@pytest.mark.parametrize("options", [{}, {"fill_steps": 3}, {"guidance": 2.0}], ids=str)
def test_codes_that_are_told_are_those_of_the_sample(tiny, options, monkeypatch):
    worker = tiny.engine.calls.workers["world"]
    monkeypatch.setattr(worker, "world", replace(worker.world, objectives=("next_token", "masked")))
    asked = {"given": {"words": "a red circle"}, "want": ["view"], "seed": 7, **options}
    lines = lines_of(tiny("POST", "/v1/generate", json=asked))
    world = world_of(tiny)
    choosing = Choosing(temperature=0.25, **options)
    made = world.sample([{"words": "a red circle"}], ["view"], [7], choosing)[0]
    expected = {segment.stream: segment.codes.tolist() for segment in world.grammar.parse(made.tokens)}
    assert told(lines) == expected
    assert lines[0]["event"] == "begin" and lines[-1] == {"event": "end", "legal": True, "tokens": len(made.tokens)}
    values = {line["stream"]: line for line in lines if line["event"] == "value"}
    assert values["words"]["value"]["text"] == "a red circle" and values["words"]["given"] and not values["view"]["given"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(values["view"]["value"]["content"]))))
    assert np.array_equal(shown, made.values["view"])


def test_a_world_that_learnt_from_hidden_codes_alone_fills_them_in_unasked(tiny, monkeypatch):
    worker = tiny.engine.calls.workers["world"]
    monkeypatch.setattr(worker, "world", replace(worker.world, objectives=("masked",)))
    asked = {"given": {"words": "a red circle"}, "want": ["view"], "seed": 7}
    unasked, filled = (told(lines_of(tiny("POST", "/v1/generate", json={**asked, **steps}))) for steps in ({}, {"fill_steps": 12}))
    assert unasked == filled
    refused = tiny("POST", "/v1/generate", json={**asked, "fill_steps": 0})
    assert refused.status_code == 422 and "so it cannot write token by token; leave fill_steps out" in refused.json()["error"]["message"]


def test_streams_of_one_clock_are_told_step_by_step_under_their_places(clocked):
    lines = lines_of(clocked("POST", "/v1/generate", json={"want": ["clip", "push"], "seed": 1}))
    codes = told(lines)
    assert {name: len(found) for name, found in codes.items()} == {"clip": 20, "push": 4}
    world = world_of(clocked)
    made = world.sample([{}], ["clip", "push"], [1], Choosing())[0]
    assert codes == {segment.stream: segment.codes.tolist() for segment in world.grammar.parse(made.tokens)}


def test_with_nothing_given_the_world_writes_what_it_likes(tiny):
    lines = lines_of(tiny("POST", "/v1/generate", json={"seed": 3, "scale": 2}))
    assert lines[-1]["event"] == "end" and lines[-1]["legal"]


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"given": {"nothing": "a"}}, 400, "stream_unknown"),
        ({"given": {"words": "a"}, "want": ["words"]}, 422, "request_invalid"),
        ({"want": ["nothing"]}, 400, "stream_unknown"),
        ({"want": ["view", "view"]}, 422, "request_invalid"),
        ({"given": {"view": "AAAA"}}, 415, "type_mismatch"),
        ({"given": {"words": "word " * 500}}, 422, "request_invalid"),
        ({"temperature": -1}, 400, "request_invalid"),
        ({"temperature": {"nothing": 1.0}}, 422, "request_invalid"),
        ({"top_p": 0.0}, 422, "request_invalid"),
        ({"scale": 17}, 400, "request_invalid"),
        ({"seed": 2**63}, 400, "request_invalid"),
        ({"top_k": 10**399}, 400, "request_invalid"),
        ({"temperature": 10**399}, 400, "request_invalid"),
        ({"fill_steps": 2}, 422, "request_invalid"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_written_is_said_before_the_answer_begins(tiny, asked, status, code):
    answer = tiny("POST", "/v1/generate", json=asked)
    assert answer.status_code == status and answer.json()["error"]["code"] == code, answer.text


def test_a_session_gives_the_frames_that_a_rollout_gives(clocked):
    opened = clocked("POST", "/v1/rollouts", json={"seed": 5, "sample": 2}).json()
    assert opened["actions"]["choices"] == 5 and opened["first"]["step"] == 0 and opened["frames"] == "clip"
    actions = [1, 3, "up", 0, 2, 2, 4]
    steps = [clocked("POST", f"/v1/rollouts/{opened['id']}/act", json={"action": action}).json()["data"][0] for action in actions]
    world = world_of(clocked)
    split, sample = held_out_sample(world, 2)
    first = world.dataset.value(split, "clip", sample)[:1]
    numbers = [opened["actions"]["names"].index(one) if isinstance(one, str) else one for one in actions]
    taken = np.array(numbers, np.float32).reshape(1, -1, 1)
    made = list(world.rollout({"clip": first[None]}, taken, choosing=Choosing(temperature=0.25), seeds=[5]))
    for number, (step, expected) in enumerate(zip(steps, made, strict=True), 1):
        frame = np.asarray(Image.open(io.BytesIO(base64.b64decode(step["values"]["clip"]["content"]))))
        assert step["step"] == number and np.array_equal(frame, expected.values["clip"][0])
        assert step["numbers"]["push"] == expected.values["push"][0].reshape(-1).tolist()
    assert clocked("DELETE", f"/v1/rollouts/{opened['id']}").status_code == 204


def test_a_session_may_begin_behind_several_frames_of_a_sample(clocked):
    opened = clocked("POST", "/v1/rollouts", json={"seed": 5, "given": 2}).json()
    step = clocked("POST", f"/v1/rollouts/{opened['id']}/act", json={"action": 1}).json()["data"][0]
    world = world_of(clocked)
    context = beginning(world, *held_out_sample(world, 5), 2)
    assert context["clip"].shape[1] == 2 and context["push"].shape[1] == 1
    (expected,) = world.rollout(context, [[[1]]], choosing=Choosing(temperature=0.25), seeds=[5])
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(step["values"]["clip"]["content"])))), expected.values["clip"][0]
    )
    many = clocked("POST", "/v1/rollouts", json={"given": 6})
    assert many.status_code == 422 and "give from 1 to 5" in many.json()["error"]["message"]
    both = clocked("POST", "/v1/rollouts", json={"given": 2, "context": {"clip": "AAAA"}})
    assert both.status_code == 422 and both.json()["error"]["param"] == "given"


def test_several_steps_at_once_are_those_steps_and_the_world_may_take_its_own(clocked):
    one, other = (clocked("POST", "/v1/rollouts", json={"seed": 1}).json()["id"] for _ in range(2))
    alone = [clocked("POST", f"/v1/rollouts/{one}/act", json={"action": 2}).json()["data"][0]["values"] for _ in range(3)]
    together = clocked("POST", f"/v1/rollouts/{other}/act", json={"action": 2, "steps": 3}).json()["data"]
    assert [step["values"] for step in together] == alone
    free = clocked("POST", f"/v1/rollouts/{other}/act", json={}).json()["data"][0]
    assert free["step"] == 4 and 0 <= free["numbers"]["push"][0] < 5
    for name in (one, other):
        clocked("DELETE", f"/v1/rollouts/{name}")


def test_a_session_begins_with_a_picture_of_ones_own(clocked):
    written = io.BytesIO()
    Image.new("RGB", (40, 30), "blue").save(written, "PNG")
    context = {"clip": base64.b64encode(written.getvalue()).decode()}
    opened = clocked("POST", "/v1/rollouts", json={"context": context, "prompts": {"words": "a"}, "scale": 3}).json()
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(opened["first"]["values"]["clip"]["content"]))))
    assert first.shape == (48, 48, 3) and (first == [0, 0, 255]).all()
    clocked("DELETE", f"/v1/rollouts/{opened['id']}")


@pytest.mark.parametrize("action", [5, -1, 1.5, "sideways", [1.0, 2.0], 1e308, 10**398], ids=lambda action: str(action)[:20])
def test_an_action_that_there_is_not_is_refused_and_the_session_stands(clocked, action):
    name = clocked("POST", "/v1/rollouts", json={}).json()["id"]
    answer = clocked("POST", f"/v1/rollouts/{name}/act", json={"action": action})
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "action_invalid"
    assert clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 0}).json()["data"][0]["step"] == 1
    clocked("DELETE", f"/v1/rollouts/{name}")


@pytest.mark.parametrize(
    "asked", [{"seed": 2**64}, {"sample": 2**64}, {"given": 10**399}, {"window": 10**399}], ids=lambda asked: next(iter(asked))
)
def test_a_number_beyond_64_bits_is_refused(clocked, asked):
    answer = clocked("POST", "/v1/rollouts", json=asked)
    assert answer.status_code == 400 and "less than or equal to 9223372036854775807" in answer.json()["error"]["message"]


def test_the_largest_seed_is_one(clocked):
    name = clocked("POST", "/v1/rollouts", json={"seed": 2**63 - 1, "sample": 2**63 - 1}).json()["id"]
    assert clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}).status_code == 200
    clocked("DELETE", f"/v1/rollouts/{name}")
    assert lines_of(clocked("POST", "/v1/generate", json={"want": ["clip", "words"], "seed": 2**63 - 1}))[-1]["event"] == "end"


def test_a_window_is_no_longer_than_a_sample(clocked):
    answer = clocked("POST", "/v1/rollouts", json={"window": 10**15})
    assert answer.status_code == 422 and answer.json()["error"]["param"] == "window"
    assert "a window has at most the 5 steps of a sample, got 1000000000000000; ask for fewer" in answer.json()["error"]["message"]
    name = clocked("POST", "/v1/rollouts", json={"window": 5}).json()["id"]
    clocked("DELETE", f"/v1/rollouts/{name}")


def failing():
    raise MemoryError
    yield


@pytest.mark.parametrize("steps", [failing(), iter(())], ids=["fails", "has ended"])
def test_a_session_that_fails_is_closed_and_says_so(clocked, caplog, steps):
    name = clocked("POST", "/v1/rollouts", json={}).json()["id"]
    clocked.engine.calls.workers["world"]._sessions[name].steps = steps
    answer = clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}, headers={"x-request-timeout": "10"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "session_failed")
    assert clocked("POST", f"/v1/rollouts/{name}/act", json={"action": 1}).status_code == 404
    assert any("session_failed" in record.getMessage() and "Error at " in record.getMessage() for record in caplog.records)


def test_what_a_world_cannot_count_is_said_before_the_answer_begins(tiny, monkeypatch):
    def sample(*arguments):
        raise OverflowError("Python int too large to convert to C long")

    monkeypatch.setattr(type(world_of(tiny)), "sample", sample)
    answer = tiny("POST", "/v1/generate", json={})
    assert answer.status_code == 422 and "too large to convert" in answer.json()["error"]["message"]


def test_a_world_without_a_clock_cannot_be_rolled_out(tiny):
    answer = tiny("POST", "/v1/rollouts", json={})
    assert answer.status_code == 422 and "no streams on a clock" in answer.json()["error"]["message"]


def test_sessions_are_bounded_and_end_when_nobody_uses_them(clocked_root):
    now = [100.0]
    worker = WorldWorker(clocked_root / "artifacts" / "world" / "0123456789abcdef", most_sessions=2, session_seconds=10, now=lambda: now[0])
    first = worker.open("ada", RolloutRequest(), 2)["id"]
    now[0] = 105
    worker.open("ada", RolloutRequest(), 2)
    with pytest.raises(ServiceError, match="2 sessions are open"):
        worker.open("bob", RolloutRequest(), 2)
    now[0] = 109
    assert worker.act("ada", first, 1, 1)[0]["step"] == 1
    now[0] = 116
    assert [(one.id, one.left) for one in worker.sessions()] == [(first, 3.0)]
    now[0] = 120
    assert worker.sessions() == []


@pytest.fixture
def worker(clocked_root, monkeypatch):
    """Of five sessions; a session is opened so slowly that those asked for at the same time are opened at the same time."""
    worker = WorldWorker(clocked_root / "artifacts" / "world" / "0123456789abcdef", most_sessions=5, session_seconds=10)
    context = worker._context

    def slowly(*asked):
        time.sleep(0.2)
        return context(*asked)

    monkeypatch.setattr(worker, "_context", slowly)
    return worker


def opened_at_once(worker, tenants, asked, most):
    """Of each tenant: whether its session was opened, or what it was refused for."""

    def opened(tenant):
        try:
            return worker.open(tenant, asked, most)["id"] and "open"
        except ServiceError as refused:
            return refused.code

    with ThreadPoolExecutor(len(tenants)) as pool:
        return list(pool.map(opened, tenants))


def test_sessions_that_are_asked_for_at_once_are_no_more_than_a_tenant_may_have_nor_than_there_are(worker):
    assert sorted(opened_at_once(worker, ["ada"] * 8, RolloutRequest(), 3)) == ["busy"] * 5 + ["open"] * 3
    assert sorted(opened_at_once(worker, ["bob"] * 8, RolloutRequest(), 3)) == ["busy"] * 6 + ["open"] * 2
    assert sorted(one.tenant for one in worker.sessions()) == ["ada"] * 3 + ["bob"] * 2


def test_sessions_that_fail_to_open_leave_their_places(worker):
    beyond = RolloutRequest(given=6)
    for _ in range(2):
        assert opened_at_once(worker, ["ada", "ada", "bob"], beyond, 2) == ["request_invalid"] * 3
    assert opened_at_once(worker, ["ada", "ada", "bob"], RolloutRequest(), 2) == ["open"] * 3


def test_a_token_has_no_more_sessions_than_it_may_though_it_asks_for_all_at_once(serve, clocked_root):
    async def flood(client):
        return await asyncio.gather(*(client.post("/v1/rollouts", json={}) for _ in range(32)))

    with serve([str(clocked_root)], Limits(rollouts=2)) as service:
        answers = service.run(flood(service.client))
        assert sorted(answer.status_code for answer in answers) == [201] * 2 + [429] * 30
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["error"]["message"] == "this token has 2 sessions open; close one"
        assert "\nworldloom_rollouts 2.0\n" in service("GET", "/metrics").text
