"""A stage of a pipeline, as a record: *what* is made, never *how*."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from worldloom.pipeline.catalogue import STAGES
from worldloom.pipeline.fingerprint import Digests, fingerprint
from worldloom.pipeline.graph import in_order
from worldloom.pipeline.marks import links
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import StageSettings

if TYPE_CHECKING:
    from worldloom.pipeline.config import Pipeline


@dataclass(frozen=True)
class Stage:
    """One stage with everything that settles its output."""

    name: str
    kind: StageKind
    settings: StageSettings
    inputs: dict[str, str]  # field -> name of the stage it refers to
    fingerprint: str
    folder: Path  # <root>/artifacts/<name>/<fingerprint>
    outside: dict[str, str] = field(default_factory=dict)  # name -> digest of data from outside


def stages_of(pipeline: "Pipeline", kinds: Mapping[str, StageKind] = STAGES) -> tuple[Stage, ...]:
    """The pipeline's stages, each after those it needs. Hashes data from outside; ValueError or OSError if that cannot be read."""
    root = pipeline.folder
    digests = Digests(root / "digests.json")
    stages: dict[str, Stage] = {}
    for name in in_order(pipeline.stages):
        settings = pipeline.stages[name]
        kind = kinds[settings.run]
        inputs = {link.field: link.stage for link in links(settings)}
        outside = kind.outside(settings, digests) if kind.outside else {}
        mark = fingerprint(name, kind, settings, {at: stages[given].fingerprint for at, given in inputs.items()}, outside)
        stages[name] = Stage(name, kind, settings, inputs, mark, root / "artifacts" / name / mark, outside)
    digests.save()
    return tuple(stages.values())
