"""Services of tiny tokenizers, in this process, and how tests talk to them."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from worldloom.pipeline.service.app import create_app
from worldloom.pipeline.service.engine import Engine, local_engine
from worldloom.pipeline.service.jobs import Jobs
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.protocol import bounded
from worldloom.pipeline.service.serve import Server
from worldloom.pipeline.service.tenants import Tenants

Answer = TypeVar("Answer")


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has started; errors of the application are answers."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            yield client


class Asking:
    """A started service, asked from a test that is no coroutine: its loop turns in a thread of its own."""

    def __init__(self, engine: Engine, tenants: Tenants | None = None, jobs: Jobs | None = None) -> None:
        self.app = create_app(engine, tenants, jobs)
        self.engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._opened = opened(self.app)
        self.client = self.run(self._opened.__aenter__())

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """The result of a coroutine in the service's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(300)

    def __call__(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.run(self.client.request(method, path, **options))

    def close(self) -> None:
        self.run(self._opened.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def asking(names: list[str], limits: Limits | None = None, tenants: Tenants | None = None, jobs: Jobs | None = None) -> Iterator[Asking]:
    """A service of runs and tokenizers, as long as it lasts."""
    service = Asking(local_engine(names, limits), tenants, jobs)
    try:
        yield service
    finally:
        service.close()


@contextmanager
def on_a_port(service: Asking) -> Iterator[str]:
    """The address of a service that listens on this machine."""
    config = uvicorn.Config(
        service.app, port=0, http=bounded(service.app.state.gate), ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = Server(config, service.app.state.gate)
    ended = asyncio.run_coroutine_threadsafe(server.serve(), service._loop)
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        ended.result(60)


@contextmanager
def in_a_process(tokenizer: Path, jobs: Path, port: int, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A service of one tokenizer in a process of its own, and a client of it."""
    command = [sys.executable, "-m", "worldloom.pipeline", "serve", str(tokenizer), "--plain", "--jobs", str(jobs), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until = time.monotonic() + 300
            while True:
                assert process.poll() is None and time.monotonic() < until
                with suppress(httpx.TransportError):
                    if client.get("/health/ready").status_code == 200:
                        break
                time.sleep(0.05)
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def plain() -> Callable[..., AbstractContextManager[tuple[subprocess.Popen[bytes], httpx.Client]]]:
    """`in_a_process`, for tests that send signals."""
    return in_a_process


@pytest.fixture
def free_port() -> int:
    """A port that nobody listened on just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


@pytest.fixture(scope="session")
def listening() -> Callable[..., AbstractContextManager[str]]:
    """`on_a_port`, for tests that need a socket."""
    return on_a_port


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Asking]]:
    """`asking`, for tests that need a service of their own."""
    return asking


@pytest.fixture(scope="session")
def tiny(tiny_root: Path) -> Iterator[Asking]:
    """The run of `tiny_root`, served: tokenizers words and view, and a world of both."""
    with asking([str(tiny_root)]) as service:
        yield service


@pytest.fixture(scope="session")
def clocked(clocked_root: Path) -> Iterator[Asking]:
    """The run of `clocked_root`, served: words, and clip, push and sound on a clock."""
    with asking([str(clocked_root)]) as service:
        yield service
