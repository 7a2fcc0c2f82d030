"""A kind of stage, as a record: what runs. How and where is the executor's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from worldloom.stages.settings import StageSettings

if TYPE_CHECKING:
    from worldloom.stages.artifact import Artifact
    from worldloom.stages.estimate import Estimate
    from worldloom.stages.worker import Worker

Run = Callable[[Any, "Mapping[str, Artifact]", Path, "Worker"], None]
Finish = Callable[[Any, "Mapping[str, Artifact]", Path], dict[str, Any]]
Outside = Callable[[Any, Callable[[Path], str]], dict[str, str]]  # (settings, sha256 of a file) -> name -> sha256


@dataclass(frozen=True)
class StageKind:
    """One verb: its settings, its two functions and what it leaves."""

    name: str
    settings: type[StageSettings]
    run: Run  # a worker's share of the work; called again on the same folder it goes on where it stopped
    finish: Finish  # once, after all workers: checks, final names, cards; returns what DONE.json says under "counts"
    produces: str
    version: int  # raised by hand when the same settings and inputs give another output
    placement: Literal["shards", "gang"]  # independent workers, or one torch.distributed process group
    parallelism: Callable[[Any, Mapping[str, Artifact]], int] | None = None  # how many workers can have something to do
    # settings, sha256 of a file (remembered between runs) -> name -> sha256 of data from outside; part of the fingerprint
    outside: Callable[[Any, Callable[[Path], str]], dict[str, str]] | None = None
    # settings, estimates of the inputs by field -> what the stage will leave, for `worldloom plan`
    estimate: Callable[[Any, Mapping[str, Estimate]], Estimate] | None = None
