"""What a worker gets and does, wherever it runs: plain values in, a stage kind's `run` called, one clear line out if it fails."""

import errno
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from worldloom.pipeline.progress import ProgressFile
from worldloom.pipeline.stop import StopFiles
from worldloom.stages.artifact import Artifact
from worldloom.stages.commit import CommitError
from worldloom.stages.kind import StageKind
from worldloom.stages.numerics import numerics_of_this_process, same_numerics
from worldloom.stages.worker import Worker

log = logging.getLogger(__name__)


class StageFailed(RuntimeError):
    """A stage could not be done; the message is one line for people, the traceback lies in the artifact's logs."""


class TooLittle(ValueError):
    """More workers, CPUs or GPUs were asked for than there are."""


@dataclass(frozen=True)
class Task:
    """One stage to run, as plain values: it crosses to other processes and machines."""

    stage: str
    module: str  # where the stage's kind is defined
    kind: str
    settings: str  # JSON
    inputs: dict[str, str]  # field -> artifact folder
    out: str
    stop: tuple[str, ...]  # files that ask to stop
    threads: int
    world_size: int
    zero: int = 1
    offload: Literal["none", "cpu"] = "none"
    device: Literal["cpu", "cuda"] = "cpu"


def find_kind(module: str, name: str) -> StageKind:
    """The stage kind called `name` that `module` defines."""
    for value in vars(importlib.import_module(module)).values():
        if isinstance(value, StageKind) and value.name == name:
            return value
    raise ValueError(f"{module} defines no stage kind {name!r}")


def module_of(kind: StageKind) -> str:
    """The module that defines `kind`: the one of its run function."""
    return kind.run.__module__


def set_environment(task: Task) -> None:
    """What libraries read from the environment when they are first imported; call it before they are."""
    os.environ["OMP_NUM_THREADS"] = str(task.threads)
    # Threads that wait for each other spin 300,000 times by default, and take the cores from stages beside this one: ten times slower,
    # measured. Threads that sleep at once cost a fifth of a step on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    if task.device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def run_task(task: Task, worker: Worker) -> None:
    """Runs a worker's share of the stage; Interrupted if asked to stop, whatever the stage raises otherwise."""
    out = Path(task.out)
    if "torch" in sys.modules:  # it reads OMP_NUM_THREADS only once, when it is imported
        sys.modules["torch"].set_num_threads(task.threads)
    kind = find_kind(task.module, task.kind)
    numerics = numerics_of_this_process(task.threads, task.device)
    if kind.placement == "gang":
        # More or fewer workers share the same CPUs, and a training goes on with any number of them; its checkpoints warn.
        numerics.pop("threads", None)
    same_numerics(out, numerics)
    settings = kind.settings.model_validate_json(task.settings)
    inputs = {field: Artifact.open(Path(folder)) for field, folder in task.inputs.items()}
    kind.run(settings, inputs, out, worker)


def worker_arguments(task: Task, rank: int) -> dict[str, Any]:
    """What a `Worker` of this task is made of. Ranks of a gang do the same steps, so only the first one counts them."""
    arguments: dict[str, Any] = {
        "rank": rank,
        "world_size": task.world_size,
        "threads": task.threads,
        "zero": task.zero,
        "offload": task.offload,
        "stopping": StopFiles(*map(Path, task.stop)),
    }
    if rank == 0 or find_kind(task.module, task.kind).placement == "shards":
        arguments["report"] = ProgressFile(Path(task.out), rank)
    return arguments


def explain(error: BaseException, out: Path) -> str:
    """One line for people about why a stage failed."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full: {error.filename or out} could not be written; free some room and run again, it goes on from here"
    text = " ".join(str(error).split())
    known = isinstance(error, ValueError | OSError | CommitError | StageFailed) and text
    return text if known else f"{type(error).__name__}: {text}".rstrip(": ")


def note_failure(error: BaseException, out: Path, who: str) -> None:
    """Keeps the traceback in the artifact's logs."""
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        with open(out / "logs" / "errors.txt", "a", encoding="utf-8") as file:
            file.write(f"--- {who}\n" + "".join(traceback.format_exception(error)))
    except OSError as problem:  # a full disk: the line that people see is more important than this one
        log.warning("the traceback of %s could not be kept in %s: %s", who, out, problem)


def dump_settings(settings: Any) -> str:
    """Settings as JSON that `run_task` reads back."""
    return json.dumps(settings.model_dump(mode="json"), ensure_ascii=False)


def folders(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Where each input lies."""
    return {field: str(artifact.folder) for field, artifact in inputs.items()}
