"""The blocks of a card as HTML. Files are read from the artifact's folder only; what is missing or unreadable says so on the page."""

import base64
import json
import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from worldloom.pipeline import report_charts
from worldloom.pipeline.markup import Markup, element, join
from worldloom.stages.card import Bars, Block, Cell, Curves, Gallery, Item, Picture, Sound, Table, Text

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
MAX_PICTURE_BYTES = 8 * 1024 * 1024  # a report must stay a page that one can mail
MAX_SOUND_BYTES = 2 * 1024 * 1024
SMALL = 160  # pixels below which a picture is shown enlarged, with sharp pixels
ROWS_SHOWN = 500
_BLOCK: TypeAdapter[Block] = TypeAdapter(Block)


class Size(NamedTuple):
    """Pixels of a picture, from its header."""

    width: int
    height: int


def render(block: dict[str, Any], folder: Path) -> Markup:
    """One block of card.json; a block that this version cannot read becomes a note."""
    try:
        known = _BLOCK.validate_json(json.dumps(block))  # JSON mode: strict, yet a list may fill a tuple
    except (ValidationError, TypeError, ValueError):
        return note(f"A block of type {block.get('type')!r} that this version of worldloom cannot show.")
    return _RENDERERS[type(known)](known, folder)


def gallery(items: Sequence[Item], folder: Path, large: bool = False) -> Markup:
    """Pictures beside each other, as many as the page is wide."""
    return element("div", {"class": "gallery large" if large else "gallery"}, [_item(item, folder) for item in items])


def note(text: str) -> Markup:
    """A remark in place of something that cannot be shown."""
    return element("p", {"class": "note"}, text)


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Markup:
    """A table that scrolls by itself where the page is narrow; columns of numbers stand at the right."""
    right = [
        bool(rows) and all(row[at] is None or _number(row[at]) is not None for row in rows if at < len(row)) for at in range(len(columns))
    ]

    def cell(name: str, at: int, value: Cell, **attributes: str) -> Markup:
        return element(name, {"class": "number" if at < len(right) and right[at] else None, **attributes}, _text(value))

    return element(
        "div",
        {"class": "scroll", "tabindex": "0", "role": "group", "aria-label": "table"},
        element(
            "table",
            {},
            element("thead", {}, element("tr", {}, [cell("th", at, name, scope="col") for at, name in enumerate(columns)])),
            element("tbody", {}, [element("tr", {}, [cell("td", at, value) for at, value in enumerate(row)]) for row in rows]),
        ),
    )


def _title(title: str) -> Markup | None:
    return element("h3", {}, title) if title else None


def _text_block(block: Text, folder: Path) -> Markup:
    return element("p", {}, block.text)


def _table_block(block: Table, folder: Path) -> Markup:
    left_out = len(block.rows) - ROWS_SHOWN
    more = note(f"{left_out} more rows stand in {folder.name}/card.json.") if left_out > 0 else None
    return join([_title(block.title), table(block.columns, block.rows[:ROWS_SHOWN]), more])


def _picture_block(block: Picture, folder: Path) -> Markup:
    return element("figure", {"class": "picture"}, image(folder, block.file, block.caption), element("figcaption", {}, block.caption))


def _sound_block(block: Sound, folder: Path) -> Markup:
    shown = [image(folder, block.picture, f"spectrogram: {block.caption}"), sound(folder, block.file, block.caption)]
    return element("figure", {"class": "picture sound"}, shown, element("figcaption", {}, block.caption))


def _gallery_block(block: Gallery, folder: Path) -> Markup:
    judged = [item for item in block.items if item.verdict]
    right = sum(item.verdict == "right" for item in judged)
    tally = element("span", {"class": "tally"}, f" {right} of {len(judged)} right") if judged else None
    heading = element("h3", {}, block.title or ("" if tally is None else "Verdicts"), tally) if block.title or tally else None
    return join([heading, gallery(block.items, folder)])


def _curves_block(block: Curves, folder: Path) -> Markup:
    path = _inside(folder, block.file)
    read = {name: points for name, points in _metrics(path, block.x, block.series).items() if points} if path else {}
    body = report_charts.curves(read, block.x, block.unit) if read else note("Nothing has been measured yet.")
    return element("figure", {"class": "chart"}, element("figcaption", {}, block.title), body)


def _bars_block(block: Bars, folder: Path) -> Markup:
    if not block.values:
        body = note("No values.")
    elif len(block.labels) == len(block.values):
        body = report_charts.rows(block.values, block.labels, block.unit)
    else:
        body = report_charts.columns(block.values, block.unit)
    return element("figure", {"class": "chart"}, element("figcaption", {}, block.title), body)


_RENDERERS: dict[type, Callable[[Any, Path], Markup]] = {
    Text: _text_block,
    Table: _table_block,
    Picture: _picture_block,
    Sound: _sound_block,
    Gallery: _gallery_block,
    Curves: _curves_block,
    Bars: _bars_block,
}


def _item(item: Item, folder: Path) -> Markup:
    shown = [image(folder, item.before, f"before: {item.caption}")] if item.before else []
    shown.append(image(folder, item.file, item.caption))
    verdict = None
    if item.verdict:
        sign = "✓" if item.verdict == "right" else "✗"
        verdict = element("span", {"class": f"verdict {item.verdict}"}, element("i", {"aria-hidden": "true"}, sign), item.verdict)
    return element(
        "figure",
        {"class": " ".join(filter(None, ["item", "pair" if item.before else "", item.verdict]))},
        element("div", {"class": "pictures"}, shown),
        sound(folder, item.sound, item.caption) if item.sound else None,
        element("figcaption", {}, verdict, item.caption, element("small", {}, item.detail) if item.detail else None),
    )


def image(folder: Path, file: str, caption: str) -> Markup:
    """A picture of the artifact, inside the page; PNG and JPEG only, so that no file can be smuggled in as a picture."""
    path = _inside(folder, file)
    if path is None:
        return element("span", {"class": "missing", "role": "img", "aria-label": caption}, "picture missing")
    if path.stat().st_size > MAX_PICTURE_BYTES:
        return element("span", {"class": "missing", "role": "img", "aria-label": caption}, "picture too large for this page")
    content = path.read_bytes()
    kind = "png" if content.startswith(PNG) else "jpeg" if content.startswith(JPEG) else None
    if kind is None:
        return element("span", {"class": "missing", "role": "img", "aria-label": caption}, "not a PNG or JPEG picture")
    size = _png_size(content) if kind == "png" else None
    return element(
        "img",
        {
            "src": f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}",
            "alt": caption,
            "class": "pixels" if size and max(size) <= SMALL else None,
            "width": size.width if size else None,
            "height": size.height if size else None,
            "loading": "lazy",
        },
    )


def sound(folder: Path, file: str, caption: str) -> Markup:
    """A WAV file of the artifact, inside the page, with buttons to play it."""
    path = _inside(folder, file)
    if path is None or path.stat().st_size > MAX_SOUND_BYTES:
        return element("span", {"class": "missing"}, "sound missing" if path is None else "sound too large for this page")
    content = path.read_bytes()
    if not (content.startswith(b"RIFF") and content[8:12] == b"WAVE"):
        return element("span", {"class": "missing"}, "not a WAV file")
    source = f"data:audio/wav;base64,{base64.b64encode(content).decode('ascii')}"
    return element("audio", {"controls": True, "preload": "none", "aria-label": caption, "src": source})


def _png_size(content: bytes) -> Size | None:
    return Size(*struct.unpack(">II", content[16:24])) if len(content) >= 24 else None


def _inside(folder: Path, file: str) -> Path | None:
    """The file, if it is there and really lies in the folder: a card must not reach for other files of the machine."""
    path = (folder / file).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None


def _metrics(path: Path, x: str, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Points of each series, by x; of two lines with the same x the later counts, as after a resume. A torn last line is passed over."""
    found: dict[str, dict[float, float]] = {name: {} for name in names}
    for line in _lines(path):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict):
            continue
        at = _number(record.get(x))
        for name in names:
            value = _number(record.get(name))
            if at is not None and value is not None:
                found[name][at] = value
    return {name: sorted(points.items()) for name, points in found.items()}


@lru_cache(maxsize=1)
def _read_lines(path: Path, modified: int) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8", errors="replace").splitlines())


def _lines(path: Path) -> tuple[str, ...]:
    # The curves of one card mostly share one file.
    return _read_lines(path, path.stat().st_mtime_ns)


def _number(value: object) -> float | None:
    """A finite number, or None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _text(value: Cell) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else report_charts.number(value)
