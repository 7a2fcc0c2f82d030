"""Finds what a run left: RUN on the command line is a pipeline file, its root folder, or the folder of one run."""

import json
from pathlib import Path

from worldloom.stages.artifact import Artifact, ArtifactError


def artifact_folders(run: Path) -> dict[str, Path]:
    """Stage -> artifact folder, finished or not; FileNotFoundError where there is no run, ConfigError for a pipeline file that is wrong."""
    if run.is_file():
        from worldloom.pipeline.config import read_pipeline
        from worldloom.pipeline.stage import stages_of

        return {stage.name: stage.folder for stage in stages_of(read_pipeline(run))}
    for folder in (run, run / "runs" / "latest"):
        if (folder / "artifacts.json").is_file():
            root = folder.resolve().parent.parent
            return {name: root / place for name, place in json.loads((folder / "artifacts.json").read_bytes()).items()}
    if not run.exists():
        raise FileNotFoundError(f"{run} is not there; give a pipeline file, or the folder that it names as root")
    raise FileNotFoundError(f"{run} holds no run (no runs/latest, no artifacts.json); run the pipeline first: worldloom run FILE")


def find_artifact(run: Path, produces: str, stage: str | None = None) -> Artifact:
    """The one finished artifact of that kind in a run, or that of `stage`; ArtifactError says why there is none, ValueError if many."""
    folders = artifact_folders(run)
    what = produces.replace("_", " ")
    if stage is not None:
        if stage not in folders:
            raise ValueError(f"the run has no stage {stage!r}; it has {', '.join(folders)}")
        artifact = Artifact.open(folders[stage])
        if artifact.produces != produces:
            raise ValueError(f"the stage {stage} leaves a {artifact.produces.replace('_', ' ')}, not a {what}")
        return artifact
    found = [folder for folder in folders.values() if _produces(folder) == produces]
    if not found:
        finished = [name for name, folder in folders.items() if (folder / "DONE.json").is_file()]
        raise ArtifactError(
            f"no {what} in {run} yet: finished are {', '.join(finished) or 'no stages'}; run the pipeline, it goes on where it stopped"
        )
    if len(found) > 1:
        raise ValueError(
            f"{run} has {len(found)} artifacts of kind {what} ({', '.join(f.parent.name for f in found)}); name one by --stage"
        )
    return Artifact.open(found[0])


def _produces(folder: Path) -> str | None:
    """What a begun stage leaves; None where nothing was begun."""
    try:
        value = json.loads((folder / "stage.json").read_bytes())["produces"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(value)
