"""What is kept of a run: <root>/runs/<run>/ with the pipeline as run, events, the artifacts' places and the report."""

import json
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from worldloom.pipeline.events import read_events
from worldloom.pipeline.plan import Plan
from worldloom.pipeline.stage import Stage
from worldloom.stages.disk import make_folder, write_file

log = logging.getLogger(__name__)

Ending = Literal["done", "interrupted", "failed"]


class Ended(NamedTuple):
    """How a stage ended in a run."""

    name: str
    ending: Ending
    started: float  # seconds since 1970
    seconds: float
    message: str = ""


class RunFolder:
    """The folder of one run."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan = plan
        self.name = name
        self.path = plan.root / "runs" / name
        self.stop = self.path / "stop"
        self.events = self.path / "events.jsonl"
        self.report = self.path / "report.html"

    @classmethod
    def create(cls, plan: Plan) -> "RunFolder":
        """A new folder, with the pipeline as it is run; `latest` leads to it."""
        folder = cls(plan, f"{datetime.now():%Y-%m-%d-%H%M%S}-{uuid.uuid4().hex[:4]}")
        make_folder(folder.path)
        write_file(folder.path / "pipeline.yaml", plan.text.encode())
        link = folder.path.parent / "latest"  # relative, so that a root may be moved
        aside = link.with_name(f".latest-{uuid.uuid4().hex}")
        aside.symlink_to(folder.name)
        os.replace(aside, link)
        folder.write_artifacts()
        return folder

    @classmethod
    def finished_before(cls, plan: Plan) -> "RunFolder | None":
        """The latest run, if it ended well, in exactly these artifacts, and has its report."""
        latest = plan.root / "runs" / "latest"
        folder = cls(plan, os.readlink(latest)) if latest.is_symlink() else None
        if folder is None or not folder.report.exists() or not (folder.path / "artifacts.json").exists():
            return None
        try:
            same = json.loads((folder.path / "artifacts.json").read_bytes()) == folder._artifacts()
        except ValueError:
            return None
        # A run that failed, because another one was at work, say, has a report that says so.
        last = list(read_events(folder.events))[-1:]
        return folder if same and last and last[0]["eventType"] == "COMPLETE" else None

    def write_artifacts(self) -> None:
        """artifacts.json: stage -> its artifact's folder, relative to the root; also of stages that are not done yet."""
        text = json.dumps(self._artifacts(), indent=1, ensure_ascii=False) + "\n"
        write_file(self.path / "artifacts.json", text.encode())

    def _artifacts(self) -> dict[str, str]:
        return {
            stage.name: stage.folder.relative_to(self.plan.root).as_posix() for stage in (planned.stage for planned in self.plan.stages)
        }

    def write_report(self, ended: Mapping[str, Ended], say: Callable[[str], None]) -> Path | None:
        """report.html. That it fails is said, and the run stands as it is."""
        try:
            from worldloom.pipeline.report import Shown, write_report

            shown = [
                Shown(stage.name, stage.kind.name, tuple(stage.inputs.values()), *_story(stage, ended.get(stage.name)))
                for stage in (planned.stage for planned in self.plan.stages)
            ]
            return write_report(self.path, shown, self.plan.name)
        except Exception as error:  # whatever it is, hours of work do not fail for a page about them
            log.debug("no report", exc_info=error)
            say(f"the report could not be written: {type(error).__name__}: {' '.join(str(error).split())}")
            return None


class _Story(NamedTuple):
    """What the report says of a stage besides its name, kind and inputs."""

    state: str
    folder: Path | None
    started: float | None
    seconds: float | None
    note: str


def _story(stage: Stage, ended: Ended | None) -> _Story:
    folder = stage.folder if stage.folder.exists() else None
    if ended is not None:
        return _Story(ended.ending, folder, ended.started, ended.seconds, ended.message)
    if (stage.folder / "DONE.json").exists():
        return _Story("done", folder, None, seconds_spent(stage.folder), "from an earlier run")
    return _Story("waiting", folder, None, None, "")


def note_times(out: Path, ended: Ended) -> None:
    """Adds to logs/times.jsonl how long a run worked on the artifact."""
    line = json.dumps({"started": round(ended.started, 3), "seconds": round(ended.seconds, 3), "ending": ended.ending})
    with open(out / "logs" / "times.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")


def seconds_spent(out: Path) -> float | None:
    """How long all runs together have worked on the artifact; None if nothing is known."""
    try:
        lines = (out / "logs" / "times.jsonl").read_text(encoding="utf-8").splitlines()
        return float(sum(json.loads(line)["seconds"] for line in lines))
    except (FileNotFoundError, ValueError, KeyError):
        return None
