"""Runs stages in this process, one worker and one stage at a time: for tests, debuggers and kill-tests."""

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Literal

from worldloom.pipeline.executor import Job, Resources
from worldloom.pipeline.machine import cpu_count
from worldloom.pipeline.stage import Stage
from worldloom.pipeline.work import Task, TooLittle, dump_settings, folders, module_of, run_task, set_environment, worker_arguments
from worldloom.stages.artifact import Artifact
from worldloom.stages.worker import Worker

GANG_OF_ONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class InlineExecutor:
    """`Worker(0, 1)` and a call."""

    side_by_side = False

    def __init__(self, train_workers: int = 1, zero: int = 1, threads: int | None = None, offload: Literal["none", "cpu"] = "none") -> None:
        self.train_workers = train_workers
        self.zero = zero
        self.offload = offload
        self.threads = threads or cpu_count()

    def check(self, stages: Sequence[Stage]) -> None:
        """TooLittle for a gang of more than one."""
        for stage in stages:
            if stage.kind.placement == "gang" and self.train_workers > 1:
                raise TooLittle(
                    f"{stage.name}: the inline executor is one process and train.workers is {self.train_workers}; "
                    "set train.workers to 1 or use executor: ray"
                )

    def start(self, stages: Sequence[Stage]) -> Resources:
        return Resources(self.threads)

    def needs(self, stage: Stage, inputs: Mapping[str, Artifact]) -> Resources:
        return Resources(self.threads)

    def run(self, job: Job) -> None:
        """Runs the stage here; whatever it raises comes out as it is."""
        kind = job.stage.kind
        lone = kind.placement == "gang" or (kind.parallelism is not None and kind.parallelism(job.stage.settings, job.inputs) == 1)
        task = Task(
            stage=job.stage.name,
            module=module_of(kind),
            kind=kind.name,
            settings=dump_settings(job.stage.settings),
            inputs=folders(job.inputs),
            out=str(job.stage.folder),
            stop=(str(job.stop),),
            threads=self.threads if lone else 1,
            world_size=1,
            zero=self.zero,
            offload=self.offload,
        )
        before = {name: os.environ.get(name) for name in (*GANG_OF_ONE, "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")}
        set_environment(task)
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
        try:
            run_task(task, Worker(**worker_arguments(task, rank=0)))
        finally:
            _restore(before)

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
