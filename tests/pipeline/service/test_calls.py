"""Workers in threads of this process."""

import asyncio
import threading

from worldloom.pipeline.service.calls import STREAMS, LocalCalls


class Writer:
    """Begins to write, and goes on when it may."""

    def __init__(self):
        self.may, self.begun = threading.Event(), 0

    def write(self, say):
        self.begun += 1
        say("begun")
        self.may.wait(60)
        say("ended")

    def answer(self):
        return 5


def test_a_call_is_answered_while_as_many_streams_as_there_may_be_are_written():
    async def work():
        writer = Writer()
        calls = LocalCalls({"world": writer})
        streams = [calls.stream("world", "write") for _ in range(STREAMS)]
        assert [await anext(said) for said in streams] == ["begun"] * STREAMS
        assert await asyncio.wait_for(calls.call("world", "answer"), 10) == 5
        writer.may.set()
        assert [[item async for item in said] for said in streams] == [["ended"]] * STREAMS
        await calls.close()

    asyncio.run(work())


def test_a_stream_that_nobody_waits_for_any_more_is_never_begun():
    async def work():
        writer = Writer()
        calls = LocalCalls({"world": writer})
        streams = [calls.stream("world", "write") for _ in range(STREAMS)]
        for said in streams:
            await anext(said)
        late = asyncio.ensure_future(anext(calls.stream("world", "write")))
        for _ in range(5):
            await asyncio.sleep(0)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        writer.may.set()
        assert [item async for item in calls.stream("world", "write")] == ["begun", "ended"]  # whose turn comes behind that of the late one
        await calls.close()
        assert writer.begun == STREAMS + 1

    asyncio.run(work())
