"""The artifact of a run that a command works on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from worldloom.pipeline.locate import locate
from worldloom.stages.artifact import Artifact, ArtifactError
from worldloom.stages.exported import is_export

if TYPE_CHECKING:
    from worldloom.stages.open_world import OpenWorld


def find_world(run: Path, stage: str | None = None, tokens: str | None = None) -> "OpenWorld":
    """The world of a run, as `find_artifact` finds it, or of a folder that `worldloom export` wrote, which has no stages and no tokens."""
    if not is_export(run):
        artifact = find_artifact(run, "world_model", stage)
        from worldloom.stages.open_world import open_world

        return open_world(artifact, tokens)
    if stage is not None:
        raise ValueError(f"{run} is an exported world, so there is no stage {stage!r} in it; leave out --stage")
    if tokens is not None:
        raise ValueError(f"{run} is an exported world, which holds no tokens; leave out --tokens")
    from worldloom.stages.open_export import open_export

    return open_export(run).world


def find_artifact(run: Path, produces: str, stage: str | None = None) -> Artifact:
    """The one finished artifact of that kind in a run, or that of `stage`.

    ArtifactError says why there is none, ValueError that there are several or that the stage leaves something else.
    """
    folders = locate(run).artifacts
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
        finished = ", ".join(name for name, folder in folders.items() if (folder / "DONE.json").is_file()) or "no stages"
        raise ArtifactError(f"no {what} in {run} yet: finished are {finished}; run the pipeline, it goes on where it stopped")
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
