"""Finds what a run left. RUN on the command line is a pipeline file, its root folder, or the folder of one run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from worldloom.pipeline.problems import ConfigError
from worldloom.stages.exported import is_export


class Located(NamedTuple):
    """Where things lie; an artifact folder may be unfinished, or not begun."""

    root: Path
    run: Path | None  # the run's own folder; None where the pipeline has not run
    artifacts: dict[str, Path]  # stage -> artifact folder, each stage after those it needs


def locate(run: Path, overrides: Sequence[str] = ()) -> Located:
    """Looks a run up; `overrides` are for a pipeline file. ConfigError where there is nothing to find."""
    if run.is_file():
        from worldloom.pipeline.config import read_pipeline
        from worldloom.pipeline.stage import stages_of

        pipeline = read_pipeline(run, overrides)
        artifacts = {stage.name: stage.folder for stage in stages_of(pipeline)}
        latest = pipeline.folder / "runs" / "latest"
        return Located(pipeline.folder, latest.resolve() if latest.exists() else None, artifacts)
    if overrides:
        raise ConfigError([f"overrides ({overrides[0]}) go with a pipeline file, {run} is none"])
    for folder in (run, run / "runs" / "latest"):
        if (folder / "artifacts.json").is_file():
            folder = folder.resolve()
            root = folder.parent.parent
            try:
                places = json.loads((folder / "artifacts.json").read_bytes())
            except ValueError:
                raise ConfigError([f"{folder / 'artifacts.json'} is damaged; run the pipeline again, it writes a new one"]) from None
            return Located(root, folder, {stage: root / place for stage, place in places.items()})
    if not run.exists():
        raise ConfigError([f"{run} is not there; give a pipeline file, its root folder or the folder of one run"])
    if is_export(run):
        raise ConfigError([f"{run} is an exported world, which sample and serve take; this command needs the run that it came from"])
    raise ConfigError([f"{run} holds no run; start one with worldloom run FILE"])
