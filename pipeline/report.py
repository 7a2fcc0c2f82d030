"""report.html: one page, with everything inside it, that shows what a run made.

It is read off JSON and picture files alone (stage.json, DONE.json, card.json, figures.json, logs), so that it can be written for a run that
is not finished, and again from a copied folder. Cards are rendered by the type of their blocks: no stage is known here by name.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from worldloom.pipeline import report_blocks, report_charts
from worldloom.pipeline.markup import Child, Markup, element, join
from worldloom.pipeline.report_page import LOGO, page
from worldloom.stages.card import CARD, FIGURES, Gallery, Item
from worldloom.stages.disk import write_file

HEADLINE_FIGURES = 8
HEADLINE_PICTURES = 16
SHARES = ("accuracy", "share", "use", "recall", "kept")  # a figure whose name ends so is shown in percent at the top of the page
UNITS = {"psnr": "dB", "seconds": "s", "bits_per_token": "bits"}


class Shown(NamedTuple):
    """A stage as the report shows it."""

    name: str
    kind: str
    inputs: tuple[str, ...]  # names of stages
    state: str  # "done", "running", "failed", "interrupted", "waiting"
    folder: Path | None = None  # its artifact, finished or not
    started: float | None = None  # seconds since 1970
    seconds: float | None = None
    note: str = ""  # one line: why it failed, or, of a stage that is done, where it comes from


class _Stage(NamedTuple):
    shown: Shown
    record: dict[str, Any]  # stage.json
    done: dict[str, Any]  # DONE.json
    card: dict[str, Any]
    figures: dict[str, float]


def write_report(run_folder: Path, stages: Sequence[Shown], name: str) -> Path:
    """Writes <run_folder>/report.html and returns it; a stage without artifact or card is shown as far as it got."""
    read = [_read(shown) for shown in stages]
    path = run_folder / "report.html"
    write_file(path, page(f"{name} · worldloom", _body(name, read)).encode("utf-8", errors="replace"))
    return path


def _read(shown: Shown) -> _Stage:
    read = [_json(shown.folder, file) for file in ("stage.json", "DONE.json", CARD, FIGURES)]
    record, done, card, figures = read
    numbers = {str(name): value for name, value in figures.items() if isinstance(value, int | float)}
    return _Stage(shown, record, done, card, numbers)


def _json(folder: Path | None, file: str) -> dict[str, Any]:
    """An object, or an empty one where there is none to read: a report on a broken run must still come out."""
    try:
        value = json.loads((folder / file).read_bytes()) if folder else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _body(name: str, stages: Sequence[_Stage]) -> Markup:
    graph = report_charts.graph([_node(stage) for stage in stages])
    return join(
        [
            element("a", {"class": "skip", "href": "#stages"}, "Skip to the stages"),
            element(
                "div",
                {"class": "wrap"},
                _header(name, stages),
                element(
                    "main",
                    {},
                    _hero(stages),
                    element("h2", {"class": "lone"}, "The run"),
                    element(
                        "div",
                        {"class": "panel"},
                        element("div", {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "graph of the stages"}, graph),
                        _times([stage.shown for stage in stages]),
                    ),
                    element("h2", {"class": "lone", "id": "stages"}, "What each stage left"),
                    [_section(stage) for stage in stages],
                    _all_figures(stages),
                ),
                element(
                    "footer", {}, f"Written by worldloom, {time.strftime('%Y-%m-%d %H:%M')}. Everything on this page is inside this file."
                ),
            ),
        ]
    )


def _header(name: str, stages: Sequence[_Stage]) -> Markup:
    finished = sum(stage.shown.state == "done" for stage in stages)
    failed = [stage.shown.name for stage in stages if stage.shown.state == "failed"]
    if failed:
        state = _state("failed", f"{', '.join(failed)} failed")
    elif finished == len(stages):
        state = _state("done", "complete")
    else:
        state = _state("waiting", "not finished")
    spans = [
        (shown.started, shown.started + shown.seconds) for shown, *_ in stages if shown.started is not None and shown.seconds is not None
    ]
    facts = [f"{finished} of {len(stages)} stages done"]
    if spans:
        facts.append(as_time(max(end for _, end in spans) - min(start for start, _ in spans)))
        facts.append(time.strftime("%Y-%m-%d %H:%M", time.localtime(max(end for _, end in spans))))
    return element(
        "header",
        {},
        element("div", {"class": "brand"}, LOGO, "worldloom"),
        element("h1", {}, name),
        element("div", {"class": "lead"}, state, [element("span", {}, fact) for fact in facts]),
        _tiles(stages),
    )


def _tiles(stages: Sequence[_Stage]) -> Markup | None:
    """The figures that the cards put first; without any, those of the last stage that has figures."""
    named = [(name, stage.figures[name]) for stage in stages for name in _strings(stage.card.get("headline")) if name in stage.figures]
    if not named:
        named = list(next((stage.figures for stage in reversed(stages) if stage.figures), {}).items())
    tiles = [
        element("li", {}, element("b", {}, _big(name, value)), element("span", {}, spoken(name)))
        for name, value in named[:HEADLINE_FIGURES]
    ]
    return element("ul", {"class": "tiles", "aria-label": "headline figures"}, tiles) if tiles else None


def _hero(stages: Sequence[_Stage]) -> Markup | None:
    """The first gallery of the last stage that has one: what the run ends in."""
    for stage in reversed(stages):
        for block in _blocks(stage):
            if block.get("type") == "gallery" and stage.shown.folder:
                try:
                    found = Gallery.model_validate_json(json.dumps(block))
                except ValueError:
                    continue
                items = [
                    Item(file=item.file, caption=item.caption, sound=item.sound, verdict=item.verdict)
                    for item in found.items[:HEADLINE_PICTURES]
                ]
                heading = element("h2", {}, found.title) if found.title else None
                return element("section", {"class": "hero"}, heading, report_blocks.gallery(items, stage.shown.folder, large=True))
    return None


def _node(stage: _Stage) -> report_charts.Node:
    shown = stage.shown
    return report_charts.Node(shown.name, shown.kind, shown.state, "" if shown.seconds is None else as_time(shown.seconds), shown.inputs)


def _times(stages: Sequence[Shown]) -> Markup | None:
    """When each stage worked, on one clock."""
    timed = [(stage, stage.started, stage.seconds) for stage in stages if stage.started is not None and stage.seconds is not None]
    if len(timed) < 2:
        return None
    first = min(started for _, started, _ in timed)
    whole = max(started + seconds for _, started, seconds in timed) - first or 1.0
    cells: list[Child] = []
    for stage, started, seconds in timed:
        left, width = 100 * (started - first) / whole, 100 * seconds / whole
        cells.append(element("span", {}, stage.name))
        cells.append(element("span", {"class": "track"}, element("i", {"style": f"left:{left:.2f}%;width:{width:.2f}%"})))
        cells.append(element("b", {}, as_time(seconds)))
    return element("div", {"class": "times"}, cells)


def _section(stage: _Stage) -> Markup:
    shown = stage.shown
    title = str(stage.card.get("title") or shown.name)
    facts = [
        f"from {', '.join(dict.fromkeys(shown.inputs))}" if shown.inputs else "",
        "" if shown.seconds is None else as_time(shown.seconds),
    ]
    files = stage.done.get("files")
    if isinstance(files, Mapping):
        size = sum(entry.get("bytes", 0) for entry in files.values() if isinstance(entry, Mapping))
        facts.append(f"{len(files)} {'file' if len(files) == 1 else 'files'}, {as_size(size)}")
    if shown.state == "done":
        facts.append(shown.note)
    blocks = [report_blocks.render(block, shown.folder) for block in _blocks(stage) if shown.folder]
    if not blocks and stage.figures:
        blocks = [report_blocks.table(("figure", "value"), sorted(stage.figures.items()))]
    elif not blocks:
        blocks = [report_blocks.note("Nothing to show yet." if shown.state != "done" else "This stage left no card.")]
    return element(
        "section",
        {"class": "stage", "id": f"stage-{shown.name}"},
        element(
            "div",
            {"class": "head"},
            element("h2", {}, title),
            element("span", {"class": "kind"}, shown.name if title != shown.name else shown.kind),
            _state(shown.state, shown.state),
        ),
        element("p", {"class": "facts"}, " · ".join(filter(None, facts))),
        element("p", {"class": "trouble"}, shown.note) if shown.note and shown.state != "done" else None,
        blocks,
        _details(stage),
    )


def _details(stage: _Stage) -> Markup | None:
    settings = stage.record.get("settings")
    rows: list[tuple[str, str]] = [*_flat(settings)] if isinstance(settings, Mapping) else []
    if fingerprint := stage.record.get("fingerprint"):
        rows.append(("fingerprint", str(fingerprint)))
    if stage.shown.folder:
        rows.append(("artifact", "/".join(stage.shown.folder.parts[-3:])))
    if not rows:
        return None
    lines = [
        element("tr", {}, element("td", {"class": "key"}, name), element("td", {}, element("code", {}, value))) for name, value in rows
    ]
    body = element(
        "div",
        {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "settings"},
        element("table", {}, element("tbody", {}, lines)),
    )
    return element("details", {}, element("summary", {}, "Settings"), body)


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            rows.extend(_flat(inner, f"{prefix}{name}."))
        else:
            rows.append((prefix + str(name), inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)))
    return rows


def _all_figures(stages: Sequence[_Stage]) -> Markup | None:
    rows = [(stage.shown.name, name, value) for stage in stages for name, value in sorted(stage.figures.items())]
    if not rows:
        return None
    body = element("div", {"class": "panel"}, report_blocks.table(("stage", "figure", "value"), rows))
    return join([element("h2", {"class": "lone", "id": "figures"}, "All figures"), body])


def _blocks(stage: _Stage) -> list[dict[str, Any]]:
    blocks = stage.card.get("blocks")
    return [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _state(state: str, text: str) -> Markup:
    return element("span", {"class": f"state {report_charts.state_class(state)}"}, text)


def spoken(name: str) -> str:
    """A figure's name in words: caption_to_frame.held_out_accuracy -> caption → frame, held out accuracy."""
    return name.replace("_to_", " → ").replace(".", ", ").replace("_", " ")


def _big(name: str, value: float) -> Markup:
    last = name.split(".")[-1]
    if last.endswith(SHARES) and 0 <= value <= 1:
        return join([f"{100 * value:.1f}".removesuffix(".0"), element("small", {}, "%")])
    unit = next((unit for ending, unit in UNITS.items() if ending in name.split(".")), None)
    return join([report_charts.number(value), element("small", {}, unit) if unit else None])


def as_time(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def as_size(size: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
