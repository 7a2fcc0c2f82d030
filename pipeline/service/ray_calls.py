"""Workers as replicas of Ray Serve: a deployment for each tokenizer, one for the world. What is asked of them comes through handles.

Serve places them, looks after their health, replaces what died and updates one replica after the other. HTTP is not its business here: the
front batches before anything is asked. What tokenizers are asked goes to them directly (see wire.py) wherever it can: a call over a handle
takes milliseconds on both sides, more than sixteen small pictures.
"""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from worldloom.pipeline.machine import cpu_count
from worldloom.pipeline.ray_executor import ENVIRONMENT, OWN_ENVIRONMENT, begin_local_ray
from worldloom.pipeline.ray_processes import deaf_children, ended_when_asked
from worldloom.pipeline.ray_session import Session
from worldloom.pipeline.service.calls import LANES, STREAMS, streamed
from worldloom.pipeline.service.collector import leave_what_is_there
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.served import EncoderPlace, Served, TokenizerPlace
from worldloom.pipeline.service.values import Encoded, Refused
from worldloom.pipeline.service.wire import Lost, Station, Wires
from worldloom.stages.rejects import InputRejected

RETRIES = 4  # of a call without an effect, when the replica that had it died
AGAIN = {"about", "encode", "decode", "sessions", "golden", "embed", "search", "prepare"}  # methods without an effect
PAUSE = 0.2  # seconds before a call is tried again
DRAIN = 70.0  # seconds that a replica has for what it has begun
SURGE = 1  # percent; rounded up, it is one replica more than there are to be, so that a new one is up before an old one ends
# Read by Ray Serve when it is imported, here and in its processes. By default a request changes threads twice on its way, to Serve's router
# and to ours: against code that holds up a loop. Ours holds up none: a replica works in its own pool, the front hands over and waits.
SERVE_ENVIRONMENT = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}


class Outcome(NamedTuple):
    """What came of a call: exceptions with fields of their own would not survive the way."""

    value: Any = None
    refused: tuple[str, int, str, str | None, float | None] | None = None  # as ServiceError takes it
    rejected: tuple[str, str] | None = None  # as InputRejected takes it

    def get(self) -> Any:
        """The value, or the exception."""
        if self.refused is not None:
            raise ServiceError(*self.refused)
        if self.rejected is not None:
            raise InputRejected(*self.rejected)
        return self.value


class Replica:
    """One worker in a process of its own, with a few threads."""

    def __init__(
        self, place: TokenizerPlace | EncoderPlace | Path, limits: Limits, golden: bytes | None, version: int, wires: Path | None
    ) -> None:
        """`golden`: what it must make of the golden value; a replica that makes something else never takes a request. `wires`: the folder
        where it can be asked directly."""
        from worldloom.stages.deterministic import settled

        self.version = version
        self._station: Station | None = None
        self._settled = settled(threads=1 if isinstance(place, TokenizerPlace) else cpu_count())
        self._settled.__enter__()
        self.pool, self.streams = ThreadPoolExecutor(LANES), ThreadPoolExecutor(STREAMS)
        if isinstance(place, TokenizerPlace):
            from worldloom.pipeline.service.tokenizer_worker import TokenizerWorker

            self.worker: Any = TokenizerWorker(place)
            if golden is not None and self.worker.golden() != golden:
                raise RuntimeError(f"the tokenizer {place.name} gives other codes than the one it was to replace")
        elif isinstance(place, EncoderPlace):
            from worldloom.pipeline.service.encoder_worker import EncoderWorker

            self.worker = EncoderWorker(place)
        else:
            from worldloom.pipeline.service.world_worker import WorldWorker

            self.worker = WorldWorker(place, 4 * limits.rollouts, limits.rollout_seconds)
        leave_what_is_there()
        if wires is not None:
            self._station = Station(wires, self._encode)

    def __del__(self) -> None:
        """Serve calls this before it ends a replica, once it has no more calls of Serve's."""
        if self._station is not None:
            self._station.close(DRAIN)

    def _encode(self, contents: Any) -> Outcome:
        return _outcome(partial(self.worker.encode, contents))

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Outcome:
        """The outcome of a method."""
        work = partial(getattr(self.worker, method), *arguments)
        return await asyncio.get_running_loop().run_in_executor(self.pool, _outcome, work)

    async def stream(self, method: str, arguments: tuple[Any, ...]) -> AsyncIterator[Outcome]:
        """What the method says, each as an outcome."""
        try:
            async for said in streamed(self.streams, partial(getattr(self.worker, method), *arguments)):
                yield Outcome(said)
        except (ServiceError, InputRejected) as error:
            yield _refusal(error)

    async def process(self) -> int:
        """Its process's id."""
        return os.getpid()


class RayCalls:
    """A Ray of its own on this machine's loopback, gone with this process."""

    def __init__(self, served: Served, limits: Limits, replicas: int) -> None:
        """Starts Ray and all replicas; call it from the main thread. ValueError says which of them did not start, and why."""
        self.served, self.limits, self.replicas = served, limits, replicas
        self.version = 0
        self._golden: dict[str, bytes] = {}
        self._handles: dict[str, Any] = {}
        for name, value in (ENVIRONMENT | OWN_ENVIRONMENT | SERVE_ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}).items():
            os.environ.setdefault(name, value)
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        self._session = Session()
        with deaf_children():
            begin_local_ray(self._session)
            self._wires = self._meeting_places()
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
            try:
                self.deploy()
            except RuntimeError as error:
                serve.shutdown()
                self._end()
                raise ValueError(str(error)) from None

    def deploy(self) -> None:
        """Starts the replicas, or replaces them one by one; RuntimeError where new ones do not come up, and the old ones stay."""
        from ray import serve

        self.version += 1
        places: dict[str, TokenizerPlace | EncoderPlace | Path] = {f"tokenizer:{place.name}": place for place in self.served.tokenizers}
        places |= {f"encoder:{place.name}": place for place in self.served.encoders}
        if self.served.world is not None:
            places["world"] = self.served.world
        targets = [serve.RunTarget(self._bound(serve, to, place), _named(to), None) for to, place in places.items()]
        try:
            handles = serve.run_many(targets)
        except RuntimeError as error:
            raise RuntimeError(_reason(serve) or str(error)) from None
        self._handles = dict(zip(places, handles, strict=True))

    def _meeting_places(self) -> dict[str, Wires]:
        """Folders with short names, by numbers: those of sockets are bounded."""
        found = {}
        for number, name in enumerate(f"tokenizer:{one.name}" for one in self.served.tokenizers):
            folder = Path(self._session.folder) / f"wires{number}"
            folder.mkdir()
            found[name] = Wires(folder, LANES)
        return found

    def lanes(self, to: str) -> int:
        return LANES * self._replicas(to)

    async def call(self, to: str, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import DeploymentUnavailableError

        for attempt in range(RETRIES + 1):
            try:
                outcome = await self._ask(to, method, arguments)
                return outcome.get()
            except (RayActorError, Lost):
                if method not in AGAIN:
                    raise ServiceError("replica_lost", 503, "the worker that had this ended; open a new session", None, 1.0) from None
                if attempt == RETRIES:
                    raise ServiceError("replica_lost", 503, "the workers that had this ended; send it again", None, 1.0) from None
                await asyncio.sleep(PAUSE * 2**attempt)
            except DeploymentUnavailableError:
                raise _unavailable() from None
        raise AssertionError("the loop returns or raises")

    async def _ask(self, to: str, method: str, arguments: tuple[Any, ...]) -> Outcome:
        """Directly, where that may be and a worker is free; Lost, RayActorError."""
        wires = self._wires.get(to) if method == "encode" else None
        if wires is not None and (wire := wires.take()) is not None:
            return _encoded(*await wires.call(wire, arguments[0]))
        found: Outcome = await self._handles[to].call.remote(method, arguments)
        return found

    async def stream(self, to: str, method: str, *arguments: Any) -> AsyncIterator[Any]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import DeploymentUnavailableError

        answer = self._handles[to].options(stream=True).stream.remote(method, arguments)
        try:
            async for outcome in answer:
                yield outcome.get()
        except RayActorError:
            raise ServiceError("replica_lost", 503, "the worker that wrote this ended; ask again", None, 1.0) from None
        except DeploymentUnavailableError:
            raise _unavailable() from None
        finally:
            answer.cancel()  # where it has not ended: the replica does not hear that nobody listens any more

    async def processes(self, to: str) -> int:
        """The id of the process of one of a deployment's replicas."""
        found: int = await self._handles[to].process.remote()
        return found

    async def ready(self) -> None:
        """Remembers what every tokenizer makes of its golden value: replicas that come later must make the same."""
        for place in self.served.tokenizers:
            self._golden[place.name] = await self.call(f"tokenizer:{place.name}", "golden")
        for wires in self._wires.values():
            await wires.look()

    async def close(self) -> None:
        from ray import serve

        try:
            for wires in self._wires.values():
                await wires.close()
            await serve.shutdown_async()  # in the loop that asked: the routers' tasks are there
        finally:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        import ray

        with ended_when_asked():
            ray.shutdown()
        self._session.remove()

    def _bound(self, serve: Any, to: str, place: TokenizerPlace | EncoderPlace | Path) -> Any:
        deployment = serve.deployment(
            Replica,
            name=_named(to),
            num_replicas=self._replicas(to),
            max_ongoing_requests=2 * LANES,
            max_surge_percent=SURGE,
            ray_actor_options={"num_cpus": 0},
            health_check_period_s=2,
            graceful_shutdown_timeout_s=DRAIN,
            graceful_shutdown_wait_loop_s=0.2,
        )
        golden = self._golden.get(place.name) if isinstance(place, TokenizerPlace) else None
        wires = self._wires[to].folder if to in self._wires else None
        return deployment.bind(place, self.limits, golden, self.version, wires)

    def _replicas(self, to: str) -> int:
        """One of a world: its sessions stay where their cache is."""
        return self.replicas if to.startswith("tokenizer:") else 1


def _unavailable() -> ServiceError:
    return ServiceError(
        "workers_unavailable", 503, "no worker of this is up, and its new ones did not start: see the service's log", None, 5.0
    )


def _named(to: str) -> str:
    """As Serve may call it."""
    return to.replace(":", "-")


def _reason(serve: Any) -> str:
    """The last line of what replicas died of, where some did."""
    for name, application in serve.status().applications.items():
        for deployment in application.deployments.values():
            lines = [line for line in deployment.message.splitlines() if line.strip()]
            if application.status == "DEPLOY_FAILED" and lines:
                return f"{name} did not start: {lines[-1].strip()}"
    return ""


def _outcome(work: Any) -> Outcome:
    try:
        return Outcome(work())
    except (ServiceError, InputRejected) as error:
        return _refusal(error)


def _encoded(value: Any, refused: Any, rejected: Any) -> Outcome:
    """As it was before it went over a wire."""
    if value is None:
        return Outcome(None, refused, rejected)
    codes, without = value
    return Outcome(Encoded(codes, [Refused(*each) for each in without]))


def _refusal(error: ServiceError | InputRejected) -> Outcome:
    if isinstance(error, ServiceError):
        return Outcome(refused=(error.code, error.status, error.message, error.param, error.retry_after))
    return Outcome(rejected=(error.code, error.detail))
