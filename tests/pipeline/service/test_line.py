"""Calls wait for their turn, and no more of them than a bound."""

import asyncio
import threading

import pytest

from worldloom.pipeline.service import engine as engines
from worldloom.pipeline.service.calls import LANES, STREAMS
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.line import Line

WAITING = 3


def test_so_many_go_at_a_time_and_those_beyond_the_bound_are_told_to_come_again():
    async def work():
        line, going, may = Line(2, WAITING), [], asyncio.Event()

        async def go(number):
            async with line.place():
                going.append(number)
                await may.wait()

        asked = [asyncio.create_task(go(number)) for number in range(2 + WAITING)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert going == [0, 1] and line.waiting == WAITING
        with pytest.raises(ServiceError, match="3 requests wait for this") as refused:
            await go(9)
        assert refused.value.status == 429 and refused.value.retry_after >= 1
        asked[2].cancel()  # whoever leaves makes room
        await asyncio.sleep(0)
        asked.append(asyncio.create_task(go(5)))
        may.set()
        await asyncio.gather(*asked, return_exceptions=True)
        assert going == [0, 1, 3, 4, 5] and line.waiting == 0

    asyncio.run(work())


ROUTES = {
    "prepare": ("POST", "/v1/prepare", {"tokenizer": "words", "input": "a"}, ("tokenizer:words", "prepare"), LANES),
    "detokenize": ("POST", "/v1/detokenize", {"tokenizer": "words", "codes": [[1]]}, ("tokenizer:words", "decode"), LANES),
    "generate": ("POST", "/v1/generate", {"want": ["push"]}, ("world", "generate"), STREAMS),
    "open": ("POST", "/v1/rollouts", {}, ("world", "open"), LANES),
    "act": ("POST", f"/v1/rollouts/{'0' * 32}/act", {"action": 0}, ("world", "act"), LANES),
}


@pytest.fixture
def narrow(serve, clocked_root, monkeypatch):
    monkeypatch.setattr(engines, "MOST_WAITING", WAITING)
    monkeypatch.setattr(engines, "MOST_STREAMS", WAITING)
    with serve([str(clocked_root)]) as service:
        yield service


@pytest.mark.parametrize("route", ROUTES)
def test_a_flood_fills_no_queue_beyond_its_bound_and_what_was_taken_is_answered(narrow, route, monkeypatch):
    method, path, body, (to, work), places = ROUTES[route]
    worker, may = narrow.engine.calls.workers[to], threading.Event()
    done = getattr(worker, work)

    def late(*arguments):
        may.wait(60)
        return done(*arguments)

    monkeypatch.setattr(worker, work, late)

    async def flood():
        asked = [asyncio.create_task(narrow.client.request(method, path, json=body)) for _ in range(places + WAITING + 4)]
        try:
            async with asyncio.timeout(20):
                while sum(task.done() for task in asked) < 4:
                    await asyncio.sleep(0.01)
        finally:
            refused = [task.result() for task in asked if task.done()]
            may.set()
            answers = await asyncio.gather(*asked)
        return refused, answers

    refused, answers = narrow.run(flood())
    assert [answer.status_code for answer in answers].count(429) == len(refused) == 4
    assert all(answer.json()["error"]["code"] == "busy" and int(answer.headers["retry-after"]) >= 1 for answer in refused)
