"""How the engine reaches what works for it: by name, in threads of this process or in replicas of a cluster (see ray_calls)."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

LANES = 2  # calls that one worker has at a time: the next is decoded while this one is encoded
STREAMS = 2  # that it has beside them, in threads of their own: a stream takes as long as a sample
Say = Callable[[Any], None]
_END = object()


class Calls(Protocol):
    """Workers, called by name: "tokenizer:frame", "world"."""

    def lanes(self, to: str) -> int:
        """Calls that may be under way at the same time."""
        ...

    async def call(self, to: str, method: str, *arguments: Any) -> Any:
        """What the method returns, or the exception that it raises."""
        ...

    def stream(self, to: str, method: str, *arguments: Any) -> AsyncIterator[Any]:
        """What the method, given `say` as its last argument, says; whoever leaves the loop ends it where it next says something."""
        ...

    async def ready(self) -> None:
        """Called once all workers have answered."""
        ...

    async def close(self) -> None:
        """Ends the workers."""
        ...


class NoCalls:
    """Nobody works: for what an application says of itself."""

    def lanes(self, to: str) -> int:
        return 1

    async def call(self, to: str, method: str, *arguments: Any) -> Any:
        raise LookupError(f"nobody is called {to}")

    def stream(self, to: str, method: str, *arguments: Any) -> AsyncIterator[Any]:
        raise LookupError(f"nobody is called {to}")

    async def ready(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Gone(Exception):
    """Raised by `say` once nobody listens."""


class LocalCalls:
    """Workers in this process, in threads of their own."""

    def __init__(self, workers: Mapping[str, Any]) -> None:
        from worldloom.stages.deterministic import settled

        self.workers = dict(workers)
        self._pools = {name: ThreadPoolExecutor(LANES, thread_name_prefix=name) for name in workers}
        self._streams = {name: ThreadPoolExecutor(STREAMS, thread_name_prefix=f"{name}-stream") for name in workers}
        self._open = ExitStack()
        self._open.enter_context(settled(threads=1))

    def lanes(self, to: str) -> int:
        return LANES

    async def call(self, to: str, method: str, *arguments: Any) -> Any:
        work = partial(getattr(self.workers[to], method), *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pools[to], work)

    def stream(self, to: str, method: str, *arguments: Any) -> AsyncIterator[Any]:
        return streamed(self._streams[to], partial(getattr(self.workers[to], method), *arguments))

    async def ready(self) -> None:
        pass

    async def close(self) -> None:
        for pool in (*self._pools.values(), *self._streams.values()):
            pool.shutdown(wait=True, cancel_futures=True)
        self._open.close()


async def streamed(pool: Executor, work: Callable[[Say], None]) -> AsyncIterator[Any]:
    """What `work`, in a thread of the pool, says."""
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[Any] = asyncio.Queue()
    gone = threading.Event()

    def say(item: Any) -> None:
        if gone.is_set():
            raise Gone
        loop.call_soon_threadsafe(said.put_nowait, item)

    running: Future[None] = pool.submit(work, say)
    running.add_done_callback(lambda _: loop.call_soon_threadsafe(said.put_nowait, _END))
    try:
        while (item := await said.get()) is not _END:
            yield item
        running.result()
    finally:
        gone.set()
        running.cancel()  # if it has not begun
