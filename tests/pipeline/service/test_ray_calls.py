"""Workers on Ray Serve: what they answer is what they answer in this process, and one that is killed is not missed."""

import asyncio
import os
import signal

import pytest

from worldloom.pipeline.service.batcher import Batcher
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.ray_calls import RayCalls
from worldloom.pipeline.service.served import Served, find_served

# Ray's own code, as it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")

TEXTS = [f"{colour} {shape}".encode() for colour in ("red", "blue", "") for shape in ("circle", "square", "\N{SNOWMAN}")]


@pytest.fixture(scope="module")
def calls(tiny_root):
    """One tokenizer, of texts, on a Ray of its own."""
    served = find_served([str(tiny_root)])
    words = tuple(place for place in served.tokenizers if place.name == "words")
    made = RayCalls(Served(words, None, (), ()), Limits(), replicas=1)
    yield made
    made._close()


def test_replicas_answer_as_workers_of_this_process_do_and_one_that_is_killed_is_not_missed(calls, tiny):
    async def work():
        engine = Engine(calls, calls.served, Limits())
        await engine.start()
        params = [str(number) for number in range(len(TEXTS))]
        assert isinstance(engine.batchers["words"], Batcher)
        before = await engine.encode("words", TEXTS, [len(text) for text in TEXTS], params)
        with pytest.raises(ServiceError, match="text_not_utf8") as refused:
            await engine.encode("words", [b"\xff"], [1], ["input"])
        assert refused.value.status == 400 and refused.value.param == "input"
        os.kill(await calls.processes("tokenizer:words"), signal.SIGKILL)
        after = await engine.encode("words", TEXTS, [len(text) for text in TEXTS], params)
        return before, after

    before, after = asyncio.run(work())
    answer = tiny("POST", "/v1/tokenize", json={"tokenizer": "words", "input": [text.decode() for text in TEXTS]}).json()
    expected = [one["codes"] for one in answer["data"]]
    assert [one.tolist() for one in before] == [one.tolist() for one in after] == expected
