"""Tars of strangers become datasets: all that can be read, and an account of the rest."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from worldloom.stages import import_webdataset
from worldloom.stages.artifact import execute
from worldloom.stages.commit import TooManyRejects
from worldloom.stages.dataset import Dataset
from worldloom.stages.import_webdataset import ImportWebdataset, fields_of
from worldloom.stages.settings import ImageStream, TextStream, VideoStream
from worldloom.stages.worker import Worker

STREAMS = {"words": TextStream(kind="text"), "view": ImageStream(kind="image", size=16)}


def png(colour):
    written = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(written, "PNG")
    return written.getvalue()


def write(path, members, form=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))


def imported(root, out, **settings):
    made = ImportWebdataset(run="import_webdataset", path=str(root), streams=STREAMS, **settings)
    artifact = execute(import_webdataset.STAGE, "data", made, {}, out / "0123456789abcdef", Worker())
    return Dataset(artifact), artifact


def test_samples_are_what_the_tars_hold_in_order_of_their_keys_and_splits_are_folders(tmp_path):
    first = [("b.png", png("red")), ("b.txt", b"red"), ("a.view.png", png("blue")), ("a.words.txt", b"blue"), ("a.json", b"{}")]
    write(tmp_path / "in" / "x.tar", first)
    write(tmp_path / "in" / "validation" / "y.tar", [("c/d.png", png("lime"))], tarfile.GNU_FORMAT)
    data, artifact = imported(tmp_path / "in", tmp_path / "out")
    assert data.keys("train") == ["a", "b"] and data.keys("validation") == ["c/d"]
    assert [data.value("train", "words", row) for row in range(2)] == ["blue", "red"]
    assert data.value("validation", "words", 0) is None
    assert (data.value("train", "view", 1) == np.array([255, 0, 0])).all() and artifact.counts["view.samples"] == 3
    assert bytes(data.content("train", "view", 1)) == png("red"), "contents are kept as they came"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read_in_both_ways_that_tars_have_for_them(tmp_path, form):
    key = "/".join(["k" * 90] * 2)
    write(tmp_path / "in" / "x.tar", [(f"{key}.txt", b"a")], form)
    assert imported(tmp_path / "in", tmp_path / "out")[0].keys("train") == [key]


REFUSED = {
    "key_invalid": [("__bad__.txt", b"a")],
    "key_not_contiguous": [("b.txt", b"a"), ("c.txt", b"a"), ("b.png", png("red"))],
    "key_duplicate": [("b.txt", b"a"), ("b.words.txt", b"b")],
    "ext_forbidden": [("b.txt", b"a"), ("b.pkl", b"\x80\x04.")],
    "empty_input": [("b.json", b"{}")],
    "text_not_utf8": [("b.txt", b"\xff")],
    "type_mismatch": [("b.png", b"<html>")],
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_sample_that_is_no_good_is_ledgered_with_its_code_and_the_others_stay(tmp_path, code):
    write(tmp_path / "in" / "x.tar", [("z.txt", b"good"), *REFUSED[code]])
    data, artifact = imported(tmp_path / "in", tmp_path / "out", max_reject_share=0.7)
    assert "z" in data.keys("train")
    ledger = [json.loads(line) for line in artifact.content("rejects/train/shard-000000.jsonl").splitlines()]
    assert [entry["code"] for entry in ledger] == [code]


def test_more_refusals_than_allowed_fail_the_stage(tmp_path):
    write(tmp_path / "in" / "x.tar", [("a.txt", b"a"), ("b.txt", b"\xff")])
    with pytest.raises(TooManyRejects, match="1 of 2 samples were refused"):
        imported(tmp_path / "in", tmp_path / "out")


def test_a_tar_that_was_cut_fails_the_stage_with_its_name(tmp_path):
    write(tmp_path / "in" / "x.tar", [("a.txt", b"a")])
    content = (tmp_path / "in" / "x.tar").read_bytes()
    (tmp_path / "in" / "x.tar").write_bytes(content[:1024])
    with pytest.raises(ValueError, match=r"x.tar: shard_truncated: .* mend it or take it out"):
        imported(tmp_path / "in", tmp_path / "out")


def test_a_folder_without_tars_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no file that ends in .tar"):
        imported(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        imported(tmp_path / "nothing", tmp_path / "out")


def test_an_ending_alone_names_a_stream_only_where_it_can_be_no_other():
    clip = VideoStream(kind="video", size=16, frames=2, frame_rate=8.0)
    fields = fields_of({"view": STREAMS["view"], "clip": clip})
    assert fields["view.png"] == "view" and fields["clip.mp4"] == fields["mp4"] == "clip" and fields["jpg"] == "view"
    assert "png" not in fields, "pictures and clips both have such files"
