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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from PIL import Image

from bench.figure import Figure, at_least, at_most
from bench.run import stopped_like_interrupted
from bench.service_load import PATIENCE, Connections, Load, closed, open_loop, request, rounds
from bench.service_servers import BACK, Server, counts, kill_replica, memory, server, update

SIDE, CONNECTIONS, MANY = 32, 32, 256
SECONDS = float(os.environ.get("WORLDLOOM_BENCH_SECONDS", "60"))
TURNS = int(os.environ.get("WORLDLOOM_BENCH_TURNS", "3"))
SOAK = 8 * SECONDS
LONGEST = BACK + 3  # seconds to a disturbance and its end
FEW = 4  # turns of what takes no second, for each of the others
SERVE = [sys.executable, "-m", "worldloom.pipeline", "serve"]
FASTAPI = "plain FastAPI with micro-batches"
RACE = max(2.0, SECONDS / 6)
INSIDE = "WORLDLOOM_BENCH_INSIDE"
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def figures() -> Iterator[Figure]:
    """All parts, in a process that sees loopback alone; where that cannot be had, without HAProxy."""
    inside = "ip link set lo up && exec " + f"{sys.executable} -m bench.service"
    private = subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0 if shutil.which("unshare") else False
    command = ["unshare", "-n", "sh", "-c", inside] if private else [sys.executable, "-m", "bench.service"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, INSIDE: "1" if private else "0"}) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield Figure(**json.loads(line))
        finally:
            process.terminate()  # where this is left early; it ends what it has started
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")


def main() -> None:
    """Prints the figures of the parts asked for."""
    stopped_like_interrupted()
    only = os.environ.get("WORLDLOOM_BENCH_ONLY", "").split()
    with tempfile.TemporaryDirectory(prefix="worldloom-service-") as folder:
        tokenizer = _tokenizer(Path(folder))
        for name, part in PARTS.items():
            if not only or name in only:
                for figure in part(Path(folder), tokenizer):
                    sys.stdout.write(figure.line() + "\n")
                    sys.stdout.flush()


def race(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """Requests of one picture each, at 32 connections and at one; many pictures in one request beside the bare tokenizer.

    Every peer takes turns with ours while both are up, so that a ratio is of figures of the same minutes.
    """
    mine, theirs = _requests("/v1/tokenize", {"tokenizer": "frame"}), _requests("/tokenize", {})
    found: dict[str, dict[str, list[Load]]] = {}
    with _service(folder, tokenizer) as ours:
        alone: dict[str, Callable[[], Load]] = {"ours": partial(_closed, ours.port, mine), "one": partial(_closed, ours.port, mine, 1)}
        found["itself"] = rounds(alone, TURNS)
        yield from _many(ours.port, tokenizer)
        for name, (kind, environment) in _peers().items():
            with server([sys.executable, "-m", "bench.service_peers", kind, str(tokenizer)], "/docs", environment) as peer:
                found[name] = rounds({"ours": alone["ours"], name: partial(_closed, peer.port, theirs)}, TURNS)
    served = max((name for name in found if "serve.batch" in name), key=lambda name: _rate(found[name][name]))
    for figure, name, goal in (("service.requests", served, 1.5), ("service.requests_fastapi", FASTAPI, 1.0)):
        yield at_least(figure, _rate(found[name]["ours"]), "requests/s", name, _rate(found[name][name]), goal)
    yield at_most("service.p99", _late(found[served]["ours"]), "ms", served, _late(found[served][served]), 0.7)
    itself = found["itself"]["ours"]
    yield at_least("service.batching", _rate(itself), "requests/s at 32 connections", "at one", _rate(found["itself"]["one"]), 2.5)
    yield at_most("service.tail", _late(itself), "ms, p99", "p50", _late(itself, 0.5), 2.5)


def overload(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """More than it can do, at a fixed rate of arrivals: what is done all the same, and how the rest is sent away.

    What it can do is measured before and behind each: machines are not as fast at all times."""
    contents = _requests("/v1/tokenize", {"tokenizer": "frame"})
    with _service(folder, tokenizer) as served:
        peak = _closed(served.port, contents).rate
        calm = uvloop.run(open_loop(served.port, contents, peak / 2, RACE)).percentile(0.5)
        before = memory()
        for share in (1.5, 2.0, 4.0):
            load = uvloop.run(open_loop(served.port, contents, share * peak, SECONDS))
            time.sleep(5)
            again = uvloop.run(open_loop(served.port, contents, peak / 2, RACE)).percentile(0.5)
            asked, behind = share * peak, _closed(served.port, contents).rate
            name = f"service.overload_{100 * share:.0f}"
            yield at_least(f"{name}.offered", load.offered, "requests/s sent", "to be sent", asked, 0.9)
            yield at_least(f"{name}.goodput", load.rate, "requests/s", "the peak", (peak + behind) / 2, 0.85)
            yield at_least(f"{name}.refusals_429", load.waits, "with Retry-After", "all that were refused", *_of(load.refused))
            yield at_most(f"{name}.after_5_s", 1000 * again, "ms, p50 at half load", "before", 1000 * calm, 2.0)
            peak = behind
        yield at_most("service.overload.memory", memory(), "MB", "before", before, 1.1)


def kills(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """Replicas killed, and all replaced, under half of the load that it can take; each request is tried once more, when it is said to."""
    contents = _requests("/v1/tokenize", {"tokenizer": "frame"})
    with _service(folder, tokenizer, replicas=2) as served:
        peak = uvloop.run(closed(served.port, contents, CONNECTIONS, RACE)).rate
        for name, disturb, times in (("kills", kill_replica, max(1, int(SECONDS / 3))), ("updates", update, max(1, int(SECONDS / 6)))):
            load = uvloop.run(_disturbed(served.port, contents, peak / 2, partial(disturb, served, 2), times))
            sent = f"requests of {load.statuses.total()} failed twice, {times} {name}, by status {dict(load.failed_twice)}"
            yield at_most(f"service.{name}.failed", load.failed_twice.total(), sent, "none", 1, 0.0)


def slow(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """200 clients that send a byte a second, beside good ones."""
    contents = _requests("/v1/tokenize", {"tokenizer": "frame"})
    with _service(folder, tokenizer) as served:
        alone = 1000 * uvloop.run(closed(served.port, contents, 8, RACE)).percentile(0.99)
        load, longest = uvloop.run(_beside_slow(served.port, contents, 200))
        yield at_most("service.slow.p99", 1000 * load.percentile(0.99), "ms beside 200 slow clients", "alone", alone, 2.0)
        yield at_most("service.slow.closed", longest, "seconds to the last one's end", "allowed", 10.0, 1.0)


def rollout(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """A session of the demo's size: frames a second, and memory over a thousand steps."""
    run = os.environ.get("WORLDLOOM_BENCH_RUN", "runs/shapes")
    if not Path(run).exists():
        sys.stderr.write(f"service.rollout is not measured: there is no run {run}; make demo makes one\n")
        return
    with server([*SERVE, run, "--jobs", str(folder / "jobs"), "--port"], "/health/ready") as served:
        steps = int(os.environ.get("WORLDLOOM_BENCH_STEPS", "1000"))
        rate, before, after = uvloop.run(_dream(served.port, steps))
        yield at_least("service.rollout", rate, "frames/s", "asked for", 10.0, 1.0)
        yield at_most("service.rollout.memory", after, f"MB after {steps} steps", "after 50", before, 1.02)


def soak(folder: Path, tokenizer: Path) -> Iterator[Figure]:
    """At 60 % for long, 3 % of it bad: memory, descriptors and processes."""
    good = _requests("/v1/tokenize", {"tokenizer": "frame"}, pictures=97)
    bad = [request("/v1/tokenize", body) for body in (b"{", b'{"tokenizer": "frame", "input": "AAAA"}', b'{"tokenizer": "x", "input": ""}')]
    with _service(folder, tokenizer) as served:
        peak = uvloop.run(closed(served.port, good, CONNECTIONS, RACE)).rate
        uvloop.run(open_loop(served.port, [*good, *bad], 0.6 * peak, SOAK / 4))
        open_before, processes = counts()
        load, growth = uvloop.run(_growing(open_loop(served.port, [*good, *bad], 0.6 * peak, 3 * SOAK / 4)))
        descriptors, after = counts()
        yield at_most("service.soak.memory", growth, "MB a minute, by the line of least squares", "allowed", 1.0, 1.0)
        yield at_most("service.soak.descriptors", descriptors, "descriptors", "before, and 10", open_before + 10, 1.0)
        yield at_most("service.soak.processes", after, "processes", "before", processes, 1.0)
        failed = sum(load.statuses[status] for status in (-1, 0, 429, 500, 503, 504))
        yield at_most("service.soak.failed", failed, f"requests of {load.statuses.total()}", "none", 1, 0.0)


PARTS = {"race": race, "overload": overload, "kills": kills, "slow": slow, "rollout": rollout, "soak": soak}


def _many(port: int, tokenizer: Path) -> Iterator[Figure]:
    """As an array, which is what the bare tokenizer is given, and as PNGs in base64, which have to be read and decoded first."""
    from worldloom.stages.deterministic import deterministic
    from worldloom.stages.npy import write_npy
    from worldloom.stages.open_tokenizer import open_tokenizer

    contents = [_picture(number) for number in range(MANY)]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in contents])
    body = {"tokenizer": "frame", "return": "npy", "input": [base64.b64encode(one).decode() for one in contents]}
    asked = {
        "array": request("/v1/tokenize?tokenizer=frame&return=npy", write_npy(pictures), ("Content-Type: application/x-npy",)),
        "files": request("/v1/tokenize", json.dumps(body).encode()),
    }
    opened, bare, through = open_tokenizer(tokenizer), list[float](), {name: list[float]() for name in asked}
    with deterministic(threads=1):
        for _ in range(TURNS * FEW + 1):
            begun = time.perf_counter()
            opened.encode(pictures)
            bare.append(time.perf_counter() - begun)
            for name, content in asked.items():
                load = uvloop.run(closed(port, [content], 1, 0.2))
                assert load.statuses[200] == load.statuses.total(), load.statuses
                through[name].append(statistics.median(load.latencies))
    alone = MANY / statistics.median(bare[1:])
    for name, figure in (("array", "service.many"), ("files", "service.many_files")):
        rate = MANY / statistics.median(through[name][1:])
        yield at_least(figure, rate, f"pictures/s, {MANY} a request, {name}", "the bare tokenizer on one thread", alone, 0.8)


def _peers() -> dict[str, tuple[str, dict[str, str]]]:
    """Name -> what service_peers is called with, and its environment."""
    peers: dict[str, tuple[str, dict[str, str]]] = {FASTAPI: ("fastapi", {}), "Ray Serve with serve.batch": ("serve", {})}
    if os.environ[INSIDE] == "1":
        for batch in ("16", "32"):
            peers[f"Ray Serve with HAProxy and serve.batch of {batch}"] = ("serve", {**HAPROXY, "WORLDLOOM_BENCH_BATCH": batch})
    return peers


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
    return uvloop.run(closed(port, contents, connections, RACE))


def _rate(loads: list[Load]) -> float:
    return statistics.median(load.rate for load in loads)


def _late(loads: list[Load], share: float = 0.99) -> float:
    """ms."""
    return 1000 * statistics.median(load.percentile(share) for load in loads)


def _service(folder: Path, tokenizer: Path, replicas: int = 1) -> "contextlib.AbstractContextManager[Server]":
    options = ["--replicas", str(replicas), "--jobs", str(folder / "jobs"), "--port"]
    return server([*SERVE, str(tokenizer), *options], "/health/ready")


async def _disturbed(port: int, contents: list[bytes], rate: float, disturb: Callable[[], None], times: int) -> Load:
    """A load that goes on until `disturb` was done so often, 3 seconds apart, and 5 seconds longer."""
    over = asyncio.Event()

    async def disturbing() -> None:
        try:
            for _ in range(times):
                await asyncio.sleep(3)
                await asyncio.to_thread(disturb)
            await asyncio.sleep(5)
        finally:
            over.set()

    load, _ = await asyncio.gather(open_loop(port, contents, rate, LONGEST * times, retry=True, over=over), disturbing())
    return load


async def _growing(load: Coroutine[Any, Any, Load]) -> tuple[Load, float]:
    """A load, and by how many MB a minute memory grew under it. The line through many looks: two alone see the garbage of the moment."""
    running, begun, looks = asyncio.create_task(load), time.monotonic(), list[tuple[float, float]]()
    while not running.done():
        looks.append(((time.monotonic() - begun) / 60, await asyncio.to_thread(memory)))
        await asyncio.wait({running}, timeout=5)
    looks.append(((time.monotonic() - begun) / 60, memory()))
    return await running, float(np.polyfit(*zip(*looks, strict=True), 1)[0])


def _of(count: int) -> tuple[float, float]:
    """What a number of refusals is compared with, and the ratio asked for: where nothing is refused, there is nothing to ask."""
    return (count, 1.0) if count else (1, 0.0)


async def _beside_slow(port: int, contents: list[bytes], count: int) -> tuple[Load, float]:
    """The good clients' load, and how long the longest of the slow ones was let be."""

    async def slow_one(number: int) -> float:
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
        with contextlib.suppress(OSError):
            writer.write(head if number % 2 else head[:20])
            while not reader.at_eof() and time.monotonic() < begun + PATIENCE:
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
            begun, before = time.monotonic(), memory()
        status, _, body = await pool.ask(request(act, json.dumps({"action": step % 5}).encode()))
        assert status == 200, body
    rate = steps / (time.monotonic() - begun)
    pool.close()
    return rate, before, memory()


if __name__ == "__main__":
    main()
