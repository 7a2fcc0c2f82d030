"""What the engine asks of whatever runs stages: on this process, on this machine's cores, on a cluster."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from worldloom.pipeline.stage import Stage
from worldloom.stages.artifact import Artifact


class Resources(NamedTuple):
    cpus: float
    gpus: float = 0

    def fits(self, free: "Resources") -> bool:
        """Whether this much can be taken out of `free`."""
        return self.cpus <= free.cpus and self.gpus <= free.gpus

    def plus(self, other: "Resources") -> "Resources":
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def minus(self, other: "Resources") -> "Resources":
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus)


class Job(NamedTuple):
    """A stage whose inputs are ready and whose folder is begun and locked."""

    stage: Stage
    inputs: Mapping[str, Artifact]
    stop: Path  # the file that asks the workers to stop


class Executor(Protocol):
    """Runs the workers of stages. `run` may be called from several threads at once if `side_by_side`."""

    side_by_side: bool

    def check(self, stages: Sequence[Stage]) -> None:
        """TooLittle if one of the stages could never be placed; nothing is started."""

    def start(self, stages: Sequence[Stage]) -> Resources:
        """Gets ready to run the stages and says what there is; TooLittle as in `check`, for what only a cluster knows."""

    def needs(self, stage: Stage, inputs: Mapping[str, Artifact]) -> Resources:
        """What the stage takes while it runs."""

    def run(self, job: Job) -> None:
        """Runs all workers of a stage to their end; Interrupted if they were asked to stop, StageFailed otherwise."""

    def is_alive(self) -> bool:
        """False once `run` can no longer come to an end because what it runs on has died."""

    def close(self) -> None:
        """Gives back what `start` took."""
