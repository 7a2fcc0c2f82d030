"""How far a pipeline is and what it has measured: read off the artifacts' own files, while a run is going on or after it."""

import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from worldloom.pipeline.locate import Located
from worldloom.pipeline.progress import Progress, read_progress
from worldloom.stages.artifact import Artifact

FIGURES = "figures.json"


class StageView(NamedTuple):
    """One stage as it stands."""

    name: str
    state: str  # "done", "running", "stopped", "not begun"
    folder: Path
    progress: Progress | None  # where it runs or has stopped
    artifact: Artifact | None  # where it is done

    @property
    def figures(self) -> dict[str, float]:
        """Stable name -> number, as the stage measured it."""
        if self.artifact is None or FIGURES not in self.artifact.files():
            return {}
        figures: dict[str, float] = json.loads(self.artifact.path(FIGURES).read_bytes())
        return figures


def overview(located: Located) -> list[StageView]:
    """Every stage in order; ArtifactError if a finished one is damaged."""
    return [_view(name, folder) for name, folder in located.artifacts.items()]


def all_figures(views: list[StageView]) -> dict[str, float]:
    """The figures of all stages; a name that two stages use is told apart by the stage's name in front."""
    counted: dict[str, int] = {}
    for view in views:
        for name in view.figures:
            counted[name] = counted.get(name, 0) + 1
    return {name if counted[name] == 1 else f"{view.name}.{name}": value for view in views for name, value in view.figures.items()}


def as_json(located: Located, views: list[StageView]) -> dict[str, Any]:
    """Everything as one object, for programs."""
    report = located.run / "report.html" if located.run else None
    return {
        "root": str(located.root),
        "run": str(located.run) if located.run else None,
        "report": str(report) if report and report.is_file() else None,
        "complete": all(view.state == "done" for view in views),
        "figures": all_figures(views),
        "stages": {view.name: _stage_json(view) for view in views},
    }


def _stage_json(view: StageView) -> dict[str, Any]:
    told: dict[str, Any] = {"state": view.state, "artifact": str(view.folder), "figures": view.figures}
    if view.artifact is not None:
        told |= {"kind": view.artifact.kind, "counts": view.artifact.counts, "bytes": view.artifact.bytes}
    if view.progress is not None:
        told["progress"] = view.progress._asdict()
    return told


def _view(name: str, folder: Path) -> StageView:
    if (folder / "DONE.json").exists():
        return StageView(name, "done", folder, None, Artifact.open(folder))
    if not (folder / "stage.json").exists():
        return StageView(name, "not begun", folder, None, None)
    return StageView(name, "running" if is_held(folder) else "stopped", folder, read_progress(folder), None)


def is_held(folder: Path) -> bool:
    """Whether a process works on the artifact in `folder`. It must be on this machine to be seen."""
    path = folder / "staging" / "run.lock"
    try:
        with open(path, encoding="utf-8") as file:
            holder = re.match(r"process (\d+) on (.*)", file.read())
            # Only a living process can hold the lock. The lock itself is tried last and for an instant, since a run that
            # starts in that instant would find it taken.
            if holder is None or (holder[2] == os.uname().nodename and not Path(f"/proc/{holder[1]}").exists()):
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
