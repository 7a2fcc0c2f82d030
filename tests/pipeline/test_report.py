import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from worldloom.pipeline.report import Shown, as_size, as_time, spoken, write_report
from worldloom.stages.card import (
    Bars,
    Block,
    Card,
    Curves,
    Gallery,
    Item,
    Picture,
    Table,
    Text,
    write_card,
    write_figures,
    write_picture,
    write_sound,
)

EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """A page as a parser sees it: its elements, whether they are nested as they should be, its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag and kind in [*(attributes.get("class") or "").split(), ""]]


def _stage(root: Path, name: str, blocks: tuple[Block, ...] = (), headline: tuple[str, ...] = (), **figures: float) -> Shown:
    folder = root / "artifacts" / name / "00ff"
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").write_text(json.dumps({"fingerprint": "00ff", "settings": {"steps": 3, "model": {"width": 5}, "note": EVIL}}))
    (folder / "DONE.json").write_text(json.dumps({"files": {"a": {"bytes": 1500}, "b": {"bytes": 500}}}))
    write_figures(folder, {figure.replace("__", "."): value for figure, value in figures.items()})
    if blocks:
        write_card(folder, Card(title=f"Card of {name}", blocks=blocks, headline=headline))
    return Shown(name, "make_things", (), "done", folder, 1000.0, 75.0)


def _picture(root: Path, name: str, side: int = 3) -> str:
    folder = root / "artifacts" / "data" / "00ff"
    folder.mkdir(parents=True, exist_ok=True)
    return write_picture(folder, name, np.full((side, side + 2, 3), 7, np.uint8))


def _metrics(shown: Shown, lines: str) -> None:
    assert shown.folder
    (shown.folder / "logs" / "metrics.jsonl").write_text(lines)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    return folder


def test_every_type_of_block_is_shown(run: Path, tmp_path: Path) -> None:
    item = Item(file=_picture(tmp_path, "a"), before=_picture(tmp_path, "b"), caption="a red thing", verdict="right", detail="27 dB")
    wrong = Item(file=_picture(tmp_path, "a"), caption="a blue thing", verdict="wrong")
    blocks = (
        Text(text="In words."),
        Table(title="Counts", columns=("split", "samples"), rows=(("train", 81920), ("held_out", None))),
        Picture(file=_picture(tmp_path, "large", 300), caption="one picture"),
        Gallery(title="Samples", items=(item, wrong)),
        Curves(series=("loss/a", "loss/b", "absent"), title="Losses", unit="bits"),
        Bars(values=(3.0, 1.0, 0.0), title="Uses"),
        Bars(values=(0.5, 1.0), labels=("shape", "colour"), title="Right by property"),
    )
    data = _stage(tmp_path, "data", blocks, ("frame.psnr", "legal_share"), frame__psnr=27.125, legal_share=1.0)
    _metrics(data, "".join(json.dumps({"step": step, "loss/a": 5 / step, "loss/b": 2.0}) + "\n" for step in range(1, 9)))
    page = Page(write_report(run, [data], "shapes"))
    assert page.open == []
    for text in ("In words.", "81\u202f920", "one picture", "a red thing", "27 dB", "1 of 2 right", "Right by property", "loss/b", "bits"):
        assert text in page.text, text
    assert len(page.all("polyline")) == 2 and "absent" not in page.text
    assert len(page.all("path", "column")) == 1 and len(page.all("ul", "rows")) == 1
    assert {"right", "wrong"} <= {(attributes["class"] or "").split()[-1] for attributes in page.all("span", "verdict")}
    assert "27.12" in page.text and "100" in page.text  # the headline
    pictures = page.all("img")
    assert len(page.all("img", "pixels")) == len(pictures) - 1  # all but the large one
    assert all(attributes["alt"] for attributes in pictures)


def test_the_page_holds_everything_and_asks_for_nothing(run: Path, tmp_path: Path) -> None:
    file = _picture(tmp_path, "a")
    data = _stage(tmp_path, "data", (Gallery(items=(Item(file=file, caption="x"),)),))
    page = Page(write_report(run, [data], "shapes"))
    assert "http" not in page.source and "url(" not in page.source and "@import" not in page.source
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    assert data.folder
    shown = (page.all("img")[0]["src"] or "").removeprefix("data:image/png;base64,")
    assert base64.b64decode(shown) == (data.folder / file).read_bytes()


def test_sounds_can_be_played_alone_and_beside_a_picture(run: Path, tmp_path: Path) -> None:
    data = _stage(tmp_path, "data")
    assert data.folder
    block = write_sound(data.folder, "beep", np.zeros((1, 80), np.float32), 8_000, "a beep")
    write_card(data.folder, Card(title="data", blocks=(block, Gallery(items=(Item(file=block.picture, caption="x", sound=block.file),)))))
    page = Page(write_report(run, [data], "shapes"))
    sounds = page.all("audio")
    assert len(sounds) == 3  # the block, the gallery's item and the same at the top of the page
    for attributes in sounds:
        source = (attributes["src"] or "").removeprefix("data:audio/wav;base64,")
        assert base64.b64decode(source) == (data.folder / block.file).read_bytes()
        assert "controls" in attributes and attributes["aria-label"] in ("a beep", "x")
    (data.folder / block.file).write_bytes(b"no sound")
    assert "not a WAV file" in Page(write_report(run, [data], "shapes")).text
    (data.folder / block.file).unlink()
    assert "sound missing" in Page(write_report(run, [data], "shapes")).text


def test_no_text_of_a_stage_becomes_code(run: Path, tmp_path: Path) -> None:
    items = (Item(file=_picture(tmp_path, "a"), caption=EVIL, detail=EVIL),)
    blocks = (Text(text=EVIL), Table(title=EVIL, columns=(EVIL,), rows=((EVIL,),)), Gallery(title=EVIL, items=items))
    charts = (Bars(values=(1.0,), labels=(EVIL,), title=EVIL, unit=EVIL), Curves(series=(EVIL,), title=EVIL, unit=EVIL))
    data = _stage(tmp_path, "data", (*blocks, *charts), **{EVIL: 1.0})
    _metrics(data, json.dumps({"step": 1, EVIL: 2.0}))
    page = Page(write_report(run, [data._replace(kind=EVIL, state="failed", note=EVIL)], EVIL))
    assert len(page.all("script")) == 1 and page.source.count("<script") == 1
    assert page.text.count(EVIL) >= 12
    assert not any(
        "alert" in (value or "") for _, attributes in page.elements for name, value in attributes.items() if name.startswith("on")
    )


def test_a_card_cannot_reach_for_other_files(run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    data = _stage(tmp_path, "data")
    assert data.folder
    (data.folder / "words.png").write_text("no picture at all")
    items = [{"file": name, "caption": name} for name in ("../../../secret.png", str(tmp_path / "secret.png"), "words.png", "gone.png")]
    blocks = [{"type": "gallery", "items": items}, {"type": "curves", "file": "../../../secret.png", "series": ["a"], "title": "t"}]
    (data.folder / "card.json").write_text(json.dumps({"title": "t", "blocks": blocks}))
    page = Page(write_report(run, [data], "shapes"))
    assert page.all("img") == []
    # In the gallery at the top and in the stage's own.
    assert page.text.count("picture missing") == 2 * 3 and page.text.count("not a PNG or JPEG picture") == 2
    assert "Nothing has been measured yet." in page.text


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_got(run: Path, tmp_path: Path) -> None:
    data = _stage(tmp_path, "data", (Text(text="All there."),))
    half = tmp_path / "artifacts" / "world" / "11"
    (half / "logs").mkdir(parents=True)
    (half / "stage.json").write_text('{"fingerprint": "11", "sett')
    (half / "card.json").write_text(json.dumps({"title": "Half", "blocks": [{"type": "hologram"}, "nonsense", {"type": "text"}]}))
    stages = [
        data,
        Shown("world", "train_world_model", ("data",), "failed", half, None, None, "the disk is full"),
        Shown("scores", "evaluate_world_model", ("world",), "waiting"),
    ]
    page = Page(write_report(run, stages, "shapes"))
    for text in (
        "All there.",
        "world failed",
        "the disk is full",
        "A block of type 'hologram'",
        "Nothing to show yet.",
        "1 of 3 stages done",
    ):
        assert text in page.text, text
    assert [attributes["href"] for attributes in page.all("a", "node")] == ["#stage-data", "#stage-world", "#stage-scores"] * 2
    assert {f"stage-{stage.name}" for stage in stages} <= {attributes.get("id") for attributes in page.all("section")}


def test_a_run_of_nothing_still_makes_a_page(run: Path) -> None:
    assert "0 of 0 stages done" in Page(write_report(run, [], "empty")).text


def test_curves_survive_a_torn_line_a_resume_and_numbers_that_are_none(run: Path, tmp_path: Path) -> None:
    data = _stage(tmp_path, "data", (Curves(series=("loss",), title="Loss"),))
    lines = ['{"step": 1, "loss": 4.0}', '{"step": 2, "loss": 9.0}', '{"step": 2, "loss": 3.0}', '{"step": 3, "loss": NaN}', "[1]"]
    _metrics(data, "\n".join([*lines, '{"step": 4, "loss": 2.5}', '{"step": 5, "lo']))
    page = Page(write_report(run, [data], "shapes"))
    readout = json.loads(page.all("div", "plot")[0]["data-readout"] or "")
    assert [point[:2] for point in readout["lines"]["loss"]] == [[1, 4.0], [2, 3.0], [4, 2.5]]


def test_a_long_curve_becomes_means_whose_last_value_stands_in_the_legend(run: Path, tmp_path: Path) -> None:
    data = _stage(tmp_path, "data", (Curves(series=("loss",), title="Loss"),))
    _metrics(data, "".join(f'{{"step": {step}, "loss": {step % 2}}}\n' for step in range(2400)))
    page = Page(write_report(run, [data], "shapes"))
    points = json.loads(page.all("div", "plot")[0]["data-readout"] or "")["lines"]["loss"]
    assert len(points) == 240 and {point[1] for point in points} == {0.5}
    assert "loss 0.5" in page.text and len(page.all("polygon")) == 1


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1.0, -7.0], [1e-9, 1e6], [3.0, 3.0]])
def test_any_values_make_a_curve_within_the_plot(run: Path, tmp_path: Path, values: list[float]) -> None:
    data = _stage(tmp_path, "data", (Curves(series=("loss",), title="Loss"),))
    _metrics(data, "".join(f'{{"step": {step}, "loss": {value}}}\n' for step, value in enumerate(values)))
    page = Page(write_report(run, [data], "shapes"))
    numbers = [float(number) for line in page.all("polyline") for number in re.split("[ ,]", line["points"] or "")]
    assert numbers and all(0 <= number <= 1000 for number in numbers)


def test_all_figures_stand_in_one_table_and_a_stage_without_a_card_shows_its_own(run: Path, tmp_path: Path) -> None:
    stages = [_stage(tmp_path, "one", a__psnr=31.5), _stage(tmp_path, "two", b__accuracy=0.25, c=12345)]
    page = Page(write_report(run, stages, "shapes"))
    table = page.text[page.text.index("All figures") :]
    for text in ("a.psnr", "31.5", "b.accuracy", "0.25", "12\u202f345"):
        assert text in table, text
    assert page.text.count("a.psnr") == 2 and "model.width" in page.text


def test_the_page_speaks_to_those_who_cannot_see_it(run: Path, tmp_path: Path) -> None:
    page = Page(write_report(run, [_stage(tmp_path, "data", (Text(text="x"),))], "shapes"))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1 and len(page.all("main")) == 1
    assert all(attributes.get("aria-label") or attributes.get("aria-hidden") for attributes in page.all("svg"))
    assert "data (make_things) done" in (page.all("svg", "graph")[0]["aria-label"] or "")
    assert "width=device-width" in page.source and "prefers-color-scheme: dark" in page.source


def test_names_times_and_sizes_are_said_as_people_say_them() -> None:
    assert spoken("caption_to_frame.held_out_accuracy") == "caption → frame, held out accuracy"
    assert [as_time(seconds) for seconds in (0.42, 59.4, 75, 3700)] == ["0.4 s", "59 s", "1 min 15 s", "1 h 1 min"]
    assert [as_size(size) for size in (12, 1500, 1_234_567)] == ["12 bytes", "1.5 kB", "1.23 MB"]
