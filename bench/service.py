"""The service beside others that serve the same tokenizer, and under loads that no service likes.

WORLDLOOM_BENCH_SECONDS sets how long each load lasts (60), WORLDLOOM_BENCH_TURNS how often contestants take turns (3), and
WORLDLOOM_BENCH_ONLY which parts run, by the names in PARTS. All of it runs in a network of its own that has nothing but loopback, since
HAProxy listens on every address it finds.
"""

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.figure import Figure, at_least, at_most
from bench.service_load import Connections, Load, closed, open_loop, request, rounds

SIDE, CONNECTIONS, MANY = 32, 32, 256
SECONDS = float(os.environ.get("WORLDLOOM_BENCH_SECONDS", "60"))
TURNS = int(os.environ.get("WORLDLOOM_BENCH_TURNS", "3"))
SOAK = 8 * SECONDS
START = 300.0  # seconds that a server may take to begin
RACE = max(2.0, SECONDS / 6)
INSIDE = "WORLDLOOM_BENCH_INSIDE"
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def figures() -> Iterator[Figure]:
    """All parts, in a process that sees loopback alone; where that cannot be had, without HAProxy."""
    if os.environ.get(INSIDE) is None:
        inside = "ip link set lo up && exec " + f"{sys.executable} -m bench.service"
        private = subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0 if shutil.which("unshare") else False
        command = ["unshare", "-n", "sh", "-c", inside] if private else [sys.executable, "-m", "bench.service"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, INSIDE: "1" if private else "0"}) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield Figure(**json.loads(line))
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        return
    only = os.environ.get("WORLDLOOM_BENCH_ONLY", "").split()
    with tempfile.TemporaryDirectory(prefix="worldloom-service-") as folder:
        tokenizer = _tokenizer(Path(folder))
        for name, part in PARTS.items():
            if not only or name in only:
                yield from part(Path(folder), tokenizer)


def race(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """Requests of one picture each, at 32 connections and at one; many pictures in one request beside the bare tokenizer."""
    mine, theirs = _requests("/v1/tokenize", {"tokenizer": "frame"}), _requests("/tokenize", {})
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_service(folder, tokenizer))
        plain = stack.enter_context(_server([sys.executable, "-m", "bench.service_peers", "fastapi", str(tokenizer)], "/docs"))
        contestants = {"ours": partial(_closed, port, mine), "fastapi": partial(_closed, plain, theirs)}
        found = rounds(contestants, TURNS)
        one = _closed(port, mine, 1)
        yield from _many(port, tokenizer)
    peers = {"Ray Serve": {}} | ({"Ray Serve with HAProxy": HAPROXY} if os.environ[INSIDE] == "1" else {})
    for name, environment in peers.items():
        command = [sys.executable, "-m", "bench.service_peers", "serve", str(tokenizer)]
        with _server(command, "/docs", environment) as port:
            found[name] = rounds({name: partial(_closed, port, theirs)}, TURNS)[name]
    best = max(peers, key=lambda name: _median(found[name], "rate"))
    ours, fastapi, served = (_median(found[name], "rate") for name in ("ours", "fastapi", best))
    yield at_least("service.requests", ours, "requests/s", f"{best} with serve.batch", served, 1.5)
    yield at_least("service.requests_fastapi", ours, "requests/s", "plain FastAPI with micro-batches", fastapi, 1.0)
    tails = {name: statistics.median(load.percentile(0.99) for load in found[name]) for name in ("ours", best)}
    yield at_most("service.p99", 1000 * tails["ours"], "ms", f"{best} with serve.batch", 1000 * tails[best], 0.7)
    yield at_least("service.batching", ours, "requests/s at 32 connections", "at one", one.rate, 2.5)
    medians = statistics.median(load.percentile(0.5) for load in found["ours"])
    yield at_most("service.tail", 1000 * tails["ours"], "ms, p99", "p50", 1000 * medians, 2.5)


def overload(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """More than it can do, at a fixed rate of arrivals: what is done all the same, and how the rest is sent away."""
    contents = _requests("/v1/tokenize", {"tokenizer": "frame"}, pictures=8)
    with _service(folder, tokenizer) as port:
        peak = asyncio.run(closed(port, contents, CONNECTIONS, RACE)).rate
        calm = asyncio.run(open_loop(port, contents, peak / 2, RACE)).percentile(0.5)
        before = _memory()
        for share in (1.5, 2.0, 4.0):
            load = asyncio.run(open_loop(port, contents, share * peak, SECONDS))
            name = f"service.overload_{share:.0%}".replace("%", "")
            yield at_least(f"{name}.goodput", load.rate, "requests/s", "the peak", peak, 0.85)
            refused = load.statuses.total() - load.statuses[200] - load.statuses[-1]
            yield at_least(
                f"{name}.refusals_429", load.waits, "refusals with Retry-After", "all refusals", max(refused, 1), 1.0 if refused else 0.0
            )
            time.sleep(5)
            again = asyncio.run(open_loop(port, contents, peak / 2, RACE)).percentile(0.5)
            yield at_most(f"{name}.after_5_s", 1000 * again, "ms, p50 at half load", "before", 1000 * calm, 2.0)
        yield at_most("service.overload.memory", _memory(), "MB", "before", before, 1.1)


def kills(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """Replicas killed, and all replaced, under half of the load that it can take; each request is tried once more."""
    contents = _requests("/v1/tokenize", {"tokenizer": "frame"})
    with _service(folder, tokenizer, replicas=2) as port:
        peak = asyncio.run(closed(port, contents, CONNECTIONS, RACE)).rate
        for name, disturb, times in (("kills", _kill_replica, max(1, int(SECONDS / 3))), ("updates", _update, max(1, int(SECONDS / 6)))):
            load = asyncio.run(_disturbed(port, contents, peak / 2, disturb, times))
            yield at_most(
                f"service.{name}.failed", load.failed_twice, f"requests of {load.statuses.total()}, {times} times", "none", 1, 0.0
            )


def slow(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """200 clients that send a byte a second, beside good ones."""
    contents = _requests("/v1/tokenize", {"tokenizer": "frame"})
    with _service(folder, tokenizer) as port:
        alone = asyncio.run(closed(port, contents, 8, RACE))
        beside, longest = asyncio.run(_beside_slow(port, contents, 200))
        yield at_most(
            "service.slow.p99", 1000 * beside.percentile(0.99), "ms beside 200 slow clients", "alone", 1000 * alone.percentile(0.99), 2.0
        )
        yield at_most("service.slow.closed", longest, "seconds to the last one's end", "allowed", 10.0, 1.0)


def rollout(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """A session of the demo's size: frames a second, and memory over a thousand steps."""
    run = os.environ.get("WORLDLOOM_BENCH_RUN", "runs/shapes")
    if not Path(run).exists():
        sys.stderr.write(f"service.rollout is not measured: there is no run {run}; make demo makes one\n")
        return
    with _server(
        [sys.executable, "-m", "worldloom.pipeline", "serve", run, "--jobs", str(folder / "jobs"), "--port"], "/health/ready"
    ) as port:
        steps = int(os.environ.get("WORLDLOOM_BENCH_STEPS", "1000"))
        rate, before, after = asyncio.run(_dream(port, steps))
        yield at_least("service.rollout", rate, "frames/s", "asked for", 10.0, 1.0)
        yield at_most("service.rollout.memory", after, f"MB after {steps} steps", "after 50", before, 1.02)


def soak(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """At 60 % for long, 3 % of it bad: memory, descriptors and processes."""
    good = _requests("/v1/tokenize", {"tokenizer": "frame"}, pictures=97)
    bad = [request("/v1/tokenize", body) for body in (b"{", b'{"tokenizer": "frame", "input": "AAAA"}', b'{"tokenizer": "x", "input": ""}')]
    with _service(folder, tokenizer) as port:
        peak = asyncio.run(closed(port, good, CONNECTIONS, RACE)).rate
        asyncio.run(open_loop(port, [*good, *bad], 0.6 * peak, SOAK / 4))
        before, at = (_memory(), *_counts()), time.monotonic()
        load = asyncio.run(open_loop(port, [*good, *bad], 0.6 * peak, 3 * SOAK / 4))
        after, minutes = (_memory(), *_counts()), (time.monotonic() - at) / 60
        yield at_most("service.soak.memory", (after[0] - before[0]) / minutes, "MB a minute", "allowed", 1.0, 1.0)
        yield at_most("service.soak.descriptors", after[1], "descriptors", "before, and 10", before[1] + 10, 1.0)
        yield at_most("service.soak.processes", after[2], "processes", "before", before[2], 1.0)
        yield at_most(
            "service.soak.failed",
            sum(count for status, count in load.statuses.items() if status in (0, 500, 503)),
            "requests",
            "none",
            1,
            0.0,
        )


PARTS = {"race": race, "overload": overload, "kills": kills, "slow": slow, "rollout": rollout, "soak": soak}


def _many(port: int, tokenizer: Path) -> Iterator[Figure]:
    from worldloom.stages.deterministic import deterministic
    from worldloom.stages.open_tokenizer import open_tokenizer

    contents = [_picture(number) for number in range(MANY)]
    body = json.dumps({"tokenizer": "frame", "return": "npy", "input": [base64.b64encode(one).decode() for one in contents]}).encode()
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in contents])
    opened, bare, through = open_tokenizer(tokenizer), list[float](), list[float]()
    with deterministic(threads=1):
        for _ in range(TURNS + 1):
            begun = time.perf_counter()
            opened.encode(pictures)
            bare.append(time.perf_counter() - begun)
            load = asyncio.run(closed(port, [request("/v1/tokenize", body)], 1, max(1.0, RACE / 4)))
            through.append(statistics.median(load.latencies))
    each = (MANY / statistics.median(times[1:]) for times in (through, bare))
    yield at_least("service.many", next(each), f"pictures/s, {MANY} a request", "the bare tokenizer on one thread", next(each), 0.8)


def _tokenizer(folder: Path) -> Path:
    """Untrained: only its speed matters, and that HTTP is most of the work."""
    from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
    from worldloom.tokenizers.image_settings import VqVae
    from worldloom.tokenizers.quantizers.settings import Ema

    parts = VqVae(codebook_size=512, downsample=8, width=8, blocks=1, quantizer=Ema(code_width=8))
    ImageTokenizer(build_autoencoder(parts, seed=1).eval(), parts, SIDE, SIDE).save_pretrained(folder / "frame")
    return folder / "frame"


def _picture(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(written, "PNG")
    return written.getvalue()


def _requests(path: str, about: dict[str, Any], pictures: int = 64) -> list[bytes]:
    bodies = ({**about, "input": base64.b64encode(_picture(number)).decode()} for number in range(pictures))
    return [request(path, json.dumps(body).encode()) for body in bodies]


def _closed(port: int, contents: list[bytes], connections: int = CONNECTIONS) -> Load:
    return asyncio.run(closed(port, contents, connections, RACE))


def _median(loads: list[Load], what: str) -> float:
    return statistics.median(getattr(load, what) for load in loads)


def _service(folder: Path, tokenizer: Path, replicas: int = 1) -> "contextlib.AbstractContextManager[int]":
    command = [
        sys.executable,
        "-m",
        "worldloom.pipeline",
        "serve",
        str(tokenizer),
        "--replicas",
        str(replicas),
        "--jobs",
        str(folder / "jobs"),
    ]
    return _server([*command, "--port"], "/health/ready")


@contextlib.contextmanager
def _server(command: list[str], ready: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server in a process of its own, once it answers; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as said:
        # In a session of its own, so that whatever a Ray does to its driver's group as it ends does not reach this process.
        process = subprocess.Popen(
            [*command, str(port)], stdout=said, stderr=said, env={**os.environ, **(environment or {})}, start_new_session=True
        )
        try:
            until = time.monotonic() + START
            while b" 200 " not in _get(port, ready):
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start: {said.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()


def _get(port: int, path: str) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(200)
    except OSError:
        return b""


def _processes() -> list[Path]:
    """Those that this one has started, and those that they have."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, todo = [], [os.getpid()]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return [Path("/proc") / str(number) for number in found]


def _memory() -> float:
    """MB of the front and of the replicas: what is theirs alone."""
    total = 0.0
    for process in _processes():
        with contextlib.suppress(OSError):
            if b"serve" in (process / "cmdline").read_bytes().lower():
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024
    return total


def _counts() -> tuple[int, int]:
    """Descriptors and processes."""
    processes, descriptors = _processes(), 0
    for process in processes:
        with contextlib.suppress(OSError):
            descriptors += len(list((process / "fd").iterdir()))
    return descriptors, len(processes)


def _replicas() -> list[int]:
    found = []
    for process in _processes():
        with contextlib.suppress(OSError):
            if b"ServeReplica" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def _kill_replica() -> None:
    if found := _replicas():
        os.kill(found[0], signal.SIGKILL)


def _update() -> None:
    for process in _processes():
        with contextlib.suppress(OSError):
            if b"worldloom.pipeline\0serve" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGHUP)


async def _disturbed(port: int, contents: list[bytes], rate: float, disturb: Any, times: int) -> Load:
    async def disturbing() -> None:
        for _ in range(times):
            await asyncio.sleep(3)
            await asyncio.to_thread(disturb)

    load, _ = await asyncio.gather(open_loop(port, contents, rate, 3.0 * times + 5, retry=True), disturbing())
    return load


async def _beside_slow(port: int, contents: list[bytes], count: int) -> tuple[Load, float]:
    """The good clients' load, and how long the longest of the slow ones was let be."""

    async def slow_one(number: int) -> float:
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        with contextlib.suppress(OSError):
            writer.write(head if number % 2 else head[:20])
            while not reader.at_eof():
                writer.write(b"x")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await reader.read(1_000)
        writer.close()
        return time.monotonic() - begun

    slow_ones = [asyncio.create_task(slow_one(number)) for number in range(count)]
    load = await closed(port, contents, 8, max(RACE, 12.0))
    return load, max(await asyncio.gather(*slow_ones))


async def _dream(port: int, steps: int) -> tuple[float, float, float]:
    """Frames a second, and MB after 50 steps and at the end."""
    pool = Connections(port)
    status, _, body = await pool.ask(request("/v1/rollouts", b"{}"))
    assert status == 201, body
    act = f"/v1/rollouts/{json.loads(body)['id']}/act"
    begun, before = 0.0, 0.0
    for step in range(steps + 50):
        if step == 50:
            begun, before = time.monotonic(), _memory()
        status, _, body = await pool.ask(request(act, json.dumps({"action": step % 5}).encode()))
        assert status == 200, body
    rate = steps / (time.monotonic() - begun)
    pool.close()
    return rate, before, _memory()


if __name__ == "__main__":
    for figure in figures():
        sys.stdout.write(figure.line() + "\n")
        sys.stdout.flush()
