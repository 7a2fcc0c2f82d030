"""What a run would do, stage by stage, and why."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from worldloom.pipeline.catalogue import STAGES
from worldloom.pipeline.config import Pipeline, dump_pipeline
from worldloom.pipeline.marks import output_settings
from worldloom.pipeline.problems import ConfigError, nearest
from worldloom.pipeline.progress import read_progress
from worldloom.pipeline.stage import Stage, stages_of
from worldloom.stages.artifact import Artifact, ArtifactError
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import dump

State = Literal["done", "will run", "will resume", "unselected"]
UNKNOWN = Estimate()
MOST_CHANGES = 3  # named in a reason
LONGEST_VALUE = 40  # characters of a value in a reason


@dataclass(frozen=True)
class Planned:
    """One stage of a plan."""

    stage: Stage
    state: State
    reason: str
    forced: bool = False  # finished, and to be made again: what stands in its folder goes first
    estimate: Estimate = UNKNOWN  # of what it will leave; of what is done, what it left
    seconds: float | None = None  # that the newest earlier artifact of this stage took

    @property
    def done(self) -> bool:
        return self.state == "done"


@dataclass(frozen=True)
class Plan:
    """All stages, each after those it needs."""

    pipeline: Pipeline
    stages: tuple[Planned, ...]

    @property
    def name(self) -> str:
        return self.pipeline.name

    @property
    def root(self) -> Path:
        return self.pipeline.folder

    @property
    def text(self) -> str:
        """The pipeline as a file, overrides and defaults written out."""
        return dump_pipeline(self.pipeline)

    def work(self) -> list[Planned]:
        """What is to be run."""
        return [planned for planned in self.stages if planned.state in ("will run", "will resume")]

    def all_stages(self) -> list[Stage]:
        return [planned.stage for planned in self.stages]

    def stage(self, name: str) -> Stage:
        return next(planned.stage for planned in self.stages if planned.stage.name == name)


def make_plan(
    pipeline: Pipeline,
    only: Sequence[str] = (),
    start: Sequence[str] = (),
    until: Sequence[str] = (),
    force: Sequence[str] = (),
    kinds: Mapping[str, StageKind] = STAGES,
) -> Plan:
    """The plan for the stages in `only`, from `start` on and up to `until`; finished ones are made again only if in `force`.

    ConfigError for a name that no stage has, or a selection whose inputs are not there; ArtifactError for a damaged artifact.
    """
    stages = stages_of(pipeline, kinds)
    _known({stage.name for stage in stages}, {"--only": only, "--from": start, "--until": until, "--force": force})
    selected = _selected(stages, only, start, until)
    planned: dict[str, Planned] = {}
    for stage in stages:
        one = _plan_one(stage, stage.name in selected, stage.name in force, planned)
        given = {field: planned[name].estimate for field, name in stage.inputs.items()}
        planned[stage.name] = replace(one, estimate=_estimate(one, given), seconds=None if one.done else _seconds(stage))
    _refuse_missing_inputs(planned)
    return Plan(pipeline, tuple(planned.values()))


def _plan_one(stage: Stage, selected: bool, force: bool, before: Mapping[str, Planned]) -> Planned:
    again = [name for name in dict.fromkeys(stage.inputs.values()) if before[name].forced]
    finished = (stage.folder / "DONE.json").exists()
    if finished and selected and (force or again):
        return Planned(stage, "will run", "--force" if force else f"{', '.join(again)} made again", forced=True)
    if finished:
        _check_files(stage)
        return Planned(stage, "done", "")
    if not selected:
        return Planned(stage, "unselected", "")
    if (stage.folder / "stage.json").exists():
        return Planned(stage, "will resume", _how_far(stage))
    return Planned(stage, "will run", why(stage, {name: planned.stage.fingerprint for name, planned in before.items()}))


def why(stage: Stage, fingerprints: Mapping[str, str]) -> str:
    """What has changed since the newest earlier artifact of this stage; `fingerprints` are those of the stages before it."""
    earlier = _newest_record(stage)
    if earlier is None:
        return "never run"
    if earlier["kind"] != stage.kind.name:
        return f"{stage.name}.run {earlier['kind']} -> {stage.kind.name}"
    changes = list(_changes(stage, earlier, fingerprints))
    if not changes:
        changes = ["its fingerprint changed"]
    more = len(changes) - MOST_CHANGES
    return ", ".join(changes[:MOST_CHANGES]) + (f" and {more} more" if more > 0 else "")


def _changes(stage: Stage, earlier: dict[str, Any], fingerprints: Mapping[str, str]) -> Iterator[str]:
    if earlier["version"] != stage.kind.version:
        yield f"stage version {earlier['version']} -> {stage.kind.version}"
    before, now = _flat(earlier["settings"]), _flat(output_settings(stage.settings))
    passed_over = _flat(dump(stage.settings)).keys() - now.keys()  # cannot change the output
    for name in [*now, *(name for name in before if name not in now)]:
        if name not in passed_over and before.get(name, _ABSENT) != now.get(name, _ABSENT):
            yield f"{stage.name}.{name} {_shown(before.get(name, _ABSENT))} -> {_shown(now.get(name, _ABSENT))}"
    inputs = {place["stage"]: place["fingerprint"] for place in earlier["inputs"].values()}
    for name in dict.fromkeys(stage.inputs.values()):
        if name in inputs and inputs[name] != fingerprints[name]:
            yield f"{name} changed"
    for name, digest in stage.outside.items():
        if earlier.get("outside", {}).get(name) != digest:
            yield f"{name} changed outside"


_ABSENT = object()


def _flat(tree: Any, above: str = "") -> dict[str, Any]:
    """Leaves of a tree of settings by their dotted names; a list is a leaf."""
    if not isinstance(tree, dict) or not tree:
        return {above: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in _flat(value, f"{above}.{key}" if above else key).items()}


def _shown(value: Any) -> str:
    text = "absent" if value is _ABSENT else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _newest_record(stage: Stage) -> dict[str, Any] | None:
    """stage.json of the artifact of this stage that was begun last, under whatever fingerprint."""
    records = sorted(stage.folder.parent.glob("*/stage.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in records:
        try:
            record = json.loads(path.read_bytes())
        except ValueError:
            continue  # whoever opens that artifact hears of it; for a reason the one before it serves as well
        if isinstance(record, dict) and {"kind", "version", "settings", "inputs"} <= record.keys():
            return record
    return None


def _estimate(planned: Planned, inputs: Mapping[str, Estimate]) -> Estimate:
    stage = planned.stage
    estimate = stage.kind.estimate(stage.settings, inputs) if stage.kind.estimate else Estimate()
    return estimate._replace(bytes=Artifact.open(stage.folder).bytes) if planned.done else estimate


def _seconds(stage: Stage) -> float | None:
    """What the artifact of this stage that was finished last took, in all its runs together."""
    finished = sorted(stage.folder.parent.glob("*/DONE.json"), key=lambda path: path.stat().st_mtime_ns)
    try:
        lines = (finished[-1].parent / "logs" / "times.jsonl").read_text(encoding="utf-8").splitlines() if finished else []
        return sum(float(json.loads(line)["seconds"]) for line in lines) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # logs are for people; nothing hangs on them


def _how_far(stage: Stage) -> str:
    progress = read_progress(stage.folder)
    return f"stopped at {progress.done} of {progress.total} {progress.unit}" if progress else "begun, not finished"


def _check_files(stage: Stage) -> None:
    try:
        artifact = Artifact.open(stage.folder)
        for name in artifact.files():
            artifact.path(name)
    except ArtifactError as error:
        raise ArtifactError(f"{stage.name} is damaged: {error}; worldloom run FILE --force {stage.name} makes it again") from None


def _known(names: set[str], asked: Mapping[str, Sequence[str]]) -> None:
    for option, stages in asked.items():
        for stage in stages:
            if stage not in names:
                raise ConfigError([f"{option} {stage}: there is no stage called {stage!r}; {nearest(stage, names)}"])


def _selected(stages: Sequence[Stage], only: Sequence[str], start: Sequence[str], until: Sequence[str]) -> set[str]:
    selected = {stage.name for stage in stages}
    if only:
        selected &= set(only)
    if start:
        after = set(start)
        for stage in stages:
            if not after.isdisjoint(stage.inputs.values()):
                after.add(stage.name)
        selected &= after
    if until:
        needed = set(until)
        for stage in reversed(stages):
            if stage.name in needed:
                needed.update(stage.inputs.values())
        selected &= needed
    return selected


def _refuse_missing_inputs(planned: Mapping[str, Planned]) -> None:
    for one in planned.values():
        if one.state in ("will run", "will resume"):
            missing = [name for name in one.stage.inputs.values() if planned[name].state == "unselected"]
            if missing:
                raise ConfigError(
                    [f"{one.stage.name} needs {missing[0]}, which is not done and not selected; begin with --from {missing[0]}"]
                )
