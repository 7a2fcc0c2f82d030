"""Stages small enough to test engines with: one of shards, one of a gang."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated, Literal

from worldloom.stages.artifact import Artifact
from worldloom.stages.commit import Commits
from worldloom.stages.disk import write_file
from worldloom.stages.hang_guard import hang_guard
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, DatasetRef, StageSettings
from worldloom.stages.worker import Worker


class CountUp(StageSettings):
    """Makes shards that hold their own number."""

    run: Literal["count_up"] = "count_up"
    shards: int = 3
    fail: Annotated[str, NOT_IN_OUTPUT] = ""
    seconds: Annotated[float, NOT_IN_OUTPUT] = 0.0


def shard_names(count: int) -> list[str]:
    return [f"train/shard-{number:06d}" for number in range(count)]


def run_count_up(settings: CountUp, inputs: dict[str, Artifact], out: Path, worker: Worker) -> None:
    commits = Commits.of(out)
    names = shard_names(settings.shards)
    for number, shard in enumerate(worker.share(names)):
        worker.check()
        if commits.find(shard) is None:
            note(out, worker, shard)
            time.sleep(settings.seconds)
            misbehave(settings.fail, out, shard)
            with commits.attempt(shard) as attempt:
                attempt.create(f"data/{shard}.txt").write(shard.encode())
                attempt.commit([shard.replace("/", "-")])
        worker.report(number + 1, len(names), "shards", {})


def note(out: Path, worker: Worker, shard: str) -> None:
    """Who made what, for tests."""
    with open(out / "logs" / "made.txt", "a", encoding="utf-8") as file:
        file.write(f"{worker.rank} {os.getpid()} {worker.threads} {shard}\n")


def misbehave(how: str, out: Path, shard: str) -> None:
    marker = out / "logs" / "misbehaved"
    if how == "raise":
        raise ValueError(f"there is no {shard}\nlook elsewhere")
    if how == "bug":
        raise ZeroDivisionError("division by zero")
    if how == "once" and not marker.exists():
        marker.touch()
        raise RuntimeError("once only")
    if how == "die once" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "disk":
        raise OSError(28, "No space left on device", str(out / "data"))
    if how == "rank 1" and os.environ["RANK"] == "1":
        raise ValueError("rank one says no")
    if how == "hang" and os.environ["RANK"] == "1":
        with hang_guard(out / "logs", 1, 0.5) as alive:
            alive()
            time.sleep(1_000)


def finish_count_up(settings: CountUp, inputs: dict[str, Artifact], out: Path) -> dict[str, int]:
    return {"samples": Commits.of(out).finish(shard_names(settings.shards)).n_out}


def parallelism(settings: CountUp, inputs: dict[str, Artifact]) -> int:
    return settings.shards


COUNT_UP = StageKind("count_up", CountUp, run_count_up, finish_count_up, "dataset", 1, "shards", parallelism)


class AddUp(StageSettings):
    """A gang that adds its ranks up, step by step."""

    run: Literal["add_up"] = "add_up"
    data: DatasetRef
    steps: int = 2
    fail: Annotated[str, NOT_IN_OUTPUT] = ""
    seconds: Annotated[float, NOT_IN_OUTPUT] = 0.0


def run_add_up(settings: AddUp, inputs: dict[str, Artifact], out: Path, worker: Worker) -> None:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=worker.rank, world_size=worker.world_size)
    assert (dist.get_rank(), dist.get_world_size()) == (worker.rank, worker.world_size)
    assert torch.get_num_threads() == worker.threads
    misbehave(settings.fail, out, "rank")
    total = torch.zeros(1)
    for step in range(settings.steps):
        stop = torch.tensor([float(worker.stopping())])
        dist.all_reduce(stop)
        if stop.item():
            worker_stopped(worker)
        each = torch.tensor([float(worker.rank + 1)])
        dist.all_reduce(each)
        total += each
        time.sleep(settings.seconds)
        worker.report(step + 1, settings.steps, "steps", {"total": total.item()})
    if worker.rank == 0:
        write_file(out / "total.txt", f"{int(total.item())} {inputs['data'].counts['samples']}".encode())


def worker_stopped(worker: Worker) -> None:
    from worldloom.stages.worker import Interrupted

    raise Interrupted


def finish_add_up(settings: AddUp, inputs: dict[str, Artifact], out: Path) -> dict[str, int]:
    return {"steps": settings.steps}


ADD_UP = StageKind("add_up", AddUp, run_add_up, finish_add_up, "tokens", 1, "gang")

KINDS = {kind.name: kind for kind in (COUNT_UP, ADD_UP)}
