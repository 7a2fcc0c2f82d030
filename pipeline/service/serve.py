"""`worldloom serve`: the application behind a port of this machine, its workers in replicas of Ray Serve or in this process."""

import asyncio
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from worldloom.pipeline.locate import locate
from worldloom.pipeline.service.app import create_app
from worldloom.pipeline.service.collector import leave_what_is_there
from worldloom.pipeline.service.engine import Engine, local_engine
from worldloom.pipeline.service.guard import Gate
from worldloom.pipeline.service.jobs import Jobs
from worldloom.pipeline.service.limits import limits_of
from worldloom.pipeline.service.protocol import bounded
from worldloom.pipeline.service.served import find_served
from worldloom.pipeline.service.sources import Sources
from worldloom.pipeline.service.tenants import Tenants, read_tenants

log = logging.getLogger("worldloom.service")


def serve_command(
    names: Sequence[str],
    host: str,
    port: int,
    token_file: Path | None,
    replicas: int,
    jobs: Path | None,
    sources: dict[str, Path],
    plain: bool,
) -> int:
    """Serves until it is told to stop; ValueError where it may not begin. The exit code."""
    check_address(host, token_file)
    if replicas < 1:
        raise ValueError(f"replicas must be at least 1, got {replicas}")
    for name, folder in sources.items():
        if not folder.is_dir():
            raise FileNotFoundError(f"--data {name}={folder}: there is no such folder")
    limits = limits_of()
    tenants = Tenants() if token_file is None else read_tenants(token_file)
    served = find_served(names)
    if jobs is None and served.runs:
        jobs = locate(served.runs[0]).root / "jobs"
    _log_lines()
    if plain:
        engine = local_engine(names, limits)
    else:
        from worldloom.pipeline.service.ray_calls import RayCalls

        engine = Engine(RayCalls(served, limits, replicas), served, limits)
    app = create_app(engine, tenants, Jobs(jobs, Sources(sources), limits.batches))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=bounded(app.state.gate),
        ws="none",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody asks where a request comes from
        lifespan="on",
        backlog=limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(limits.request_seconds) + 5,
    )
    server = Server(config, app.state.gate)
    server.run()
    return 0 if server.started else 1


def check_address(host: str, token_file: Path | None) -> None:
    """ValueError for an address that others can reach, where nobody needs a token."""
    if token_file is None and not _is_loopback(host):
        raise ValueError(f"{host} can be reached from elsewhere: without --token-file the service listens on 127.0.0.1 only")


class Server(uvicorn.Server):
    """Ends gracefully: not ready, then, once balancers have seen it, closed, with everything answered that was accepted.

    A second signal ends it at once. SIGHUP replaces the replicas, one after the other.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self.gate = gate
        self._loop: asyncio.AbstractEventLoop | None = None
        self._updating = threading.Lock()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, self._update)
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        leave_what_is_there()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gate.draining:
            self.should_exit = self.force_exit = True
            return
        self.gate.draining = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._loop.call_later, self.gate.limits.drain_seconds, self._leave)

    def _leave(self) -> None:
        self.should_exit = True

    def _update(self, sig: int, frame: FrameType | None) -> None:
        deploy = getattr(self.config.app.state.engine.calls, "deploy", None)  # type: ignore[union-attr]
        if deploy is not None:
            threading.Thread(target=self._deploy, args=(deploy,), daemon=True).start()

    def _deploy(self, deploy: Any) -> None:
        with self._updating:
            try:
                deploy()
                log.info('{"event": "updated"}')
            except RuntimeError as error:
                log.error('{"event": "update_failed", "error": "%s"}', type(error).__name__)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _log_lines() -> None:
    """The service's own lines, JSON each, on stderr; of uvicorn, warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
