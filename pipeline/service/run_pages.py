"""What a run says of itself to those who watch it over HTTP: its stages, how far they are, what they measured and show.

Everything is read off the run's own files, anew for every answer, while it is going on or after it. Nothing is opened by a name that a
request gives: files of a card are numbered, and the number is looked up in the card.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from worldloom.pipeline.events import read_events
from worldloom.pipeline.locate import Located, locate
from worldloom.pipeline.overview import StageView, overview
from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.run_folder import seconds_spent
from worldloom.pipeline.service.told import Told
from worldloom.stages.artifact import ArtifactError
from worldloom.stages.card import CARD, Block, Curves, Gallery, Picture, Sound

MOST_POINTS = 300  # of a curve
MOST_LOG_BYTES = 32 << 20  # of a log that is read; of a longer one, its end
MOST_FILE_BYTES = 8 << 20  # of a picture or sound that is handed out
METRICS = "logs/metrics.jsonl"
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".wav": "audio/wav"}
_BLOCK: TypeAdapter[Block] = TypeAdapter(Block)
_ENDINGS = {"FAIL": "failed", "ABORT": "interrupted"}


class Absent(LookupError):
    """There is nothing of that name; the message says what there is."""


class Going(Told):
    """How far a stage is."""

    done: int
    total: int
    unit: str
    notes: dict[str, float]


class StageLine(Told):
    """A stage in the list of a run."""

    name: str
    kind: str
    produces: str
    state: str  # "done", "running", "failed", "interrupted", "waiting"
    inputs: tuple[str, ...]  # names of stages
    started: float | None  # seconds since 1970, in the latest run
    seconds: float | None  # that all runs together have worked on it, or that it has been running
    progress: Going | None
    note: str
    figures: dict[str, float]
    bytes: int


class RunLine(Told):
    """A run in the list of those that are served."""

    name: str
    pipeline: str
    state: str  # "complete", "running", "failed", "not finished"
    done: int
    stages: int
    started: float | None


class RunPage(RunLine):
    """A run with its stages, each after those it needs."""

    lines: tuple[StageLine, ...]


class CardBlock(Told):
    """A block of a card; `type` says which of the fields count. Files are named by their numbers."""

    type: str
    title: str = ""
    text: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str | int | float | bool | None, ...], ...] = ()
    items: tuple[dict[str, str | int | None], ...] = ()
    x: str = ""
    unit: str = ""
    lines: dict[str, tuple[tuple[float, float], ...]] = Field(default_factory=dict)
    values: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


class StagePage(StageLine):
    """A stage with everything that it shows."""

    title: str
    headline: tuple[str, ...]  # names of the figures that count most
    blocks: tuple[CardBlock, ...]
    settings: dict[str, str]
    checkpoints: tuple[int, ...]  # steps


class File(NamedTuple):
    """A picture or a sound of a card."""

    content: bytes
    media_type: str


class _Read(NamedTuple):
    """A run as it stands."""

    name: str
    pipeline: str
    located: Located
    views: tuple[StageView, ...]
    needs: Mapping[str, tuple[str, ...]]
    events: Mapping[str, dict[str, Any]]  # stage -> its last event
    starts: Mapping[str, float]


class Runs:
    """Runs by name, as they were given to the service."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self.places = dict(places)

    def names(self) -> tuple[str, ...]:
        return tuple(self.places)

    def located(self, name: str) -> Located:
        """Absent if there is no such run, or nothing in it yet."""
        if name not in self.places:
            raise Absent(f"there is no run {name!r}; there are {', '.join(self.places) or 'none'}")
        try:
            return locate(self.places[name])
        except ConfigError as error:
            raise Absent(str(error)) from None

    def lines(self) -> list[RunLine]:
        """All runs that have begun."""
        told = []
        for name in self.places:
            try:
                told.append(RunLine.model_validate(_run_fields(self._read(name))))
            except (Absent, ArtifactError):
                continue  # it has not begun, or is being made anew: the next look finds it
        return told

    def page(self, name: str) -> RunPage:
        """One run with its stages."""
        read = self._read(name)
        return RunPage(**_run_fields(read), lines=tuple(StageLine.model_validate(_stage_fields(read, view)) for view in read.views))

    def stage(self, name: str, stage: str) -> StagePage:
        """One stage; its curves are those of its card, or, as long as it has none, of its log."""
        read, view = self._view(name, stage)
        card = _json(view.folder / CARD)
        files = {file: number for number, file in enumerate(_card_files(card))}
        blocks = [shown for block in _blocks(card) if (shown := _shown(block, view.folder, files)) is not None]
        return StagePage(
            **_stage_fields(read, view),
            title=str(card.get("title") or stage),
            headline=tuple(name for name in card.get("headline", ()) if isinstance(name, str)),
            blocks=tuple(blocks or _measured(view.folder)),
            settings=dict(_flat(_json(view.folder / "stage.json").get("settings", {}))),
            checkpoints=tuple(checkpoints_of(view.folder)),
        )

    def file(self, name: str, stage: str, number: int) -> File:
        """The picture or sound of that number on the stage's card."""
        _, view = self._view(name, stage)
        files = _card_files(_json(view.folder / CARD))
        if not 0 <= number < len(files):
            raise Absent(f"the card of {stage} shows {len(files)} files; {number} is none of them")
        path = _inside(view.folder, files[number])
        if path is None or path.stat().st_size > MOST_FILE_BYTES:
            raise Absent(f"file {number} of {stage} is missing, or larger than {MOST_FILE_BYTES} bytes")
        return File(path.read_bytes(), TYPES.get(path.suffix, "application/octet-stream"))

    def _view(self, name: str, stage: str) -> tuple[_Read, StageView]:
        read = self._read(name)
        for view in read.views:
            if view.name == stage:
                return read, view
        raise Absent(f"the run {name} has no stage {stage!r}; it has {', '.join(view.name for view in read.views)}")

    def _read(self, name: str) -> _Read:
        located = self.located(name)
        views = tuple(overview(located))
        last, starts, pipeline = {}, {}, name
        for event in read_events(located.run / "events.jsonl") if located.run else ():
            job = event["job"]
            pipeline = str(job["namespace"])
            last[job["name"]] = event
            if event["eventType"] == "START":
                starts[job["name"]] = datetime.fromisoformat(event["eventTime"]).timestamp()
        return _Read(name, pipeline, located, views, _needs(located, views), last, starts)


def checkpoints_of(folder: Path) -> list[int]:
    """Steps of a training's checkpoints that are whole, from the first on."""
    found = (folder / "checkpoints").glob("step-*/MANIFEST.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found if path.parent.name.removeprefix("step-").isdigit())


def _run_fields(read: _Read) -> dict[str, Any]:
    states = [_state(read, view) for view in read.views]
    done = sum(state == "done" for state in states)
    whole = "complete" if done == len(states) else next((state for state in ("running", "failed") if state in states), "not finished")
    return {
        "name": read.name,
        "pipeline": read.pipeline,
        "state": whole,
        "done": done,
        "stages": len(states),
        "started": min(read.starts.values(), default=None),
    }


def _state(read: _Read, view: StageView) -> str:
    if view.state in ("done", "running"):
        return view.state
    event = read.events.get(view.name, {}).get("eventType", "")
    return _ENDINGS.get(event, "waiting" if view.state == "not begun" else "interrupted")


def _stage_fields(read: _Read, view: StageView) -> dict[str, Any]:
    about = _json(view.folder / "stage.json")
    state, started = _state(read, view), read.starts.get(view.name)
    seconds = seconds_spent(view.folder) or None
    if state == "running" and started is not None:
        seconds = (seconds or 0.0) + max(0.0, time.time() - started)
    return {
        "name": view.name,
        "kind": str(about.get("kind", "")),
        "produces": str(about.get("produces", "")),
        "state": state,
        "inputs": read.needs.get(view.name, ()),
        "started": started,
        "seconds": seconds,
        "progress": None if view.progress is None else Going(**view.progress._asdict()),
        "note": str(read.events.get(view.name, {}).get("facts", {}).get("message", "")),
        "figures": view.figures,
        "bytes": 0 if view.artifact is None else view.artifact.bytes,
    }


def _needs(located: Located, views: Sequence[StageView]) -> dict[str, tuple[str, ...]]:
    """The stages that each needs: as the pipeline says, and where it cannot be read, as those say that have begun."""
    needs = dict(_pipeline_needs(located.run / "pipeline.yaml")) if located.run else {}
    for view in views:
        given = _json(view.folder / "stage.json").get("inputs")
        if isinstance(given, Mapping) and view.name not in needs:
            needs[view.name] = tuple(dict.fromkeys(str(each["stage"]) for each in given.values()))
    return needs


@lru_cache(maxsize=64)
def _pipeline_needs(path: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """A run's pipeline.yaml is written once, so it is read once."""
    from worldloom.pipeline.config import parse_pipeline
    from worldloom.pipeline.marks import links

    try:
        pipeline = parse_pipeline(path.read_text(encoding="utf-8"))
    except (OSError, ConfigError):
        return ()
    return tuple((name, tuple(dict.fromkeys(link.stage for link in links(stage)))) for name, stage in pipeline.stages.items())


def _blocks(card: Mapping[str, Any]) -> list[Block]:
    """Those that this version knows."""
    known = []
    for block in card.get("blocks", ()):
        try:
            known.append(_BLOCK.validate_json(json.dumps(block)))
        except ValidationError:
            continue
    return known


def _card_files(card: Mapping[str, Any]) -> list[str]:
    """Every picture and sound of a card, each once, in the order in which they appear."""
    files: dict[str, None] = {}
    for block in _blocks(card):
        if isinstance(block, Picture | Sound):
            files |= dict.fromkeys([block.file, *([block.picture] if isinstance(block, Sound) else [])])
        elif isinstance(block, Gallery):
            files |= dict.fromkeys(file for item in block.items for file in (item.before, item.file, item.sound) if file)
    return list(files)


def _shown(block: Block, folder: Path, files: Mapping[str, int]) -> CardBlock | None:
    """A block with numbers for files and points for curves; None where there is nothing on it."""
    if isinstance(block, Curves):
        lines = _curves(_inside(folder, block.file), block.x, block.series)
        return CardBlock(type="curves", title=block.title, x=block.x, unit=block.unit, lines=lines) if lines else None
    if isinstance(block, Picture):
        return CardBlock(type="gallery", items=({"file": files[block.file], "caption": block.caption, "wide": 1},))
    if isinstance(block, Sound):
        return CardBlock(type="gallery", items=({"file": files[block.picture], "sound": files[block.file], "caption": block.caption},))
    if isinstance(block, Gallery):
        return CardBlock(type="gallery", title=block.title, items=tuple(_item(item.model_dump(), files) for item in block.items))
    return CardBlock.model_validate(block.model_dump())


def _item(item: Mapping[str, Any], files: Mapping[str, int]) -> dict[str, str | int | None]:
    numbered = {name: files[item[name]] for name in ("file", "before", "sound") if item[name]}
    return {**numbered, **{name: item[name] for name in ("caption", "verdict", "detail") if item[name]}}


def _measured(folder: Path) -> Iterator[CardBlock]:
    """What a training has logged so far: its losses together, and every other number by itself."""
    lines = _curves(_inside(folder, METRICS), "step", None)
    losses = {name: line for name, line in lines.items() if name.split("/")[0] == "loss"}
    if losses:
        yield CardBlock(type="curves", title="Losses", x="step", lines=losses)
    for name, line in lines.items():
        if name not in losses:
            yield CardBlock(type="curves", title=name.replace("_", " "), x="step", lines={name: line})


def _curves(path: Path | None, x: str, names: Sequence[str] | None) -> dict[str, tuple[tuple[float, float], ...]]:
    """Name -> points (x, value), at most MOST_POINTS; every number but `x` and the time where no names are given."""
    if path is None:
        return {}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(path):
        if isinstance(at := row.get(x), int | float):
            for name in row if names is None else names:
                if name not in (x, "time") and isinstance(value := row.get(name), int | float) and not isinstance(value, bool):
                    found.setdefault(name, []).append((float(at), float(value)))
    order = found if names is None else [name for name in names if name in found]
    return {name: _thin(found[name]) for name in order}


def _thin(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Means of neighbours where there are too many points; the last one stays as it is, for that is the one people look at."""
    size = -(-len(points) // MOST_POINTS)
    if size == 1:
        return tuple(points)
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    means = [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]
    return (*means[:-1], points[-1])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of JSON; those that are no object, or cut short, are passed over."""
    with open(path, "rb") as file:
        size = path.stat().st_size
        if size > MOST_LOG_BYTES:
            file.seek(size - MOST_LOG_BYTES)
            file.readline()
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _inside(folder: Path, name: str) -> Path | None:
    """A file below the folder, also where links lead; None where there is none."""
    path = (folder / name).resolve()
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield prefix + str(name), inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)


def _json(path: Path) -> dict[str, Any]:
    """An object, or an empty one where there is none to read: a run may be making it right now."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
