"""Batches without waiting, queues with an end."""

import asyncio

import numpy as np
import pytest

from worldloom.pipeline.service.batcher import MOST_VALUES, Batcher, Bounds, retry_after
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.values import TOGETHER, Encoded, Refused


class Worker:
    """Takes batches and holds each until it is let go."""

    def __init__(self, refuse=()):
        self.batches, self.gate, self.refuse = [], asyncio.Event(), refuse

    async def __call__(self, contents):
        self.batches.append(list(contents))
        await self.gate.wait()
        refused = [Refused(index, "no", "") for index, content in enumerate(contents) if content in self.refuse]
        return Encoded([np.frombuffer(content, np.uint8) for content in contents], refused)


def batcher(worker, lanes=1, values=1_000, seconds=1e9, unit="characters"):
    return Batcher(worker, lanes, unit, Bounds(values, seconds))


def numbered(first, last):
    return [b"%d" % number for number in range(first, last)]


async def ask(to, *contents, cost=1):
    return await to(list(contents), [cost] * len(contents))


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_first_goes_at_once_and_what_comes_meanwhile_goes_together():
    async def work():
        worker = Worker()
        to = batcher(worker)
        asked = [asyncio.create_task(ask(to, b"0"))]
        await settle()
        asked += [asyncio.create_task(ask(to, b"%d" % number)) for number in range(1, 6)]
        await settle()
        assert worker.batches == [[b"0"]] and to.queued == 5
        worker.gate.set()
        found = await asyncio.gather(*asked)
        assert worker.batches == [[b"0"], [b"1", b"2", b"3", b"4", b"5"]]
        assert [bytes(one.codes[0]) for one in found] == [b"%d" % number for number in range(6)] and to.queued == 0

    asyncio.run(work())


def test_a_busy_worker_gets_its_next_batch_once_that_is_full_and_what_goes_beyond_full_ones_waits():
    async def work():
        worker = Worker()
        to = batcher(worker, lanes=2)
        asked = [asyncio.create_task(ask(to, one)) for one in numbered(0, TOGETHER)]
        await settle()
        asked += [asyncio.create_task(ask(to, one)) for one in numbered(TOGETHER, 2 * TOGETHER)]
        await settle()
        assert worker.batches == [numbered(0, TOGETHER), numbered(TOGETHER, 2 * TOGETHER)]
        asked += [asyncio.create_task(ask(to, one)) for one in numbered(2 * TOGETHER, 4 * TOGETHER + 3)]
        await settle()
        assert to.queued == 2 * TOGETHER + 3
        worker.gate.set()
        await asyncio.gather(*asked)
        assert [len(batch) for batch in worker.batches] == [TOGETHER, TOGETHER, 2 * TOGETHER, 3]

    asyncio.run(work())


def test_a_second_worker_gets_what_there_is_while_the_first_is_busy():
    async def work():
        worker = Worker()
        to = Batcher(worker, 4, "characters", Bounds(1_000, 1e9), workers=2)
        asked = []
        for name in (b"a", b"b", b"c"):
            asked.append(asyncio.create_task(ask(to, name)))
            await settle()
        assert worker.batches == [[b"a"], [b"b"]]
        worker.gate.set()
        await asyncio.gather(*asked)
        assert worker.batches[2:] == [[b"c"]]

    asyncio.run(work())


def test_a_batch_is_bounded_by_values_and_by_cost():
    async def work():
        worker = Worker()
        worker.gate.set()
        to = batcher(worker)
        many = await ask(to, *[b"%d" % number for number in range(2 * MOST_VALUES + 3)])
        assert [len(batch) for batch in worker.batches] == [MOST_VALUES, MOST_VALUES, 3]
        assert [bytes(one) for one in many.codes] == [b"%d" % number for number in range(2 * MOST_VALUES + 3)]
        worker.batches.clear()
        await ask(to, b"a", b"b", b"c", cost=200_000)
        assert [len(batch) for batch in worker.batches] == [1, 1, 1]

    asyncio.run(work())


def test_refusals_come_back_under_the_numbers_of_their_own_request():
    async def work():
        worker = Worker(refuse=(b"bad",))
        to = batcher(worker)
        first = asyncio.create_task(ask(to, b"x"))
        await settle()
        one, two = asyncio.create_task(ask(to, b"a", b"b")), asyncio.create_task(ask(to, b"c", b"bad"))
        await settle()
        worker.gate.set()
        await first
        assert (await one).refused == [] and (await two).refused == [Refused(1, "no", "")]

    asyncio.run(work())


def test_refusals_of_a_long_request_are_numbered_through_its_parts():
    async def work():
        worker = Worker(refuse=(b"bad",))
        worker.gate.set()
        found = await ask(batcher(worker), *[b"a"] * (MOST_VALUES + 1), b"bad")
        assert found.refused == [Refused(MOST_VALUES + 1, "no", "")] and len(found.codes) == MOST_VALUES + 2

    asyncio.run(work())


def test_a_full_queue_refuses_with_a_time_to_come_again():
    async def work():
        worker = Worker()
        to = batcher(worker, values=2)
        asked = [asyncio.create_task(ask(to, b"x"))]
        await settle()
        asked += [asyncio.create_task(ask(to, b"x")) for _ in range(2)]
        await settle()
        with pytest.raises(ServiceError, match="2 values wait for this tokenizer") as refused:
            await ask(to, b"x")
        assert refused.value.status == 429 and refused.value.retry_after >= 1 and retry_after(1.2) == "2"
        worker.gate.set()
        await asyncio.gather(*asked)
        await ask(to, b"x")

    asyncio.run(work())


def test_what_nobody_waits_for_is_dropped_before_any_work():
    async def work():
        worker = Worker()
        to = batcher(worker)
        first = asyncio.create_task(ask(to, b"first"))
        await settle()
        gone, stays = asyncio.create_task(ask(to, b"gone")), asyncio.create_task(ask(to, b"stays"))
        await settle()
        gone.cancel()
        await settle()
        worker.gate.set()
        await asyncio.gather(first, stays)
        assert worker.batches == [[b"first"], [b"stays"]] and to.queued == 0 and to.seconds() == 0

    asyncio.run(work())


def test_a_failure_reaches_those_of_its_batch_alone():
    async def work():
        async def run(contents):
            if b"bad" in contents:
                raise RuntimeError("broken")
            return Encoded([np.zeros(1) for _ in contents], [])

        to = batcher(run)
        with pytest.raises(RuntimeError, match="broken"):
            await ask(to, b"bad")
        assert len((await ask(to, b"good")).codes) == 1

    asyncio.run(work())


def test_a_failure_that_nobody_expected_reaches_those_alone_who_brought_it_not_their_neighbours_in_the_batch():
    async def work():
        batches, may = [], asyncio.Event()

        async def run(contents):
            batches.append(list(contents))
            await may.wait()
            if b"bad" in contents:
                raise OverflowError("int too large")
            return Encoded(
                [np.frombuffer(content, np.uint8) for content in contents], [Refused(0, "no", "")] if contents[0] == b"no" else []
            )

        to = batcher(run)
        first = asyncio.create_task(ask(to, b"first"))
        await settle()
        asked = [asyncio.create_task(ask(to, *contents)) for contents in ([b"a", b"b"], [b"bad"], [b"no"], [b"gone"])]
        await settle()
        asked[3].cancel()
        may.set()
        await first
        with pytest.raises(OverflowError, match="int too large"):
            await asked[1]
        assert [bytes(one) for one in (await asked[0]).codes] == [b"a", b"b"] and (await asked[2]).refused == [Refused(0, "no", "")]
        assert batches == [[b"first"], [b"a", b"b", b"bad", b"no"], [b"a", b"b"], [b"bad"], [b"no"]] and to.seconds() == 0

    asyncio.run(work())


def test_a_worker_that_is_lost_is_not_asked_once_more_for_each_of_a_batch():
    async def work():
        worker, batches = Worker(), []

        async def run(contents):
            batches.append(list(contents))
            await worker.gate.wait()
            raise ServiceError("replica_lost", 503, "gone")

        to = batcher(run)
        asked = [asyncio.create_task(ask(to, b"first"))]
        await settle()
        asked += [asyncio.create_task(ask(to, content)) for content in (b"a", b"b")]
        await settle()
        worker.gate.set()
        assert [error.code for error in await asyncio.gather(*asked, return_exceptions=True)] == ["replica_lost"] * 3
        assert batches == [[b"first"], [b"a", b"b"]]

    asyncio.run(work())
