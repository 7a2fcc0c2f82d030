"""Pre-training through the stage: what it leaves, how it goes on after a stop, and what it refuses."""

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from worldloom.stages import pretrain_encoder
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.encoder_features import signed
from worldloom.stages.encoder_learner import DinoLearner, Recipe, SupervisedLearner
from worldloom.stages.encoder_scores import weighted_knn
from worldloom.stages.encoder_settings import Dino, Looks, Supervised
from worldloom.stages.encoder_watch import Watched
from worldloom.stages.labels import read_labels
from worldloom.stages.picture_batches import PictureBatches
from worldloom.stages.pretrain_encoder import PretrainEncoder
from worldloom.stages.value_batches import Values
from worldloom.stages.worker import Interrupted, Worker
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.koleo import koleo
from worldloom.world_model.encoders.load import from_pretrained
from worldloom.world_model.encoders.settings import VitSettings

VIT = {"type": "vit", "patch": 4, "width": 16, "depth": 2, "heads": 2}
CONV = {"type": "conv", "width": 8, "depths": (1, 1)}
SWIN = {"type": "swin", "patch": 2, "width": 8, "depths": (1, 1), "heads": (2, 2), "window": 3}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "supervised": {"type": "supervised"},
    "simmim": {"type": "simmim", "unit": 1},
    "dino": {"type": "dino", "prototypes": 11, "hidden": 12, "bottleneck": 6, "local_views": 1},
    "dinov2": {"type": "dinov2", "prototypes": 11, "hidden": 12, "bottleneck": 6, "local_views": 1},
}


@pytest.fixture
def data(tiny_root: Path) -> Artifact:
    return Artifact.open(tiny_root / "artifacts" / "data" / "0123456789abcdef")


def settings_of(objective: Mapping[str, Any], **changes: Any) -> PretrainEncoder:
    base = {"run": "pretrain_encoder", "data": "data", "stream": "view", "labels": "words", "label_by": "colour", "encoder": VIT}
    base |= {"steps": 6, "warmup": 2, "knn_every": 5, "batch_size": 4, "log_every": 2, "precision": "fp32"}
    return PretrainEncoder.model_validate({**base, "objective": dict(objective), **changes})


def make(folder: Path, data: Artifact, settings: PretrainEncoder, worker: Worker | None = None) -> Artifact:
    out = folder / "artifacts" / "eye" / "0123456789abcdef"
    return execute(pretrain_encoder.STAGE, "eye", settings, {"data": data}, out, worker or Worker())


@pytest.mark.parametrize(("objective", "form"), [("supervised", VIT), ("simmim", SWIN), ("dino", VIT)])
def test_every_objective_leaves_an_encoder_with_figures_and_a_card(
    tmp_path: Path, data: Artifact, objective: str, form: dict[str, Any]
) -> None:
    made = make(tmp_path, data, settings_of(OBJECTIVES[objective], encoder=form))
    encoder, about = from_pretrained(made.folder / "encoder")
    assert about.mask_token is (objective == "simmim")
    assert encoder(torch.zeros(2, 3, 16, 16)).pooled.shape == (2, encoder.width)
    figures = json.loads(made.content("figures.json"))
    scores = {f"{kind}{way}" for kind in ("knn", "linear_probe") for way in ("", "_untrained", "_pixels")}
    scores |= {"accuracy"} if objective == "supervised" else set()
    assert set(figures) == {f"view.{name}" for name in {"parameters", *scores}}
    assert made.counts == {"parameters": sum(each.numel() for each in encoder.parameters()), "steps": 6}
    blocks = [block["type"] for block in json.loads(made.content("card.json"))["blocks"]]
    assert blocks == ["table", "picture"] + ["curves"] * 6
    assert ("pictures/redrawn.png" if objective == "simmim" else "pictures/attention.png") in made.files()
    lines = [json.loads(line) for line in (made.folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [line["step"] for line in lines if "knn" in line] == [2, 6]  # before any step, and before the fifth
    assert all(0 <= line.get("knn", 0) <= 1 for line in lines)


STRONG: dict[str, Any] = {"type": "supervised", "mixing": {}, "randaugment": {}, "erase": 0.5, "repeats": 2}


@pytest.mark.parametrize(
    ("objective", "changes"), [(OBJECTIVES["dino"], {}), (STRONG, {"layer_decay": 0.8, "patch_rate": 0.5, "ema": 0.9})]
)
def test_stopped_and_started_again_it_leaves_the_same_bytes(
    tmp_path: Path, data: Artifact, objective: dict[str, Any], changes: dict[str, Any]
) -> None:
    settings = settings_of(objective, encoder={**VIT, "drop_path": 0.2}, **changes)
    whole = make(tmp_path / "whole", data, settings)
    steps: list[int] = []
    stopping = replace(Worker(), report=lambda done, *rest: steps.append(done), stopping=lambda: steps[-1:] == [4])
    with pytest.raises(Interrupted):
        make(tmp_path / "twice", data, settings, stopping)
    assert make(tmp_path / "twice", data, settings).manifest == whole.manifest


def test_the_teacher_follows_behind_the_step_and_sees_large_views_only(data: Artifact) -> None:
    encoder = build_encoder(VitSettings(patch=4, width=16, depth=1, heads=2, grid=(4, 4)), torch.Generator().manual_seed(0))
    recipe = Recipe(10, 3, 1e-3, (0.9, 0.95), 0.0, "fp32")
    learner = DinoLearner(encoder, Dino(prototypes=11, hidden=12, bottleneck=6, local_views=2, momentum=0.9), 16, recipe)
    batches = PictureBatches(Values(Dataset(data), "train", "view"), 4, 0, Worker())
    batch, _ = next(iter(batches.after(None)))
    sides: list[int] = []
    learner.pair.teacher.register_forward_hook(lambda module, given, out: sides.append(given[0].shape[-1]))
    turns = learner.turns(batch, 0)
    turn = next(turns)
    before = [each.detach().clone() for each in learner.pair.teacher.parameters()]
    sum(turn.losses.values()).backward()  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert not any(learner.pair.centre.value) and list(turns) == []
    assert sides == [16] and learner.pair.centre.value.any()
    assert all(each.grad is None for each in learner.pair.teacher.parameters())
    for old, new, parameter in zip(before, learner.judged.parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * parameter.detach())


def test_features_of_large_views_are_spread_apart_where_it_is_asked_for(data: Artifact) -> None:
    encoder = build_encoder(VitSettings(patch=4, width=16, depth=1, heads=2, grid=(4, 4)), torch.Generator().manual_seed(0))
    recipe = Recipe(10, 3, 1e-3, (0.9, 0.95), 0.0, "fp32")
    batch, _ = next(iter(PictureBatches(Values(Dataset(data), "train", "view"), 4, 0, Worker()).after(None)))
    losses = {}
    for weight in (0.0, 0.5):
        about = Dino(
            prototypes=11, hidden=12, bottleneck=6, local_views=1, koleo=weight, looks=Looks(flip=0.0, jitter=2.0, hue=0.5, turn=9.0)
        )
        learner = DinoLearner(encoder, about, 16, recipe)
        losses[weight] = next(learner.turns(batch, 0)).losses
    assert set(losses[0.0]) == {"agreement"} and torch.equal(losses[0.0]["agreement"], losses[0.5]["agreement"])
    views = recipe.views(batch, learner.views, torch.device("cpu"))
    expected = sum(koleo(encoder(view).pooled) for view in views[:2])
    torch.testing.assert_close(losses[0.5]["koleo"], 0.5 * expected)
    assert {(view.flip, view.turn, view.jitter.brightness, view.jitter.hue) for view in learner.views} == {(0.0, 9.0, 0.8, 0.5)}


def test_batches_are_the_same_for_any_number_of_ranks_and_know_their_samples(data: Artifact) -> None:
    values = Values(Dataset(data), "train", "view")
    labels = np.arange(100, 112)

    def first(worker: Worker, start: int) -> Any:
        return next(iter(PictureBatches(values, 8, 5, worker, labels).after({"values": start})))[0]

    whole, parts = first(Worker(), 8), [first(Worker(rank, 2), 8) for rank in range(2)]
    for name in ("values", "epoch", "sample", "labels"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert sorted(set(whole.epoch.tolist())) == [0, 1] and np.array_equal(whole.labels, whole.sample + 100)
    assert np.array_equal(whole.values, Dataset(data).batch("train", "view", whole.sample))
    with pytest.raises(ValueError, match=r"batch_size \(7\) must be a multiple of the 2 training workers; set it to 8"):
        PictureBatches(values, 7, 5, Worker(0, 2))
    with pytest.raises(ValueError, match="no sample of the split 'nothing' has the stream 'view'"):
        PictureBatches(Values(Dataset(data), "nothing", "view"), 8, 5, Worker())


def test_the_curve_of_knn_is_that_of_the_features_and_leaves_the_learner_as_it_was(data: Artifact) -> None:
    dataset, about = Dataset(data), VitSettings(patch=4, width=16, depth=1, heads=2, grid=(4, 4), drop_path=0.5)
    labels, train, seen = read_labels(dataset, "words", "shape"), Values(dataset, "train", "view"), Values(dataset, "held_out", "view")
    encoder = build_encoder(about, torch.Generator().manual_seed(0))
    recipe = Recipe(10, 3, 1e-3, (0.9, 0.95), 0.0, "fp32")
    watched = Watched(SupervisedLearner(encoder, Supervised(), labels.classes, 16, recipe), train, seen, labels, 3)
    batch, _ = next(iter(PictureBatches(train, 4, 0, Worker(), labels.of["train"]).after(None)))
    points = [turn.metrics.get("knn") for step in range(7) for turn in watched.turns(batch, step)]
    assert [point is not None for point in points] == [True, False, True, False, False, True, False]
    encoder.eval()
    with torch.no_grad():
        features = [encoder(signed(values[np.arange(len(values))])).pooled for values in (train, seen)]
    answers = [torch.from_numpy(labels.of[values.split][values.samples]) for values in (train, seen)]
    named = weighted_knn(features[0], answers[0], features[1], 4)
    assert points[0] == pytest.approx(float((named == answers[1]).double().mean()))
    encoder.train()
    watched.accuracy()
    assert encoder.training


def test_labels_are_what_captions_tell(data: Artifact) -> None:
    dataset = Dataset(data)
    found = read_labels(dataset, "words", "shape")
    for i in range(dataset.samples("train")):
        assert found.classes[found.of["train"][i]] in dataset.value("train", "words", i)
    assert set(found.of) == {"train", "validation", "held_out"}


def test_labels_keep_numbers_of_samples_and_not_their_texts() -> None:
    many = 50_000
    dataset: Any = SimpleNamespace(splits=("train",), samples=lambda split: many, value=lambda split, stream, i: f"kind {(i + 1) % 3}")
    tracemalloc.start()
    found = read_labels(dataset, "words", "text")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.classes == ("kind 0", "kind 1", "kind 2") and found.of["train"][:4].tolist() == [1, 2, 0, 1]
    assert peak < 32 * many


def test_labels_that_nobody_can_learn_are_refused(data: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(data)
    with pytest.raises(ValueError, match="is no class of the training split"):
        read_labels(dataset, "words", "text")
    for text, by, message in (
        ("cat", "text", "names 1 class by text; a classifier needs two at least, so give a stream or a label_by of more"),
        ("cat", "colour", "the caption 'cat' does not name one colour"),
        (None, "text", "lacks the stream 'words'"),
    ):
        monkeypatch.setattr(dataset, "value", lambda *place, text=text: text)
        with pytest.raises(ValueError, match=message):
            read_labels(dataset, "words", by)  # type: ignore[arg-type]
    told = {"train": "a red circle at the top", "validation": "a blue cross at the left", "held_out": "a green circle at the left"}
    monkeypatch.setattr(dataset, "value", lambda split, stream, i: told[split])
    for by in ("shape", "colour", "place"):
        with pytest.raises(ValueError, match=f"the training split's 'words' names 1 class by {by}; a classifier needs two"):
            read_labels(dataset, "words", by)  # type: ignore[arg-type]
    monkeypatch.setattr(dataset, "value", lambda split, stream, i: f"{i}")
    monkeypatch.setattr("worldloom.stages.labels.MOST_CLASSES", 3)
    with pytest.raises(ValueError, match="names 12 classes; are these captions"):
        read_labels(dataset, "words", "text")


def test_patches_that_do_not_fit_are_refused(tmp_path: Path, data: Artifact) -> None:
    with pytest.raises(ValueError, match=r"patches of 5 pixels do not divide pictures of 16; set encoder\.patch"):
        make(tmp_path, data, settings_of(OBJECTIVES["simmim"], encoder={**VIT, "patch": 5}))
    with pytest.raises(ValueError, match=r"patches of 4 pixels do not divide local views of 10; set objective\.local_size"):
        make(tmp_path, data, settings_of({**OBJECTIVES["dino"], "local_size": 10}))


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="supervised needs labels; set labels to a stream of text"):
        settings_of(OBJECTIVES["supervised"], labels=None)
    with pytest.raises(ValidationError, match="simmim hides patches from its encoder, and a conv encoder has none"):
        settings_of(OBJECTIVES["simmim"], encoder={"type": "conv"})
    with pytest.raises(ValidationError, match=r"local_from \(0.5\) must not be above global_from \(0.4\)"):
        settings_of({**OBJECTIVES["dino"], "local_from": 0.5})
