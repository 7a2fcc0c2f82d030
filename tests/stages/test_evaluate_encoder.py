"""Evaluations of encoders through the stage: figures that are known, what is left out, and what is refused."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from worldloom.stages import encoder_evaluation, evaluate_encoder, pretrain_encoder
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.encoder_evaluation import Judged, measure
from worldloom.stages.encoder_features import signed, unsigned
from worldloom.stages.evaluate_encoder import EvaluateEncoder
from worldloom.stages.kind import StageKind
from worldloom.stages.open_encoder import TOKENIZER
from worldloom.stages.pretrain_encoder import PretrainEncoder
from worldloom.stages.settings import DatasetRef, StageSettings
from worldloom.stages.shapes import COLOURS, PLACES, SHAPES, Reading, read_caption, read_picture
from worldloom.stages.worker import Worker
from worldloom.world_model.encoders.build import build_coca, build_encoder
from worldloom.world_model.encoders.joined import save_coca
from worldloom.world_model.encoders.load import save_pretrained
from worldloom.world_model.encoders.settings import SwinSettings, TextSideSettings, VitSettings

VIT = VitSettings(patch=4, width=16, depth=2, heads=2, grid=(4, 4))


class Reader(StageSettings):
    run: str
    data: DatasetRef


def _reader(settings: Reader, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    from worldloom.tokenizers.text import train_text

    tokenizer = train_text(Dataset(inputs["data"]).values("train", "words"), 290)
    about = TextSideSettings(width=12, depth=2, heads=3, length=70, queries=3)
    encoder = build_encoder(VIT, torch.Generator().manual_seed(1))
    save_pretrained(out / "encoder", encoder, VIT)
    save_coca(out, build_coca(encoder, about, tokenizer.codebook_size, torch.Generator().manual_seed(2)), about)
    tokenizer.save_pretrained(out / TOKENIZER)


READER = StageKind("reader", Reader, _reader, lambda *_: {}, "encoder", 1, "gang")


@pytest.fixture
def data(tiny_root: Path) -> Artifact:
    return Artifact.open(tiny_root / "artifacts" / "data" / "0123456789abcdef")


def settings_of(**changes: Any) -> EvaluateEncoder:
    base = {"run": "evaluate_encoder", "encoder": "eye", "data": "data", "stream": "view", "text": "words", "captioned": 3}
    return EvaluateEncoder.model_validate(
        {**base, "label_by": ("shape", "colour"), "candidates": 4, "recall_at": (1, 2), "shown": 3, **changes}
    )


def evaluated(folder: Path, data: Artifact, eye: Artifact, **changes: Any) -> Artifact:
    out = folder / "artifacts" / "scores" / "0123456789abcdef"
    return execute(evaluate_encoder.STAGE, "scores", settings_of(**changes), {"encoder": eye, "data": data}, out, Worker())


def painter(folder: Path, data: Artifact, form: Mapping[str, Any]) -> Artifact:
    """An encoder that learnt to draw hidden patches, for three steps."""
    settings = PretrainEncoder.model_validate(
        {"run": "pretrain_encoder", "data": "data", "stream": "view", "encoder": dict(form), "objective": {"type": "simmim", "unit": 1}}
        | {"steps": 3, "warmup": 1, "batch_size": 4, "precision": "fp32"}
    )
    return execute(pretrain_encoder.STAGE, "eye", settings, {"data": data}, folder / "artifacts" / "eye" / "0123456789abcdef", Worker())


def blocks_of(made: Artifact) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = json.loads(made.content("card.json"))["blocks"]
    return blocks


def test_an_encoder_that_reads_is_measured_in_all_ways_and_again_the_same(tmp_path: Path, data: Artifact) -> None:
    eye = execute(
        READER, "eye", Reader(run="reader", data="data"), {"data": data}, tmp_path / "artifacts" / "eye" / "0123456789abcdef", Worker()
    )
    made = evaluated(tmp_path / "one", data, eye, sides=(24,))
    figures = json.loads(made.content("figures.json"))
    ways = [f"{kind}{way}_accuracy" for kind in ("knn", "probe") for way in ("", "_untrained", "_pixels")]
    ways += ["knn_at_24_pixels_accuracy", "knn_at_24_pixels_kept", "zero_shot_accuracy"]
    expected = {f"view.{split}_{by}_{way}" for split in ("held_out", "validation") for by in ("shape", "colour") for way in ways}
    expected |= {f"view.{split}_{way}_caption_accuracy" for split in ("held_out", "validation") for way in ("greedy", "top_p", "beam")}
    expected |= {
        f"view.{split}_{what}_top_{at}_recall"
        for split in ("held_out", "validation")
        for what in ("captions_of_pictures", "pictures_of_captions")
        for at in (1, 2)
    }
    assert {name for name in expected if not name.endswith("_kept")} <= set(figures) <= expected  # of nothing, no share is kept
    assert all(0 <= value <= 1 for name, value in figures.items() if not name.endswith("_kept"))
    blocks = blocks_of(made)
    assert [block["type"] for block in blocks] == ["gallery", "table", "table", "table", "table", "picture", "text"]
    assert blocks[-1]["text"] == "Left out. Hidden patches: this encoder never learnt to draw them."
    assert len(blocks[0]["items"]) == 3 and {item["verdict"] for item in blocks[0]["items"]} <= {"right", "wrong"}
    assert evaluated(tmp_path / "two", data, eye, sides=(24,)).manifest == made.manifest
    bare = json.loads(evaluated(tmp_path / "bare", data, eye, label_by=()).content("figures.json"))
    assert bare == {name: value for name, value in figures.items() if "_recall" in name or "_caption_" in name}


@pytest.mark.parametrize("form", [VIT, SwinSettings(patch=2, width=8, depths=(1, 1), heads=(2, 2), window=3)])
def test_what_an_encoder_cannot_do_is_left_out_with_a_word(tmp_path: Path, data: Artifact, form: VitSettings | SwinSettings) -> None:
    made = evaluated(tmp_path / "one", data, painter(tmp_path, data, form.model_dump()))
    text = blocks_of(made)[-1].get("text", "")
    assert "never read texts" in text and "Hidden patches" not in text
    assert ("no class token" in text) is isinstance(form, SwinSettings)
    assert "pictures/redrawn.png" in made.files() and ("pictures/attention.png" in made.files()) is isinstance(form, VitSettings)
    bare = evaluated(tmp_path / "two", data, painter(tmp_path, data, form.model_dump()), text=None)
    assert "no stream of text says what the pictures show" in blocks_of(bare)[-1]["text"]
    assert json.loads(bare.content("figures.json")) == {}


class Knowing:
    """Stands for a captioner that sees and reads all: vectors name shape, colour and place, captions are true where `right`."""

    def __init__(self, right: bool) -> None:
        self.right = right
        self.model = SimpleNamespace(text=SimpleNamespace(length=9))

    def pictures(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._vector(read_picture(picture)) for picture in unsigned(x)])

    def has_room_for(self, text: str) -> bool:
        return True

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([self._vector(read_caption(text)) for text in texts])

    def _vector(self, read: Reading | None) -> torch.Tensor:
        assert read is not None
        places = [SHAPES.index(read.shape), len(SHAPES) + list(COLOURS).index(read.colour), 10 + PLACES.index(read.place)]
        return torch.eye(19)[places].sum(0)


@pytest.mark.parametrize("right", [True, False])
def test_who_sees_and_reads_all_is_right_everywhere(data: Artifact, monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    knowing = Knowing(right)

    def write(captioner: Knowing, x: torch.Tensor, drawn: Any, beams: int) -> dict[str, list[str]]:
        read = [read_picture(picture) for picture in unsigned(x)]
        texts = [f"one {each.colour} {each.shape if right else 'cross'} {each.place}" for each in read if each is not None]
        return dict.fromkeys(("greedy", "top_p", "beam"), texts)

    monkeypatch.setattr(encoder_evaluation, "write_in_all_ways", write)
    judged = Judged("eye", build_encoder(VIT, torch.Generator()).eval(), VIT, knowing, None)  # type: ignore[arg-type]
    settings = settings_of(label_by=("shape", "colour", "place"), captioned=50)
    with torch.inference_mode():
        measured = measure(judged, Dataset(data), settings, Worker())
    assert {row.accuracy for row in measured.by_words} == {1.0} and len(measured.by_words) == 6
    assert {(row.to_captions, row.to_pictures) for row in measured.found} == {(1.0, 1.0)}
    for captioned in measured.captioned:
        crosses = np.mean([read_caption(caption.true).shape == "cross" for caption in captioned.captions])  # type: ignore[union-attr]
        assert captioned.accuracy("beam") == (1.0 if right else crosses)


class Remembering:
    """Stands for a captioner that knows for which picture a caption, `SPLIT sample NUMBER`, was written."""

    def __init__(self, dataset: Dataset) -> None:
        self.read, self.model = dataset.value, SimpleNamespace(text=SimpleNamespace(length=9))

    def has_room_for(self, text: str) -> bool:
        return len(text.split()) == 3

    def pictures(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        places = [text.split() for text in texts]
        return signed(np.stack([self.read(split, "view", int(number)) for split, _, number in places])).flatten(1)


@pytest.fixture
def free(data: Artifact, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Judged]:
    """Captions no two of which are one: each third of held_out is long, and the first of validation is not there."""
    dataset = Dataset(data)
    judged = Judged("eye", build_encoder(VIT, torch.Generator()).eval(), VIT, Remembering(dataset), None)  # type: ignore[arg-type]
    read = dataset.value

    def value(split: str, stream: str, i: int) -> Any:
        if stream != "words":
            return read(split, stream, i)
        if split == "validation" and i == 0:
            return None
        return f"{split} sample {i}" + (", of which there is much to say" if split == "held_out" and i % 3 == 0 else "")

    monkeypatch.setattr(dataset, "value", value)
    dataset.oracle = None
    ways = ("greedy", "top_p", "beam")
    monkeypatch.setattr(encoder_evaluation, "write_in_all_ways", lambda captioner, x, *_: dict.fromkeys(ways, ["train sample 0"] * len(x)))
    return dataset, judged


def test_free_captions_are_found_and_written_where_no_classes_are_asked_for(free: tuple[Dataset, Judged]) -> None:
    dataset, judged = free
    with torch.inference_mode():
        measured = measure(judged, dataset, settings_of(label_by=(), candidates=30, captioned=50), Worker())
    assert measured.named == measured.by_words == () and measured.classes == {}
    samples = {split: dataset.samples(split) for split in ("held_out", "validation")}
    pairs = {"held_out": samples["held_out"] * 2 // 3, "validation": samples["validation"] - 1}
    assert {row.split: row.pairs for row in measured.found} == pairs
    assert {(row.to_captions, row.to_pictures) for row in measured.found} == {(1.0, 1.0)}
    assert {each.split: len(each.captions) for each in measured.captioned} == samples | {"validation": samples["validation"] - 1}
    assert {each.accuracy("beam") for each in measured.captioned} == {0.0}
    too_long = samples["held_out"] - pairs["held_out"]
    assert measured.left_out == (
        "Classes: label_by names none.",
        "Hidden patches: this encoder never learnt to draw them.",
        f"Captions of held_out among those to find: {too_long}, of more than the 9 tokens that the text decoder reads.",
    )


def test_free_captions_are_no_classes_and_the_error_says_how_to_go_without(
    free: tuple[Dataset, Judged], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free[0], "value", lambda split, stream, i: f"{split} {i}")
    message = r"'.*' is no class of the training split; .*; or set label_by to \[\], and captions alone are asked for"
    with pytest.raises(ValueError, match=message):
        measure(free[1], free[0], settings_of(label_by=("text",)), Worker())


def test_a_split_without_captions_is_said(free: tuple[Dataset, Judged], monkeypatch: pytest.MonkeyPatch) -> None:
    read = free[0].value
    monkeypatch.setattr(free[0], "value", lambda *place: None if place[:2] == ("held_out", "words") else read(*place))
    with torch.inference_mode():
        measured = measure(free[1], free[0], settings_of(label_by=()), Worker())
    assert [each.split for each in measured.captioned] == ["validation"]
    assert "Writing captions of held_out: no picture asked about has one of its own." in measured.left_out


def test_prompts_that_do_not_name_a_class_are_said(data: Artifact) -> None:
    judged = Judged("eye", build_encoder(VIT, torch.Generator()).eval(), VIT, Knowing(True), None)  # type: ignore[arg-type]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_evaluation, "_captioned", lambda *_: encoder_evaluation.Captioned("none", ({},)))  # type: ignore[arg-type]
        patch.setattr(encoder_evaluation, "_figures", lambda measured: {})
        measured = measure(judged, Dataset(data), settings_of(prompts=("a {colour} cross at the top",)), Worker())
    assert [row.by for row in measured.by_words] == ["colour", "colour"]
    assert "Classes by words for shape: no prompt says {shape}." in measured.left_out


def test_splits_with_too_few_captions_to_find_one_among_are_said(data: Artifact) -> None:
    judged = Judged("eye", build_encoder(VIT, torch.Generator()).eval(), VIT, Knowing(True), None)  # type: ignore[arg-type]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_evaluation, "_captioned", lambda *_: encoder_evaluation.Captioned("none", ({},)))  # type: ignore[arg-type]
        patch.setattr(encoder_evaluation, "_figures", lambda measured: {})
        measured = measure(judged, Dataset(data), settings_of(candidates=60, recall_at=(1, 50)), Worker())
    assert measured.found == ()
    for split in ("held_out", "validation"):
        assert f"Finding captions of {split}: it has no 51 that say different things." in measured.left_out


def test_pictures_of_training_alone_or_of_others_alone_are_refused(data: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = Judged("eye", build_encoder(VIT, torch.Generator()), VIT, None, None)
    for kept in ("train", "validation"):
        dataset = Dataset(data)
        monkeypatch.setattr(dataset, "samples", lambda split, kept=kept, count=dataset.samples: count(split) if split == kept else 0)
        with pytest.raises(ValueError, match=rf"the reference set is empty: .* this dataset has {kept}; give it both"):
            measure(judged, dataset, settings_of(), Worker())


def test_settings_that_make_no_sense_are_refused() -> None:
    for prompt in ("a picture", "a {size} {shape}", "{text} {shape}", "{}"):
        with pytest.raises(ValidationError, match=r"must name {text} alone, or some of {shape}, {colour} and {place}"):
            settings_of(prompts=(prompt,))
    with pytest.raises(ValidationError, match=r"cannot be read: .* double a brace that is meant as one"):
        settings_of(prompts=("a {text",))
    for prompt in ("a {text:>9}", "a {text!r}", "a {text:{colour}}"):
        with pytest.raises(ValidationError, match=r"cannot be read: behind 'text' stands how to write it, and braces are for names alone"):
            settings_of(prompts=(prompt,))
    with pytest.raises(ValidationError, match=r"recall_at \(4\) must be below candidates \(4\), or all are found"):
        settings_of(recall_at=(1, 4))
