"""Runs stages on Ray: on this machine's cores by default, on a running cluster with `address`. The only door to ray.

Ray places and retries; that every shard is made exactly once is the commit's business, that training goes on where it stopped the
checkpoint's. Stages of independent shards are actors that claim one item at a time; training is a gang under Ray Train.
"""

import importlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import uuid4

from worldloom.pipeline.claims import Claims
from worldloom.pipeline.executor import Job, Resources
from worldloom.pipeline.machine import cpu_count
from worldloom.pipeline.ray_processes import deaf_children, ended_when_asked, essential_children, is_alive
from worldloom.pipeline.ray_session import Session
from worldloom.pipeline.stage import Stage
from worldloom.pipeline.work import (
    StageFailed,
    Task,
    TooLittle,
    dump_settings,
    explain,
    folders,
    module_of,
    note_failure,
    run_task,
    set_environment,
    worker_arguments,
)
from worldloom.stages.artifact import Artifact
from worldloom.stages.hang_guard import FILE, forget_hung_ranks, hung_ranks
from worldloom.stages.worker import Interrupted, Worker

log = logging.getLogger(__name__)
Item = TypeVar("Item")

RESTARTS = 3  # lives of a data worker beyond its first, and of a gang on a cluster
OBJECT_STORE = 128 << 20  # bytes; only paths and numbers pass through it

# Read by Ray when it is imported or started; set before, and only where the user has not.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # also how often the end of a training is looked for: two seconds by default
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a minute is short for a machine that does other things besides
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "GOMP_SPINCOUNT": "10000",  # as in work.py; Ray Train imports torch before that is reached
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
# The same, for a Ray of our own.
OWN_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: the node is 127.0.0.1, and everything listens there only
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less; nobody takes a laptop's node away
}


class Outcome(NamedTuple):
    """How a worker ended."""

    ended: Literal["done", "interrupted", "failed"]
    message: str = ""


class RayExecutor:
    """`address` None: a Ray of its own on this machine's loopback, gone with this process. "auto" or an address: a running cluster."""

    side_by_side = True

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        train_workers: int = 1,
        cpus_per_worker: int | None = None,
        gpus_per_worker: float = 0,
        zero: int = 1,
        offload: Literal["none", "cpu"] = "none",
    ) -> None:
        self.address = address
        self.workers = workers
        self.train_workers = train_workers
        self.cpus_per_worker = cpus_per_worker
        self.gpus_per_worker = gpus_per_worker
        self.zero = zero
        self.offload = offload
        self._nodes: list[Resources] = []
        self._joined = False
        self._session: Session | None = None
        self._processes: tuple[int, ...] = ()

    def check(self, stages: Sequence[Stage]) -> None:
        """TooLittle, before Ray is even imported, if this machine has too few CPUs for one of the stages."""
        if self.address is None and stages:
            self._check([Resources(cpu_count(), float("inf"))], stages)

    def start(self, stages: Sequence[Stage]) -> Resources:
        """Starts or joins Ray; TooLittle if it has too little for one of the stages.

        Call it from a thread that lives as long as the run: Linux ends Ray's processes with the thread that started them.
        """
        own = OWN_ENVIRONMENT | {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if self.address is None else {}
        for name, value in (ENVIRONMENT | own).items():
            os.environ.setdefault(name, value)
        if self.address is None and not self.gpus_per_worker:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import ray

        if not ray.is_initialized():
            self._joined = True
            if self.address is None:
                self._session = Session()
                with deaf_children():
                    begin_local_ray(self._session)
                self._processes = essential_children()
            else:
                _join(self.address)
        living = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._nodes = [Resources(node.get("CPU", 0), node.get("GPU", 0)) for node in living]
        self._check(self._nodes, stages)
        if any(stage.kind.placement == "gang" for stage in stages):  # seconds of imports, while the first stages work
            threading.Thread(target=importlib.import_module, args=("ray.train.torch",), daemon=True).start()
        return Resources(sum(node.cpus for node in self._nodes), sum(node.gpus for node in self._nodes))

    def needs(self, stage: Stage, inputs: Mapping[str, Artifact]) -> Resources:
        """A gang takes what it was given; shards a CPU a worker; a stage of one worker nothing, so that it runs beside the others."""
        if stage.kind.placement == "gang":
            return Resources(self.train_workers * self._gang_cpus(self._nodes), self.train_workers * self.gpus_per_worker)
        if self._is_lone(stage, inputs):
            return Resources(0)
        return Resources(self._data_workers(stage, inputs))

    def run(self, job: Job) -> None:
        """Runs all workers of a stage to their end; Interrupted, or StageFailed with one clear line."""
        if job.stage.kind.placement == "gang":
            self._run_gang(job)
        else:
            self._run_shards(job)

    def is_alive(self) -> bool:
        """False once a process of a Ray of our own has died that it cannot do without."""
        return all(map(is_alive, self._processes))

    def close(self) -> None:
        """Ends a Ray of its own; a cluster, or a Ray that was here before, is only left."""
        if not self._joined:
            return
        import ray

        if self.is_alive():  # else there is nobody to take leave of, and Ray would wait for an answer
            with ended_when_asked():
                ray.shutdown()
        if self._session is not None:
            self._session.remove()

    def _check(self, nodes: Sequence[Resources], stages: Sequence[Stage]) -> None:
        where = "this machine has" if self.address is None else "the cluster has"
        cpus = sum(node.cpus for node in nodes)
        if self.workers is not None and self.workers > cpus:
            raise TooLittle(f"workers is {self.workers}, {where} {cpus:g} CPUs; ask for at most {cpus:g}")
        if not any(stage.kind.placement == "gang" for stage in stages):
            return
        if self.train_workers > cpus:
            raise TooLittle(f"train.workers is {self.train_workers}, {where} {cpus:g} CPUs; ask for at most {cpus:g}")
        each = Resources(self._gang_cpus(nodes), self.gpus_per_worker)
        if sum(_times(each, node) for node in nodes) < self.train_workers:
            gpus = sum(node.gpus for node in nodes)
            raise TooLittle(
                f"train asks for {self.train_workers} workers with {each.cpus:g} CPUs and {each.gpus:g} GPUs each, {where} {cpus:g} CPUs"
                + (f" and {gpus:g} GPUs" if gpus != float("inf") else "")
                + "; lower train.workers, train.cpus_per_worker or train.gpus_per_worker"
            )

    def _gang_cpus(self, nodes: Sequence[Resources]) -> int:
        """CPUs of one rank: as asked for, or an even share of all, no more than a node has."""
        if self.cpus_per_worker is not None:
            return self.cpus_per_worker
        share = int(sum(node.cpus for node in nodes)) // self.train_workers
        return max(1, min(share, int(max(node.cpus for node in nodes))))

    def _is_lone(self, stage: Stage, inputs: Mapping[str, Artifact]) -> bool:
        parallelism = stage.kind.parallelism
        return parallelism is not None and parallelism(stage.settings, inputs) <= 1

    def _data_workers(self, stage: Stage, inputs: Mapping[str, Artifact]) -> int:
        most = self.workers or int(sum(node.cpus for node in self._nodes))
        if stage.kind.parallelism is not None:
            most = min(most, stage.kind.parallelism(stage.settings, inputs))
        return max(1, most)

    def _task(self, job: Job, threads: int, world_size: int, gpus: float) -> Task:
        return Task(
            stage=job.stage.name,
            module=module_of(job.stage.kind),
            kind=job.stage.kind.name,
            settings=dump_settings(job.stage.settings),
            inputs=folders(job.inputs),
            out=str(job.stage.folder),
            stop=(str(job.stop), str(_stage_stop(job))),
            threads=threads,
            world_size=world_size,
            zero=self.zero,
            offload=self.offload,
            device="cuda" if gpus else "cpu",
        )

    def _run_shards(self, job: Job) -> None:
        import ray

        lone = self._is_lone(job.stage, job.inputs)
        count = 1 if lone else self._data_workers(job.stage, job.inputs)
        # A stage of one worker may use a whole node; where there are several, one thread each, so that the number of workers
        # cannot move a bit of the result.
        threads = int(max(node.cpus for node in self._nodes)) if lone else 1
        gpus = min(1.0, self.gpus_per_worker) if lone else 0.0
        claims = job.stage.folder / "staging" / "claims" / uuid4().hex
        claims.mkdir(parents=True)
        task = self._task(job, threads, count, gpus)
        actor = ray.remote(num_cpus=0 if lone else 1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(ShardWorker)
        actors = [actor.remote(asdict(task), rank, str(claims)) for rank in range(count)]
        running = {worker.work.remote(): rank for rank, worker in enumerate(actors)}
        outcomes: list[Outcome] = []
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            rank = running.pop(ready)
            try:
                outcomes.append(Outcome(*ray.get(ready)))
            except ray.exceptions.RayError as error:
                note_failure(error, job.stage.folder, f"worker {rank}")
                outcomes.append(Outcome("failed", f"worker {rank} died {RESTARTS + 1} times: {_first_line(error)}"))
            if outcomes[-1].ended == "failed":
                _stage_stop(job).touch()  # the others stop at their next safe point
        for worker in actors:
            ray.kill(worker)
        _judge(outcomes)

    def _run_gang(self, job: Job) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError

        cpus = self._gang_cpus(self._nodes)
        resources = {"CPU": float(cpus)} | ({"GPU": float(self.gpus_per_worker)} if self.gpus_per_worker else {})
        task = self._task(job, cpus, self.train_workers, self.gpus_per_worker)
        storage = job.stage.folder / "staging" / "ray"
        name = f"{job.stage.name}-{job.stage.fingerprint[:12]}"
        shutil.rmtree(storage, ignore_errors=True)  # Ray's own memory of the run; ours is the checkpoints
        storage.mkdir(parents=True)
        forget_hung_ranks(job.stage.folder / "logs")
        trainer = TorchTrainer(
            run_rank,
            train_loop_config={"task": asdict(task), "outcomes": str(storage)},
            torch_config=TorchConfig(backend="nccl" if self.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self.train_workers, use_gpu=bool(self.gpus_per_worker), resources_per_worker=resources
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=0 if self.address is None else RESTARTS, controller_failure_limit=RESTARTS),
                worker_runtime_env={} if self.address is None else {"env_vars": _carried_environment(task)},
            ),
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            note_failure(error, job.stage.folder, "the gang")
            if hung := hung_ranks(job.stage.folder / "logs"):
                raise Interrupted(f"rank {hung[0]} took longer than hang_seconds; logs/{FILE.format(rank=hung[0])} says where") from None
            raise StageFailed(_gang_message(storage, error)) from None
        _judge([Outcome(*result.return_value)])


class ShardWorker:
    """A Ray actor: one worker of a stage of shards."""

    def __init__(self, task: dict[str, Any], rank: int, claims: str) -> None:
        self.task = Task(**task)
        self.claims = Claims(Path(claims), rank, self.task.world_size)
        set_environment(self.task)
        self.claims.give_back()

    def work(self) -> tuple[str, str]:
        """This worker's share of the stage; an `Outcome` as plain values."""
        out = Path(self.task.out)
        try:
            run_task(self.task, ClaimingWorker(**worker_arguments(self.task, self.claims.rank), claims=self.claims))
        except Interrupted:
            return Outcome("interrupted")
        except Exception as error:  # carried to the driver as one line
            note_failure(error, out, f"worker {self.claims.rank}")
            return Outcome("failed", explain(error, out))
        return Outcome("done")


@dataclass(frozen=True)
class ClaimingWorker(Worker):
    """A worker whose share is whatever it claims first."""

    claims: Claims | None = None

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        assert self.claims is not None
        yield from self.claims.share(items)


def run_rank(config: dict[str, Any]) -> tuple[str, str]:
    """One rank of a gang, under Ray Train, which has made the process group and set RANK and its like."""
    import ray.train

    task, rank = Task(**config["task"]), ray.train.get_context().get_world_rank()
    ending = _ending(Path(config["outcomes"]), rank)
    ending.unlink(missing_ok=True)
    set_environment(task)
    try:
        run_task(task, Worker(**worker_arguments(task, rank)))
    except Interrupted:
        return Outcome("interrupted")
    except Exception as error:
        message = explain(error, Path(task.out))
        note_failure(error, Path(task.out), f"rank {rank}")
        with suppress(OSError):  # a full disk: the line comes back through Ray too, only less clean
            ending.write_text(json.dumps({"time": time.time(), "message": message}), encoding="utf-8")
        raise StageFailed(message) from None
    return Outcome("done")


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ValueError(
            f"address is {address}, and no Ray answers there: {_first_line(error)}; start one with `ray start --head`, "
            "or leave the address out to have one started for this run alone"
        ) from None


def _ending(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def _gang_message(folder: Path, error: Exception) -> str:
    """What the first rank that failed said: the others often only say that a connection broke."""
    said = [json.loads(path.read_bytes()) for path in folder.glob("rank-*.json")]
    if said:
        return str(min(said, key=lambda line: line["time"])["message"])
    failures = getattr(error, "worker_failures", {})
    return _first_line(next(iter(failures.values()), error))


def _judge(outcomes: Sequence[Outcome]) -> None:
    failed = [outcome.message for outcome in outcomes if outcome.ended == "failed"]
    if failed:
        raise StageFailed(failed[0])
    if any(outcome.ended == "interrupted" for outcome in outcomes):
        raise Interrupted


def _stage_stop(job: Job) -> Path:
    """The file that stops the workers of one stage only."""
    return job.stage.folder / "staging" / "stop"


def _times(each: Resources, node: Resources) -> int:
    """How many workers fit on a node."""
    by_cpu = int(node.cpus / each.cpus)
    return by_cpu if not each.gpus else int(min(by_cpu, node.gpus / each.gpus))


def _carried_environment(task: Task) -> dict[str, str]:
    """For nodes that this process did not start."""
    names = [*ENVIRONMENT, *(("DS_ACCELERATOR",) if task.device == "cpu" else ())]
    return {name: os.environ[name] for name in names if name in os.environ}


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def begin_local_ray(session: Session) -> None:
    """A Ray of this process's own, on this machine and its loopback only."""
    import ray

    ray.init(
        address="local",
        num_cpus=cpu_count(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE,
        _node_ip_address="127.0.0.1",
        _temp_dir=session.folder,
    )
