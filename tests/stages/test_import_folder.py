"""Importing a folder: every picture becomes a sample or a line in a ledger."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from worldloom.stages import disk
from worldloom.stages.artifact import InputChanged, begin, complete, execute
from worldloom.stages.commit import TooManyRejects
from worldloom.stages.dataset import Dataset
from worldloom.stages.import_folder import STAGE, ImportFolder
from worldloom.stages.settings import ImageStream, TextStream
from worldloom.stages.worker import Interrupted, Worker

STREAMS = {"caption": TextStream(kind="text"), "frame": ImageStream(kind="image", size=16)}


def picture(colour, size=(20, 16), format="PNG", mode="RGB"):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(stream, format=format)
    return stream.getvalue()


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def drawings(folder, count=23):
    return fill(folder, {f"{'ab'[i % 2]}/{i:02d}.png": picture((i, 2 * i, 3 * i)) for i in range(count)})


def settings_for(folder, **changes):
    return ImportFolder(run="import_folder", path=str(folder), streams=STREAMS, shard_size=5, **changes)


def imported(folder, out, worker=None, **changes):
    return execute(STAGE, "data", settings_for(folder, **changes), {}, out / "artifacts" / "data" / "f0", worker or Worker())


def ledger(artifact):
    """file -> code, from all rejects."""
    lines = [line for name in artifact.files() if name.startswith("rejects/") for line in artifact.path(name).read_text().splitlines()]
    return {entry["key"]: entry["code"] for entry in map(json.loads, lines)}


def test_pictures_and_captions_come_in_whole(tmp_path):
    data = Dataset(imported(drawings(tmp_path / "in"), tmp_path))
    assert data.samples("train") + data.samples("validation") == 23
    assert data.samples("validation") >= 1
    for split in data.splits:
        for i, key in enumerate(data.keys(split)):
            number = int(key.split("/")[1])
            assert data.value(split, "caption", i) == "ab"[number % 2]
            assert (data.value(split, "frame", i) == (number, 2 * number, 3 * number)).all()


def test_text_files_and_csv_give_the_same_captions(tmp_path):
    one = fill(
        tmp_path / "one",
        {"a.png": picture("red"), "a.txt": b"\xef\xbb\xbf a  red\r\n sheet \n", "b.png": picture("blue"), "b.txt": b"blue"},
    )
    two = fill(
        tmp_path / "two",
        {"a.png": picture("red"), "b.png": picture("blue"), "captions.csv": b"file,caption\na.png, a red  sheet\nb.png,blue\n"},
    )
    for folder in (one, two):
        data = Dataset(imported(folder, folder))
        found = {key: data.value(split, "caption", i) for split in data.splits for i, key in enumerate(data.keys(split))}
        assert found == {"a": "a red sheet", "b": "blue"}


def test_a_picture_without_caption_lacks_the_stream(tmp_path):
    folder = fill(tmp_path / "in", {"a.png": picture("red"), "a.txt": b"red", "b.png": picture("blue")})
    artifact = imported(folder, tmp_path)
    data = Dataset(artifact)
    assert sorted(str(data.value(split, "caption", 0)) for split in data.splits) == ["None", "red"]
    assert "Samples without a caption: 1." in (artifact.folder / "card.json").read_text()


def test_everything_refused_is_listed_with_the_reason(tmp_path):
    good = {f"good/{i:03d}.png": picture((i, i, i)) for i in range(20)}
    jpeg = picture("red", (300, 300), "JPEG")
    bad = {
        "bad/cut.jpg": (jpeg[: len(jpeg) // 2], "image_truncated"),
        "bad/empty.png": (b"", "empty_input"),
        "bad/page.jpg": (b"<html>404</html>", "type_mismatch"),
        "bad/moving.gif": (b"GIF89a", "format_not_allowed"),
        "bad/tiny.png": (picture("red", (3, 3)), "image_too_small"),
        "bad/twice.webp": (picture("red", format="WEBP"), "key_duplicate"),
        "bad/mute.png": (picture("red"), "empty_input"),
        "bad/latin.png": (picture("red"), "text_not_utf8"),
    }
    texts = {"bad/mute.txt": b" \n", "bad/latin.txt": b"caf\xe9"}
    files = {**good, "bad/twice.png": picture("red"), "notes.md": b"", **texts, **{name: content for name, (content, _) in bad.items()}}
    artifact = imported(fill(tmp_path / "in", files), tmp_path, max_reject_share=0.5)
    blamed = {"bad/mute.png": "bad/mute.txt", "bad/latin.png": "bad/latin.txt"}  # the caption's file, not the picture
    assert ledger(artifact) == {blamed.get(name, name): code for name, (_, code) in bad.items()}
    assert artifact.counts["samples"] == 21
    assert artifact.counts["rejected"] == 8
    assert json.loads(artifact.path("ignored.jsonl").read_text()) == {"file": "notes.md", "why": "not a picture"}
    card = json.loads(artifact.path("card.json").read_text())
    refused = next(block for block in card["blocks"] if block.get("title") == "Refused")
    assert {row[0]: row[1] for row in refused["rows"]} == ledger(artifact)


def test_too_many_refusals_fail_the_stage_and_name_the_codes(tmp_path):
    folder = fill(tmp_path / "in", {"a.png": picture("red"), "b.png": b"no picture", "c.png": picture("blue")})
    with pytest.raises(TooManyRejects, match=r"1 of 3 samples were refused, more than the 10\.00% allowed: type_mismatch \(1\)"):
        imported(folder, tmp_path)


def test_too_many_refusals_stand_on_the_card_of_the_failed_stage(tmp_path):
    folder = fill(tmp_path / "in", {"a.png": picture("red"), "b.png": b"no picture", "c.png": picture("blue")})
    with pytest.raises(TooManyRejects):
        imported(folder, tmp_path)
    (card,) = (json.loads(path.read_text()) for path in tmp_path.rglob("card.json"))
    (table,) = card["blocks"]
    assert [row[:2] for row in table["rows"]] == [["b.png", "type_mismatch"]]


def test_a_long_row_of_refusals_stops_early(tmp_path):
    folder = fill(tmp_path / "in", {f"{i:03d}.png": b"no picture" for i in range(200)})
    with pytest.raises(TooManyRejects, match=r"10\d files in a row were refused.*type_mismatch"):
        imported(folder, tmp_path)


def test_nothing_readable_at_all_is_an_error_whatever_the_limit(tmp_path):
    with pytest.raises(ValueError, match=r"none of the 2 files in .* could be read"):
        imported(fill(tmp_path / "in", {"a.png": b"no", "b.png": b"no"}), tmp_path, max_reject_share=1)


def test_the_number_of_workers_changes_no_byte(tmp_path):
    folder = drawings(tmp_path / "in")
    alone = imported(folder, tmp_path / "alone")
    settings, out = settings_for(folder), tmp_path / "many" / "artifacts" / "data" / "f0"
    begin(out, STAGE, "data", settings, {}, "f0")
    for rank in (2, 0, 1):
        STAGE.run(settings, {}, out, Worker(rank, 3))
    complete(out, STAGE.finish(settings, {}, out))
    assert (out / "DONE.json").read_bytes() == (alone.folder / "DONE.json").read_bytes()


def test_going_on_after_a_stop_changes_no_byte(tmp_path):
    folder = drawings(tmp_path / "in")
    answers = iter([False, False, True])
    with pytest.raises(Interrupted):
        imported(folder, tmp_path / "stopped", Worker(stopping=lambda: next(answers)))
    seen = []
    stopped = imported(folder, tmp_path / "stopped", Worker(report=lambda done, total, unit, notes: seen.append((done, total))))
    whole = imported(folder, tmp_path / "whole")
    assert (stopped.folder / "DONE.json").read_bytes() == (whole.folder / "DONE.json").read_bytes()
    assert seen[-1] == (23, 23)


def test_where_the_folder_lies_is_not_in_the_result(tmp_path):
    one = imported(drawings(tmp_path / "here"), tmp_path / "one")
    two = imported(drawings(tmp_path / "elsewhere"), tmp_path / "two")
    assert (one.folder / "DONE.json").read_bytes() == (two.folder / "DONE.json").read_bytes()


def test_the_digest_follows_contents_and_nothing_else(tmp_path):
    def outside(folder, **changes):
        return STAGE.outside(settings_for(folder, **changes), disk.digest)

    folder = drawings(tmp_path / "in", 3)
    first = outside(folder)
    assert first == outside(drawings(tmp_path / "copy", 3))
    fill(folder, {"notes.md": b"not imported"})
    assert outside(folder) == first
    fill(folder, {"a/00.png": picture("white")})
    changed = outside(folder)
    assert changed != first
    fill(folder, {"a/00.txt": b"a caption"})
    captioned = outside(folder)
    assert captioned not in (first, changed)
    assert outside(folder, caption="none") == changed


def test_a_folder_that_changes_under_the_import_is_noticed(tmp_path):
    folder = drawings(tmp_path / "in")
    settings, out = settings_for(folder), tmp_path / "artifacts" / "data" / "f0"
    begin(out, STAGE, "data", settings, {}, "f0", STAGE.outside(settings, disk.digest))
    fill(folder, {"a/00.png": picture("white")})
    STAGE.run(settings, {}, out, Worker())
    with pytest.raises(InputChanged, match="changed while it was imported"):
        STAGE.finish(settings, {}, out)
    fill(folder, {"a/00.png": picture((0, 0, 0))})  # as it was: the same artifact, imported anew
    STAGE.run(settings, {}, out, Worker())
    assert STAGE.finish(settings, {}, out)["samples"] == 23


def test_a_name_in_the_csv_that_leads_out_of_the_folder_is_refused_and_never_opened(tmp_path):
    names = ["/dev/zero", ".", "", "../secret.png", "x" * 300 + ".png"]  # the first has no end, the second is a folder
    fill(tmp_path, {"secret.png": b"a secret"})
    folder = fill(
        tmp_path / "in",
        {"a.png": picture("red"), "captions.csv": ("file,caption\na.png,c\n" + "".join(f"{name},b\n" for name in names)).encode()},
    )
    artifact = imported(folder, tmp_path, max_reject_share=0.9)
    assert set(ledger(artifact).values()) == {"file_missing"}
    lines = [line for name in artifact.files() if name.startswith("rejects/") for line in artifact.path(name).read_text().splitlines()]
    assert len(lines) == len(names)
    assert {json.loads(line)["sha256"] for line in lines} == {""}


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings_for("~/pictures").path == str(tmp_path / "pictures")


def test_a_folder_as_planned_passes_the_same_check(tmp_path):
    folder = drawings(tmp_path / "in")
    fill(folder, {"captions.csv": b"file,caption\na/00.png,x\nmissing.png,y\n"})
    settings, out = settings_for(folder), tmp_path / "artifacts" / "data" / "f0"
    begin(out, STAGE, "data", settings, {}, "f0", STAGE.outside(settings, disk.digest))
    STAGE.run(settings, {}, out, Worker())
    assert STAGE.finish(settings, {}, out)["rejected"] == 1


def test_no_pictures_is_known_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        STAGE.outside(settings_for(fill(tmp_path / "in", {"a.txt": b""})), disk.digest)


@pytest.mark.parametrize(
    "streams",
    [
        {"caption": STREAMS["caption"]},
        {**STREAMS, "c": STREAMS["caption"]},
        {},
    ],
)
def test_streams_that_a_folder_cannot_fill_are_refused(streams):
    with pytest.raises(ValidationError, match="import_folder fills streams of which one at least is no text and one at most is"):
        ImportFolder(run="import_folder", path="x", streams=streams)


def test_as_many_workers_as_shards_have_work(tmp_path):
    folder = drawings(tmp_path / "in")
    data = Dataset(imported(folder, tmp_path))
    assert STAGE.parallelism(settings_for(folder), {}) == sum(len(data.shards(split)) for split in data.splits)


def test_drawings_in_nested_folders_get_their_alphabet(tmp_path):
    ink = np.zeros((105, 105), bool)
    ink[20:30, 10:90] = True
    stream = io.BytesIO()
    Image.fromarray(ink).save(stream, format="PNG")
    names = [f"{alphabet}/character{i:02d}/{i:04d}_01.png" for alphabet in ("Early_Aramaic", "Greek") for i in range(3)]
    folder = fill(tmp_path / "in", dict.fromkeys(names, stream.getvalue()))
    for rule in ({}, {"caption": "parent_folder", "parent": 2}):
        data = Dataset(imported(folder, tmp_path / str(len(rule)), **rule))
        for split in data.splits:
            for i, key in enumerate(data.keys(split)):
                assert data.value(split, "caption", i) == key.split("/")[0].replace("_", " ")
                assert data.value(split, "frame", i)[0].max() <= 1  # a corner without ink
