"""Objectives that need other stages, or batches of their own: teachers, captions, hidden patches; and encoders that go on from others."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from worldloom.pipeline.marks import links, stream_links
from worldloom.stages import encoder_figures, pretrain_encoder
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.distill_learner import same_classes
from worldloom.stages.encoder_learner import Recipe
from worldloom.stages.encoder_objectives import Lesson, first_encoder, learner_of
from worldloom.stages.labels import read_labels
from worldloom.stages.open_encoder import open_captioner, open_encoder, open_namer
from worldloom.stages.picture_batches import PictureBatches, share_of
from worldloom.stages.pretrain_encoder import PretrainEncoder
from worldloom.stages.value_batches import Values
from worldloom.stages.worker import Interrupted, Worker
from worldloom.tokenizers.text import EOS
from worldloom.world_model.encoders.deit import DeiT
from worldloom.world_model.encoders.patches import HybridPatches
from worldloom.world_model.encoders.positions import LearnedPositions
from worldloom.world_model.encoders.vit import ViT

VIT = {"type": "vit", "patch": 4, "width": 16, "depth": 2, "heads": 2}
CONV = {"type": "conv", "width": 8, "depths": (1, 1)}
STEM = {"patch": 2, "width": 8, "depths": (1, 1)}
TEXT = {"width": 12, "depth": 2, "heads": 2, "length": 60, "queries": 3}
DINOV2: dict[str, Any] = {"type": "dinov2", "prototypes": 11, "hidden": 12, "bottleneck": 6, "local_views": 1}
DISTILL: dict[str, Any] = {"type": "distill", "teacher": "teacher"}
COCA: dict[str, Any] = {"type": "coca", "captions": "words", "tokenizer": "words_codes", "text": TEXT}


def settings_of(objective: Mapping[str, Any], **changes: Any) -> PretrainEncoder:
    base = {"run": "pretrain_encoder", "data": "data", "stream": "view", "labels": "words", "label_by": "colour"}
    base |= {"steps": 4, "warmup": 1, "batch_size": 6, "log_every": 2, "precision": "fp32"}
    base |= {} if "init" in changes else {"encoder": VIT}
    return PretrainEncoder.model_validate({**base, "objective": dict(objective), **changes})


def make(
    folder: Path, settings: PretrainEncoder, made: Mapping[str, Artifact], worker: Worker | None = None, name: str = "eye"
) -> Artifact:
    inputs = {link.field: made[link.stage] for link in links(settings)}
    return execute(pretrain_encoder.STAGE, name, settings, inputs, folder / "artifacts" / name / "0123456789abcdef", worker or Worker())


@pytest.fixture(scope="module")
def made(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Data, a text tokenizer, a teacher of convolutions, and an encoder that drew hidden pixels."""
    found = {name: Artifact.open(tiny_root / "artifacts" / name / "0123456789abcdef") for name in ("data", "words_codes", "view_codes")}
    folder = tmp_path_factory.mktemp("encoders")
    found["teacher"] = make(folder, settings_of({"type": "supervised"}, encoder=CONV), found, name="teacher")
    found["drawn"] = make(folder, settings_of({"type": "simmim", "unit": 1}, labels=None), found, name="drawn")
    return found


def figures(artifact: Artifact) -> dict[str, float]:
    found: dict[str, float] = json.loads(artifact.content("figures.json"))
    return found


@pytest.mark.parametrize("form", ["soft", "hard", "features", "tokens", "kept"])
def test_a_teacher_of_convolutions_is_learnt_from(tmp_path: Path, made: dict[str, Artifact], form: str) -> None:
    objective = DISTILL | ({"keep": 2, "crop_from": 1.0, "flip": 0.0} if form == "kept" else {"form": form})
    student = make(tmp_path, settings_of(objective, labels=None if form == "soft" else "words"), made)
    encoder, about = open_encoder(student.folder)
    assert about.type == "vit" and encoder(torch.zeros(1, 3, 16, 16)).pooled.shape == (1, 16)
    if form in ("soft", "hard", "kept"):
        assert open_namer(student.folder).classes == open_namer(made["teacher"].folder).classes
    else:
        assert not (student.folder / "classifier").exists()


def test_a_deit_keeps_both_heads_and_sees_pictures_again_in_a_batch(tmp_path: Path, made: dict[str, Artifact]) -> None:
    student = make(tmp_path, settings_of({"type": "deit", "teacher": "teacher", "inference": "mean"}), made)
    namer = open_namer(student.folder)
    assert isinstance(namer.model, DeiT) and namer.inference == "mean"
    assert 0 <= figures(student)["view.accuracy"] <= 1
    values = Values(Dataset(made["data"]), "train", "view")
    batch, _ = next(iter(PictureBatches(values, 6, 0, Worker(), repeats=3).after({"values": 6})))
    assert batch.again.tolist() == [0, 1, 2] * 2 and len(set(batch.sample.tolist())) == 2
    lesson = lesson_of(settings_of({"type": "deit", "teacher": "teacher"}), made)
    learner = learner_of(lesson)
    (x,) = learner.recipe.views(batch, (learner.view,), torch.device("cpu"))  # type: ignore[attr-defined]
    assert not torch.equal(x[0], x[1])


def lesson_of(settings: PretrainEncoder, made: Mapping[str, Artifact], workers: int = 1) -> Lesson:
    dataset, inputs = Dataset(made["data"]), {link.field: made[link.stage] for link in links(settings)}
    labels = read_labels(dataset, settings.labels, settings.label_by) if settings.labels is not None else None
    encoder, _ = first_encoder(settings, inputs, dataset)
    return Lesson(settings, inputs, dataset, labels, encoder, Recipe(4, 3, 1e-3, (0.9, 0.95), 0.0, "fp32"), workers)


@pytest.mark.parametrize("changes", [{}, {"centring": "sinkhorn", "patch_prototypes": 7}, {"local_views": 0, "local_size": 10}])
def test_dinov2_stopped_and_started_again_leaves_the_same_bytes(tmp_path: Path, made: dict[str, Artifact], changes: dict[str, Any]) -> None:
    settings = settings_of({**DINOV2, **changes}, encoder={**VIT, "drop_path": 0.3, "subset": True})
    whole = make(tmp_path / "whole", settings, made)
    steps: list[int] = []
    stopping = replace(Worker(), report=lambda done, *rest: steps.append(done), stopping=lambda: steps[-1:] == [2])
    with pytest.raises(Interrupted):
        make(tmp_path / "twice", settings, made, stopping)
    assert make(tmp_path / "twice", settings, made).manifest == whole.manifest
    lines = [json.loads(line) for line in (whole.folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss/agreement", "loss/hidden_patches", "loss/koleo"} <= set(lines[-1])


def test_of_the_global_batch_a_fixed_number_of_views_has_hidden_patches_whatever_the_ranks(made: dict[str, Artifact]) -> None:
    lesson = lesson_of(settings_of({**DINOV2, "hidden_from": 0.3}, batch_size=8), made)
    learner: Any = learner_of(lesson)
    values = Values(lesson.dataset, "train", "view")

    def masks(worker: Worker) -> list[torch.Tensor]:
        batch, _ = next(iter(PictureBatches(values, 8, 0, worker).after(None)))
        return list(learner.hidden(batch, 5).chunk(2))

    whole, parts = masks(Worker()), [masks(Worker(rank, 2)) for rank in range(2)]
    for view in range(2):
        assert torch.equal(whole[view], torch.cat([part[view] for part in parts]))
    counts = torch.cat(whole).sum(1)
    assert int((counts > 0).sum()) == 8 and counts.max() <= 8
    assert not torch.equal(whole[0], whole[1])


def test_a_coca_classifies_first_then_reads_and_writes(tmp_path: Path, made: dict[str, Artifact]) -> None:
    whole = make(tmp_path / "whole", settings_of(COCA), made)
    steps: list[int] = []
    stopping = replace(Worker(), report=lambda done, *rest: steps.append(done), stopping=lambda: steps[-1:] == [3])
    with pytest.raises(Interrupted):
        make(tmp_path / "twice", settings_of(COCA), made, stopping)
    assert make(tmp_path / "twice", settings_of(COCA), made).manifest == whole.manifest
    lines = [json.loads(line) for line in (whole.folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 4] and "loss/labels" in lines[0] and "loss/caption" in lines[-1]
    captioner = open_captioner(whole.folder)
    x = torch.zeros(2, 3, 16, 16)
    assert captioner.pictures(x).shape == captioner.texts(["a red square", "a blue cross"]).shape == (2, 12)
    ids = torch.tensor([[*captioner.tokenizer.encode(["a red square"])[0].tolist(), EOS, EOS]])
    assert captioner.read(ids) == ["a red square"]
    with pytest.raises(ValueError, match=r"and the text decoder has 60 positions; shorten it, or train with a longer text\.length"):
        captioner.texts(["red " * 99])


def test_a_supervised_training_goes_on_from_hidden_pixels_with_a_share_of_the_labels(tmp_path: Path, made: dict[str, Artifact]) -> None:
    settings = settings_of({"type": "supervised"}, init="drawn", labelled=0.5, steps=1, learning_rate=1e-9, weight_decay=0.0)
    tuned = make(tmp_path, settings, made)
    before, after = (load_file(each.folder / "encoder" / "model.safetensors") for each in (made["drawn"], tuned))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    assert share_of(12, 0.5).tolist() == sorted(set(share_of(12, 0.5).tolist())) and len(share_of(12, 0.5)) == 6
    assert set(share_of(12, 0.25).tolist()) <= set(share_of(12, 0.5).tolist()) and len(share_of(12, 0.01)) == 1
    values = Values(Dataset(made["data"]), "train", "view")
    batch, _ = next(iter(PictureBatches(values, 6, 0, Worker(), chosen=np.array([3, 7])).after(None)))
    assert sorted(batch.sample.tolist()) == [3, 3, 3, 7, 7, 7]


def test_what_stands_beside_the_figures_is_what_training_began_with(
    tmp_path: Path, made: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[Any] = []
    report = encoder_figures.report_encoder

    def watch(settings: Any, encoder: Any, *rest: Any) -> None:
        first.append(encoder.state_dict())
        report(settings, encoder, *rest)

    monkeypatch.setattr(encoder_figures, "report_encoder", watch)
    tuned = make(tmp_path, settings_of({"type": "supervised"}, init="drawn"), made)
    before, after = (load_file(each.folder / "encoder" / "model.safetensors") for each in (made["drawn"], tuned))
    assert all(torch.equal(first[0][name], value) for name, value in before.items())
    assert not all(torch.equal(first[0][name], value) for name, value in after.items())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_stem_begins_with_a_trained_one_and_stays_as_it_is_where_it_is_frozen(
    tmp_path: Path, made: dict[str, Artifact], frozen: bool
) -> None:
    objective = {"type": "dino", "prototypes": 11, "hidden": 12, "bottleneck": 6, "local_views": 1, "momentum": 0.5}
    settings = settings_of(objective, encoder={**VIT, "stem": {**STEM, "frozen": frozen}}, encoder_stem="teacher")
    before, given = lesson_of(settings, made).encoder, open_encoder(made["teacher"].folder)[0].state_dict()
    student = make(tmp_path, settings, made)
    after, _ = open_encoder(student.folder)
    assert isinstance(before, ViT) and isinstance(before.patches, HybridPatches)
    assert isinstance(after, ViT) and isinstance(after.patches, HybridPatches)
    assert not torch.equal(after.patches.weight, before.patches.weight)
    stems = before.patches.convolutions.state_dict(), after.patches.convolutions.state_dict()
    assert all(torch.equal(stems[0][name], value) for name, value in given.items())
    assert all(torch.equal(stems[1][name], value) for name, value in given.items()) is frozen
    on = lesson_of(settings_of({"type": "simmim", "unit": 1}, init="student"), {**made, "student": student}).encoder
    assert isinstance(on, ViT) and isinstance(on.patches, HybridPatches)
    assert {parameter.requires_grad for parameter in on.patches.convolutions.parameters()} == {not frozen}
    assert torch.equal(on.patches.convolutions.norm.weight, after.patches.convolutions.norm.weight)


@pytest.mark.parametrize(("fitting", "grid"), [("crop", (3, 3)), ("pad", (4, 4))])
def test_hidden_pixels_are_drawn_where_patches_do_not_divide_the_picture(
    made: dict[str, Artifact], fitting: str, grid: tuple[int, int]
) -> None:
    lesson = lesson_of(settings_of({"type": "simmim", "unit": 1}, encoder={**VIT, "patch": 5, "fitting": fitting}), made)
    assert isinstance(lesson.encoder, ViT) and isinstance(lesson.encoder.positions, LearnedPositions)
    assert lesson.encoder.positions.grid == grid
    learner, batches = learner_of(lesson), PictureBatches(Values(lesson.dataset, "train", "view"), 6, 0, Worker())
    batch, _ = next(iter(batches.after(None)))
    assert next(iter(learner.turns(batch, 0))).losses["hidden_pixels"].isfinite()


def test_what_does_not_go_together_is_refused_before_the_training(made: dict[str, Artifact]) -> None:
    for objective, changes, message in (
        (DINOV2, {"encoder": {**VIT, "patch": 5}}, r"patches of 5 pixels do not divide pictures of 16; set encoder\.patch to a divisor"),
        ({**DINOV2, "local_size": 10}, {}, r"patches of 4 pixels do not divide local views of 10; set objective\.local_size"),
        ({**COCA, "tokenizer": "view_codes"}, {}, r"objective.tokenizer \(view_codes\) is of kind image; name a stage that trains a text"),
        ({**COCA, "text": {**TEXT, "length": 3}}, {}, "tokens, begin and end included, and the text decoder has 3 positions"),
        ({"type": "distill", "teacher": "drawn"}, {}, "this encoder learnt to name no classes; give one of objective supervised"),
        (
            {"type": "deit", "teacher": "teacher"},
            {"label_by": "shape"},
            "the teacher names 6 classes and the labels 4: 'black' is a class of",
        ),
        ({"type": "distill", "teacher": "drawn", "form": "tokens"}, {"encoder": {**VIT, "patch": 8}}, "the student has 4, the teacher 16"),
        ({"type": "deit", "teacher": "teacher"}, {"init": "teacher"}, "objective deit needs an encoder of type vit, got conv; go on from"),
        (DINOV2, {"init": "teacher"}, "objective dinov2 hides patches from its encoder, which conv cannot; go on from a vit"),
        (
            {"type": "dino"},
            {"encoder": {**VIT, "patch": 8, "stem": {**STEM, "patch": 4}}, "encoder_stem": "teacher"},
            r"encoder_stem \(teacher\): its form is not that of encoder\.stem: patch 2 against 4; make them equal",
        ),
        ({"type": "dino", "local_size": 8}, {"encoder": {**VIT, "patch": 9, "fitting": "crop"}}, "of 8 x 8 pixels hold no patch of 9"),
    ):
        with pytest.raises(ValueError, match=message):
            learner_of(lesson_of(settings_of(objective, **changes), made))
    with pytest.raises(ValueError, match="koleo needs two pictures on each worker at least, batch_size is 6 for 6 workers"):
        learner_of(lesson_of(settings_of(DINOV2), made, workers=6))
    with pytest.raises(ValueError, match="they stand in another order"):
        same_classes(("a", "b"), ("b", "a"))


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    for objective, changes, message in (
        (COCA, {"labels": None}, "coca's first phase classifies, and there are no labels"),
        (COCA, {"steps": 1}, "coca trains twice"),
        (COCA, {"batch_size": 1}, "objective coca compares pictures of a batch with each other; set batch_size to 2 or more"),
        (DINOV2, {"batch_size": 1}, "objective dinov2 compares pictures of a batch"),
        ({"type": "deit", "teacher": "teacher"}, {"labels": None}, "objective deit needs labels; .* or choose distill"),
        ({"type": "deit", "teacher": "teacher"}, {"encoder": CONV}, "objective deit needs an encoder of type vit, got conv"),
        ({"type": "deit", "teacher": "teacher"}, {"encoder": {**VIT, "class_token": False, "pooling": "mean"}}, "deit needs a class token"),
        ({"type": "simmim"}, {"labelled": 0.1}, "labelled leaves pictures out of a supervised training, and the objective is simmim"),
        ({"type": "supervised"}, {"init": "drawn", "encoder": VIT}, "the encoder's form is that of init; leave out encoder, or init"),
        ({"type": "supervised", "mixing": {}}, {"batch_size": 1}, "mixing pairs pictures of a batch with each other; set batch_size to 2"),
        ({"type": "supervised", "mixing": {"mixup": 0, "cutmix": 0}}, {}, "mixup and cutmix are both 0, so nothing would be mixed"),
        (DINOV2, {"ema": 0.9}, r"what dinov2 keeps is its teacher, an average already; leave out ema, and set objective\.momentum"),
        ({"type": "supervised"}, {"layer_decay": 0.0}, "greater than 0"),
        (
            {**DISTILL, "form": "features", "alpha": 0.5},
            {},
            r"form features has no use for alpha \(0.5\); leave it out, or choose another form",
        ),
        ({**DINOV2, "centring": "sinkhorn", "centre_momentum": 0.5}, {}, "centring sinkhorn has no use for centre_momentum"),
        ({**DISTILL, "form": "tokens", "temperature": 2.0}, {}, "form tokens has no use for temperature"),
        ({**DISTILL, "form": "hard", "temperature": 2.0}, {}, "form hard has no use for temperature"),
        ({**DISTILL, "form": "hard", "keep": 5}, {}, "form hard has no use for keep"),
        ({**DISTILL, "keep": 5, "flip": 0.0}, {}, "keep is for pictures that look the same every time; set crop_from to 1 and flip to 0"),
        ({**DISTILL, "keep": 5, "crop_from": 1.0}, {}, "keep is for pictures that look the same every time"),
        ({**DISTILL, "alpha": 0.5}, {"labels": None}, r"alpha \(0.5\) weighs the teacher against labels, and there are none; set labels"),
        ({"type": "deit", "teacher": "teacher", "alpha": 0.5}, {}, "form hard has no use for alpha"),
        ({"type": "deit", "teacher": "teacher", "reduction": "numbers"}, {}, "form hard has no use for reduction"),
        ({"type": "deit", "teacher": "teacher", "form": "soft", "smoothing": 0.2}, {}, "form soft has no use for smoothing"),
        ({"type": "dino"}, {"encoder": {**VIT, "stem": {**STEM, "frozen": True}}}, "another stage must have trained it; name one"),
        ({"type": "dino"}, {"encoder_stem": "teacher"}, "encoder_stem has weights for a stem, and the encoder has none; set encoder.stem"),
        ({"type": "dino"}, {"init": "drawn", "encoder_stem": "teacher"}, "all weights are those of init, its stem's among them; leave out"),
        ({**DINOV2, "hidden_from": 0.9}, {}, r"hidden_from \(0.9\) must not be above hidden_to \(0.5\)"),
    ):
        with pytest.raises(ValidationError, match=message):
            settings_of(objective, **changes)
    with pytest.raises(ValidationError, match=r"objective\.coca\.captions"):
        settings_of({"type": "coca", "tokenizer": "words_codes"})
    assert [(link.stream, link.kinds) for link in stream_links(settings_of(COCA))][-1] == ("words", ("text",))
    assert {link.field for link in links(settings_of(COCA))} == {"data", "objective.tokenizer"}
