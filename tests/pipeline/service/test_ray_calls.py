"""Workers on Ray Serve: what they answer is what they answer in this process, and one that is killed is not missed."""

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from worldloom.pipeline.service.batcher import Batcher
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.ray_calls import Outcome, RayCalls
from worldloom.pipeline.service.served import Served, find_served

# Ray's own code, as it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")

TEXTS = [f"{colour} {shape}".encode() for colour in ("red", "blue", "") for shape in ("circle", "square", "\N{SNOWMAN}")]
LISTENS = "0A"  # in /proc/net/tcp
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


@pytest.fixture(scope="module")
def loop():
    """Runs coroutines in one loop, as a service does."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def calls(tiny_root, loop):
    """One tokenizer, of texts, on a Ray of its own."""
    served = find_served([str(tiny_root)])
    words = tuple(place for place in served.tokenizers if place.name == "words")
    made = RayCalls(Served(words, None, (), ()), Limits(), replicas=1)
    yield made
    loop(made.close())


def test_replicas_answer_as_workers_of_this_process_do_and_one_that_is_killed_is_not_missed(calls, loop, tiny):
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

    before, after = loop(work())
    answer = tiny("POST", "/v1/tokenize", json={"tokenizer": "words", "input": [text.decode() for text in TEXTS]}).json()
    expected = [one["codes"] for one in answer["data"]]
    assert [one.tolist() for one in before] == [one.tolist() for one in after] == expected


def test_tokenizers_are_asked_without_a_handle_once_they_are_known(calls, loop, monkeypatch):
    async def work():
        await Engine(calls, calls.served, Limits()).start()
        wires = calls._wires["tokenizer:words"]
        async with asyncio.timeout(60):
            while not wires.free:  # until a new one has come, where the one before was killed
                await asyncio.sleep(0.05)
        monkeypatch.setattr(calls, "_handles", {})
        with pytest.raises(KeyError):  # there are no handles
            await calls.call("tokenizer:words", "about")
        return await calls.call("tokenizer:words", "encode", [TEXTS[0], b"\xff"])

    found = loop(work())
    assert len(found.codes[0]) and [(each.at, each.code) for each in found.refused] == [(1, "text_not_utf8")]


def test_requests_are_routed_in_the_loop_that_asks(calls, loop):
    loop(calls.call("tokenizer:words", "about"))
    assert not [thread.name for thread in threading.enumerate() if "router" in thread.name]


def test_all_listens_on_loopback_but_a_port_of_each_replica_which_wants_rays_token(calls, loop):
    import grpc  # which Ray brings

    replica = loop(calls.processes("tokenizer:words"))
    ports = [(process, port) for process in descendants() for address, port in listening(process) if address not in LOOPBACK]
    assert [process for process, _ in ports] == [replica]
    with grpc.insecure_channel(f"127.0.0.1:{ports[0][1]}") as channel:
        ask = channel.unary_unary("/ray.serve.ASGIService/HandleRequest", bytes, bytes)
        with pytest.raises(grpc.RpcError) as refused:
            ask(b"", timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_stream_that_nobody_listens_to_any_more_ends_in_its_replica(calls, loop, monkeypatch, tmp_path):
    from ray import serve

    class Endless:
        async def stream(self, method, arguments):
            try:
                while True:
                    yield Outcome(method)
                    await asyncio.sleep(0.01)
            finally:
                arguments[0].touch()

    monkeypatch.setitem(calls._handles, "endless", serve.run(serve.deployment(Endless).bind(), name="endless", route_prefix=None))

    async def leave():
        said = calls.stream("endless", "line", tmp_path / "ended")
        assert await anext(said) == await anext(said) == "line"
        await said.aclose()
        until = time.monotonic() + 30
        while not (tmp_path / "ended").exists():
            assert time.monotonic() < until
            await asyncio.sleep(0.02)

    loop(leave())
    serve.delete("endless")


class Unavailable:
    """A handle of a deployment whose replicas did not start."""

    def __getattr__(self, name):
        return self

    def __call__(self, *_, **__):
        return self

    def __aiter__(self):
        return self

    def __await__(self):
        from ray.serve.exceptions import DeploymentUnavailableError

        raise DeploymentUnavailableError("words")

    async def __anext__(self):
        await self


def test_where_no_replica_is_up_that_is_said_with_a_time_to_come_again(calls, loop, monkeypatch):
    monkeypatch.setitem(calls._handles, "nobody", Unavailable())

    async def listen():
        return [line async for line in calls.stream("nobody", "generate")]

    for asked in (calls.call("nobody", "encode"), listen()):
        with pytest.raises(ServiceError, match="workers_unavailable") as refused:
            loop(asked)
        assert refused.value.status == 503 and refused.value.retry_after > 0


def test_an_update_of_one_replica_leaves_no_moment_without_one(calls, loop):
    from ray import serve

    name, before = "tokenizer-words", loop(calls.processes("tokenizer:words"))

    def running():
        return serve.status().applications[name].deployments[name].replica_states.get("RUNNING", 0)

    async def update():
        counts, updating = [], asyncio.create_task(asyncio.to_thread(calls.deploy))
        while not updating.done():
            counts.append(await asyncio.to_thread(running))
            await asyncio.sleep(0.02)
        await updating
        return counts

    assert min(loop(update())) >= 1 and loop(calls.processes("tokenizer:words")) != before


def descendants():
    """The ids of all processes that this one has started, and that they have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents.setdefault(int(path.read_text(errors="replace").rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, todo = [], [os.getpid()]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def listening(process):
    """Address, in the kernel's hexadecimal, and port of all TCP sockets on which a process listens."""
    sockets = set()
    for descriptor in Path(f"/proc/{process}/fd").glob("*"):
        with suppress(OSError):
            sockets.add(os.readlink(descriptor))
    if not sockets:  # it has ended meanwhile, too
        return []
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTENS and f"socket:[{inode}]" in sockets:
                address, _, port = local.partition(":")
                found.add((address, int(port, 16)))
    return sorted(found)
