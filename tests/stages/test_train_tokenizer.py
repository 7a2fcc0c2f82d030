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

from worldloom.stages import train_tokenizer
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.disk import digest
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.tokenizer_learner import image_tokenizer
from worldloom.stages.train_tokenizer import TrainTokenizer, outside
from worldloom.stages.worker import Interrupted, Worker
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import VqGan

SMALL = {"codebook_size": 9, "downsample": 4, "width": 4, "blocks": 1}
EMA = {"type": "ema", "code_width": 3, "place_after": 2}
TYPES: dict[str, dict[str, Any]] = {
    "vqgan": {"type": "vqgan", **SMALL, "quantizer": EMA, "discriminator_width": 4, "adversarial_from": 0.5},
    "vqvae": {"type": "vqvae", **SMALL, "quantizer": {**EMA, "type": "gradient"}},
    "fsq": {"type": "vqvae", **SMALL, "quantizer": {"type": "fsq", "levels": (3, 3)}},
    "dvae": {"type": "dvae", **SMALL, "code_width": 3},
    "dvae with squared errors": {"type": "dvae", **SMALL, "code_width": 3, "reconstruction": "l2"},
    "vit": {
        **{"type": "vqgan", "codebook_size": 9, "downsample": 4, "quantizer": EMA, "discriminator_width": 4, "adversarial_from": 0.5},
        "backbone": {"type": "vit", "width": 16, "depth": 1, "heads": 2},
    },
}

ALL_OPTIONS = {**TYPES["vqgan"], "lecam_weight": 0.1, "quantizer": {**EMA, "cosine": True}}


@pytest.fixture
def data(tiny_root: Path) -> Artifact:
    return Artifact.open(tiny_root / "artifacts" / "data" / "0123456789abcdef")


def settings_of(tokenizer: Mapping[str, Any], **changes: Any) -> TrainTokenizer:
    base = {"run": "train_tokenizer", "data": "data", "stream": "view", "steps": 6, "warmup": 2, "batch_size": 4, "log_every": 2}
    return TrainTokenizer.model_validate({**base, "tokenizer": dict(tokenizer), **changes})


def make(folder: Path, data: Artifact, settings: TrainTokenizer, worker: Worker | None = None) -> Artifact:
    out = folder / "artifacts" / "codes" / "0123456789abcdef"
    return execute(train_tokenizer.STAGE, "codes", settings, {"data": data}, out, worker or Worker())


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_leaves_a_tokenizer_with_figures_and_a_card(tmp_path: Path, data: Artifact, kind: str) -> None:
    made = make(tmp_path, data, settings_of(TYPES[kind]))
    tokenizer = open_tokenizer(made.folder / "tokenizer")
    assert isinstance(tokenizer, ImageTokenizer)
    assert (tokenizer.settings.type, tokenizer.shape) == (TYPES[kind]["type"], (4, 4))
    figures = json.loads(made.content("figures.json"))
    expected = {"psnr", "psnr_pooled", "psnr_validation", "ssim", "ms_ssim", "codebook_use", "perplexity", "bits_per_pixel"}
    expected |= {"random_vgg", "frechet_random_vgg"}
    assert set(figures) == {f"view.{name}" for name in expected}
    assert 0 < figures["view.codebook_use"] <= 1 <= figures["view.perplexity"] <= 9
    real = np.stack(list(Dataset(data).values("held_out", "view")))  # the main figures are those of what training never sees
    codes = tokenizer.encode(real)
    errors = np.square(real.astype(float) - tokenizer.decode(codes)).reshape(len(real), -1).mean(1)
    assert figures["view.psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-3)
    assert figures["view.codebook_use"] == pytest.approx(len(np.unique(codes)) / 9, abs=1e-3)
    card = json.loads(made.content("card.json"))
    assert [block["type"] for block in card["blocks"]] == ["picture", "table", "bars"] + ["curves"] * (
        7 if TYPES[kind]["type"] == "vqgan" else 5
    )
    drawn = {series for block in card["blocks"] if block["type"] == "curves" for series in block["series"]}
    assert "pictures/reconstructions.png" in made.files()
    assert made.counts == {"codebook_size": 9, "codes_per_sample": 16}
    lines = [json.loads(line) for line in (made.folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert {name for name in lines[-1] if name.startswith("loss/")} <= drawn


@pytest.mark.parametrize("kind", ["vqgan", "vit", "averaged"])
def test_stopped_and_started_again_it_leaves_the_same_bytes(tmp_path: Path, data: Artifact, kind: str) -> None:
    settings = settings_of(ALL_OPTIONS, ema=0.9) if kind == "averaged" else settings_of(TYPES[kind])
    whole = make(tmp_path / "whole", data, settings)
    steps: list[int] = []
    stopping = replace(Worker(), report=lambda done, *rest: steps.append(done), stopping=lambda: steps[-1:] == [4])
    with pytest.raises(Interrupted):
        make(tmp_path / "twice", data, settings, stopping)
    twice = make(tmp_path / "twice", data, settings)
    assert twice.manifest == whole.manifest


def test_a_stream_that_is_no_picture_is_refused(tmp_path: Path, data: Artifact) -> None:
    with pytest.raises(ValueError, match=r"'words' is no stream .* the dataset has view \(image\), words \(text\)"):
        make(tmp_path, data, settings_of(TYPES["vqgan"], stream="words"))


def test_codes_are_placed_before_a_short_training_ends(data: Artifact) -> None:
    without = {**TYPES["vqgan"], "quantizer": {"type": "ema", "code_width": 3}}
    for steps, expected in ((6, 0), (24, 2), (4_000, 50)):
        about = image_tokenizer(settings_of(without, steps=steps), Dataset(data).streams["view"]).settings
        assert isinstance(about, VqGan) and about.quantizer.place_after == expected
    with pytest.raises(ValidationError, match=r"tokenizer\.quantizer\.place_after \(5\) must be below steps \(6\)"):
        settings_of({**without, "quantizer": {"type": "ema", "place_after": 5}})


def test_perceptual_weights_from_outside_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    weights = tmp_path / "lpips.safetensors"
    named = settings_of({**TYPES["vqgan"], "perceptual_weights": str(weights)})
    with pytest.raises(FileNotFoundError, match="there is no file"):
        outside(named, digest)
    weights.write_bytes(b"x")
    assert list(outside(named, digest)) == ["tokenizer.perceptual_weights"]
    assert outside(settings_of(TYPES["vqgan"]), digest) == outside(settings_of(TYPES["dvae"]), digest) == {}


def test_averaged_weights_are_what_is_saved_and_measured(tmp_path: Path, data: Artifact) -> None:
    plain, averaged = (make(tmp_path / str(ema), data, settings_of(TYPES["vqvae"], ema=ema)) for ema in (None, 0.9))
    one, other = (load_file(made.folder / "tokenizer" / "model.safetensors") for made in (plain, averaged))
    moved = {name for name in one if one[name].is_floating_point() and not torch.equal(one[name], other[name])}
    assert "encoder.head.weight" in moved and torch.equal(
        one["quantizer.codebook.statistics.updates"], other["quantizer.codebook.statistics.updates"]
    )
    tokenizer, real = open_tokenizer(averaged.folder / "tokenizer"), np.stack(list(Dataset(data).values("held_out", "view")))
    errors = np.square(real.astype(float) - tokenizer.decode(tokenizer.encode(real))).reshape(len(real), -1).mean(1)
    figures = json.loads(averaged.content("figures.json"))
    assert figures["view.psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-3)
