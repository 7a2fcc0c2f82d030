"""`worldloom embed` and `worldloom search` on a run with an encoder that never learnt anything."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from worldloom.pipeline.cli import app
from worldloom.pipeline.retrieve import Found, _embedded, search_run, write_sheet
from worldloom.stages import eye, nearest
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.card import png
from worldloom.stages.dataset import Dataset
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, StageSettings
from worldloom.stages.worker import Worker
from worldloom.world_model.encoders.build import build_coca, build_encoder
from worldloom.world_model.encoders.joined import save_coca
from worldloom.world_model.encoders.load import save_pretrained
from worldloom.world_model.encoders.settings import TextSideSettings, VitSettings

WORDS = "words_codes"


class Untrained(StageSettings):
    run: Literal["untrained"]
    data: DatasetRef
    stream: str


def encoder(root: Path, name: str, reads_texts: bool) -> Artifact:
    """With a text side where that is asked for, beside the run's other artifacts."""

    def write(settings: Any, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
        about = VitSettings(patch=8, width=12, depth=2, heads=2, grid=(2, 2), pooling="mean")
        made = build_encoder(about, torch.Generator().manual_seed(1))
        save_pretrained(out / "encoder", made, about)
        if reads_texts:
            side = TextSideSettings(width=12, depth=2, heads=2, length=64, queries=3)
            save_coca(out, build_coca(made, side, 300, torch.Generator().manual_seed(2)), side)
            shutil.copytree(root / "artifacts" / WORDS / "0123456789abcdef" / "tokenizer", out / "coca" / "tokenizer")

    kind = StageKind("untrained", Untrained, write, lambda *_: {}, "encoder", 1, "gang")
    data = Artifact.open(root / "artifacts" / "data" / "0123456789abcdef")
    settings = Untrained(run="untrained", data="data", stream="view")
    return execute(kind, name, settings, {"data": data}, root / "artifacts" / name / "f0", Worker())


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, with the encoders eye and reader."""
    copied = shutil.copytree(tiny_root, tmp_path / "run", symlinks=True)
    made = [encoder(copied, "eye", False), encoder(copied, "reader", True)]
    belong(copied, *made)
    return copied


def belong(root: Path, *made: Artifact) -> None:
    """Puts artifacts into the run."""
    for path in {path.resolve() for path in root.glob("runs/*/artifacts.json")}:
        places = json.loads(path.read_bytes()) | {one.name: str(one.folder.relative_to(root.absolute())) for one in made}
        path.write_text(json.dumps(places))


def picture(root: Path, folder: Path, sample: int = 3) -> Path:
    """A file that holds a picture of the dataset."""
    file = folder / "asked.png"
    file.write_bytes(png(Dataset(Artifact.open(root / "artifacts" / "data" / "0123456789abcdef")).value("train", "view", sample)))
    return file


def test_a_picture_finds_itself_first_and_the_index_is_made_once(root: Path, tmp_path: Path) -> None:
    asked = picture(root, tmp_path)
    result = CliRunner().invoke(app, ["search", str(root), "--image", str(asked), "-n", "5", "--stage", "eye", "-o", "json"])
    assert result.exit_code == 0 and "embedding data by eye, once" in result.stderr
    hits = json.loads(result.stdout)["hits"]
    data = Dataset(Artifact.open(root / "artifacts" / "data" / "0123456789abcdef"))
    assert len(hits) == 5 and hits[0]["key"] == data.keys("train")[3] and hits[0]["cosine"] == pytest.approx(1, abs=1e-4)
    assert hits[0]["caption"] == data.value("train", "words", 3)
    assert sorted((hit["cosine"] for hit in hits), reverse=True) == [hit["cosine"] for hit in hits]
    again = CliRunner().invoke(app, ["search", str(root), "--image", str(asked), "-n", "5", "--stage", "eye"])
    assert "embedding" not in again.stderr and [line.split()[1] for line in again.stdout.splitlines()] == [
        f"{hit['split']}/{hit['key']}" for hit in hits
    ]


def test_with_faiss_and_without_the_same_pictures_are_found(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = picture(root, tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr(nearest, "by_torch")
        found = search_run(root, None, asked, 9, "eye").hits

    def missing() -> Any:
        raise ImportError("faiss")

    monkeypatch.setattr(nearest, "library", missing)
    without = search_run(root, None, asked, 9, "eye").hits
    assert [(hit.split, hit.key) for hit in without] == [(hit.split, hit.key) for hit in found]
    assert [hit.cosine for hit in without] == pytest.approx([hit.cosine for hit in found], abs=1e-6)


def test_words_are_compared_with_pictures_in_the_joint_space(root: Path, tmp_path: Path) -> None:
    found = search_run(root, "a red <b>circle</b>", None, count=24)
    assert found.features == "search-reader-joint" and len(found.hits) == 24
    for name in ("sheet.html", "sheet.png"):
        write_sheet(tmp_path / name, found)
    html = (tmp_path / "sheet.html").read_text()
    assert (
        html.count("<img") == 24
        and "a red &lt;b&gt;circle" in html
        and "<b>circle" not in html
        and "http" not in html.split("</style>")[1].split("<script")[0]
    )
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    write_sheet(tmp_path / "like.html", search_run(root, None, picture(root, tmp_path), 2, "eye"))
    assert (tmp_path / "like.html").read_text().count("<img") == 3


def test_files_become_features(root: Path, tmp_path: Path) -> None:
    asked = picture(root, tmp_path)
    runner, folder = CliRunner(), root / "artifacts" / "eye" / "f0"
    assert runner.invoke(app, ["embed", str(folder), str(asked)]).exit_code == 0
    kept = np.load(tmp_path / "asked.features.npy")
    assert kept.shape == (12,) and kept.dtype == np.float32
    for named in (f"{root}:eye", str(folder / "encoder")):
        assert runner.invoke(app, ["embed", named, str(asked), "--format", "json", "--out", str(tmp_path / "out")]).exit_code == 0
        told = json.loads((tmp_path / "out" / "asked.features.json").read_bytes())
        np.testing.assert_allclose(told["features"], kept, atol=1e-6)
    assert "4 x 12 numbers" in runner.invoke(app, ["embed", str(folder), str(asked), "--keep", "tokens"]).stdout
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    result = runner.invoke(app, ["embed", str(folder), str(bad), str(asked)])
    assert result.exit_code == 1 and "bad.png: " in result.stderr and "asked.features.npy" in result.stdout


def test_features_are_written_file_by_file(root: Path, tmp_path: Path) -> None:
    asked = picture(root, tmp_path)
    second = shutil.copy(asked, tmp_path / "second.png")
    done = _embedded(f"{root}:eye", [asked, second], tmp_path / "out", "pooled", "npy")
    assert next(done).target == tmp_path / "out" / "asked.features.npy"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["asked.features.npy"]
    assert [one.source for one in done] == [second]


def test_a_picture_to_look_for_is_read_as_the_datasets_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = eye._eye
    monkeypatch.setattr(eye, "_eye", lambda folder, side, name: whole(folder, 8, name))  # as if it had learnt on smaller pictures
    found = search_run(root, None, picture(root, tmp_path), 1, "eye")
    assert np.shape(found.asked) == (16, 16, 3) and found.hits[0].cosine == pytest.approx(1, abs=1e-5)


def test_features_that_a_text_cannot_be_compared_with_are_said(root: Path, tmp_path: Path) -> None:
    name = search_run(root, None, picture(root, tmp_path), 1, "eye").features
    belong(root, Artifact.open(next((root / "artifacts" / name).iterdir())))
    with pytest.raises(ValueError, match="search-eye-pooled leaves features of keep pooled, and this search needs features of keep joint,"):
        search_run(root, "a circle", None, stage=name)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"text": None, "image": None}, "say what to look for: either --text or --image"),
        ({"text": "a", "image": Path("b.png")}, "say what to look for: either --text or --image"),
        ({"text": "a", "image": None, "count": 0}, "count must be from 1 to 1000, got 0"),
        ({"text": "a", "image": None, "stage": "nobody"}, "no finished stage 'nobody'; it has"),
        (
            {"text": None, "image": Path("b.png"), "stage": "data"},
            "data leaves a dataset, and this search needs features of keep pooled or joint, or an encoder; name another stage",
        ),
        ({"text": "a", "image": None, "stage": "eye"}, "no encoder of objective coca, which a text needs, in eye yet"),
        ({"text": None, "image": Path("b.png")}, r"several encoders \(eye, reader\); name one by --stage"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(root: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_run(root, **asked)


def test_sheets_and_encoders_that_are_none_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sheet.txt does not end in \.html or \.png"):
        write_sheet(tmp_path / "sheet.txt", Found("a", "f", []))
    result = CliRunner().invoke(app, ["search", str(tmp_path / "nowhere"), "--text", "a", "--out", "sheet.txt"])
    assert "sheet.txt does not end in .html or .png" in str(result.exception)  # before anything is looked for
    result = CliRunner().invoke(app, ["embed", str(tmp_path), "x.png"])
    assert "is no folder of an encoder" in str(result.exception)
    with pytest.raises(ValueError, match="cannot be read as a picture: "):
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"no picture")
        search_run(root, None, bad, stage="eye")
