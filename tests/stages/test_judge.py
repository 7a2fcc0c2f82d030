"""A trained encoder as what a tokenizer's pictures are compared by, and as the encoder that a ViT-VQGAN begins with."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from worldloom.stages import train_tokenizer
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.eye import Eye, open_eye, open_eye_folder
from worldloom.stages.judge import EyeDepths, judge_of
from worldloom.stages.kind import StageKind
from worldloom.stages.open_tokenizer import NETWORKS, open_tokenizer
from worldloom.stages.settings import DatasetRef, StageSettings
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.vit_networks import VitEncoder, begin_with
from worldloom.stages.worker import Worker
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import VqGan
from worldloom.tokenizers.perceptual import PerceptualLoss
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.load import save_pretrained
from worldloom.world_model.encoders.settings import ConvSettings, StemSettings, SwinSettings, VitSettings

VIT = VitSettings(patch=4, width=12, depth=5, heads=2, grid=(4, 4))
SWIN = SwinSettings(patch=2, width=8, depths=(1, 2), heads=(1, 2), window=3)
CONV = ConvSettings(patch=2, width=8, depths=(1, 1))
BACKBONE = {"type": "vit", "width": 12, "depth": 5, "heads": 2, "decoder_depth": 1, "class_token": True}
VQGAN = {"type": "vqgan", "codebook_size": 16, "downsample": 4, "discriminator_width": 4}


class Untrained(StageSettings):
    run: Literal["untrained"]
    data: DatasetRef
    stream: str


@pytest.fixture
def data(tiny_root: Path, tmp_path: Path) -> Artifact:
    copied = shutil.copytree(tiny_root / "artifacts" / "data", tmp_path / "artifacts" / "data")
    return Artifact.open(copied / "0123456789abcdef")


def encoder(root: Path, data: Artifact, about: Any = VIT) -> Artifact:
    def write(settings: Any, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
        made = build_encoder(about, torch.Generator().manual_seed(3))
        with torch.no_grad():  # away from zeros, so that nothing is equal by chance
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
        save_pretrained(out / "encoder", made, about)

    kind = StageKind("untrained", Untrained, write, lambda *_: {}, "encoder", 1, "gang")
    settings = Untrained(run="untrained", data="data", stream="view")
    return execute(kind, "eye", settings, {"data": data}, root / "artifacts" / "eye" / "f0", Worker())


def settings_of(tokenizer: Mapping[str, Any], **changes: Any) -> TrainTokenizer:
    base = {"run": "train_tokenizer", "data": "data", "stream": "view", "steps": 3, "warmup": 1, "batch_size": 4, "log_every": 1}
    return TrainTokenizer.model_validate({**base, "tokenizer": dict(tokenizer), "precision": "fp32", **changes})


@pytest.mark.parametrize(("about", "depths"), [(VIT, [(12, 4, 4)] * 3), (SWIN, [(16, 4, 4), (16, 4, 4)]), (CONV, [(8, 8, 8), (16, 4, 4)])])
def test_an_encoder_is_a_distance_between_pictures(tmp_path: Path, data: Artifact, about: Any, depths: list[tuple[int, ...]]) -> None:
    judge = judge_of(settings_of(VQGAN, perceptual="eye"), {"perceptual": encoder(tmp_path, data, about)})
    x, y = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    assert judge.name == "eye" and [tuple(stage.shape[1:]) for stage in judge.features(x).stages] == depths
    assert float(judge(x, x)) == 0 and float(judge(x, y)) == pytest.approx(float(judge(y, x))) and float(judge(x, y)) > 0
    x.requires_grad_()
    judge(x, y).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0 and all(each.grad is None for each in judge.parameters())
    assert torch.equal(judge.pooled(y), open_eye(Artifact.open(tmp_path / "artifacts" / "eye" / "f0"))(y).pooled)


def test_its_distance_is_that_of_unit_features_by_hand() -> None:
    eye = Eye(build_encoder(VIT, torch.Generator().manual_seed(0)).eval(), 16, "eye")
    judge = PerceptualLoss(EyeDepths(eye), None, "eye")
    x, y = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    total = 0.0
    for at in (1, 3, 4):  # behind blocks 2, 4 and 5 of five
        a, b = (list(eye.encoder.hidden_states(z))[1:-1][at][:, 1:].detach().double().numpy() for z in (x, y))  # type: ignore[union-attr]
        a, b = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (a, b))
        total += np.square(a - b).sum(-1).mean() / 3
    assert float(judge(x, y)) == pytest.approx(total, rel=1e-5)


def test_pictures_of_another_size_are_brought_to_the_encoders(tmp_path: Path, data: Artifact) -> None:
    eye = open_eye_folder(encoder(tmp_path, data).folder)
    assert eye.side == 16
    large = np.random.default_rng(0).integers(0, 256, (2, 40, 24, 3), dtype=np.uint8)
    assert eye.see(large, "tokens").shape == (2, 16, 12) and eye.form("pooled") == (12,)
    flat = np.full((1, 33, 20, 3), 77, np.uint8)
    torch.testing.assert_close(eye.see(flat, "pooled"), eye.see(flat[:, :16, :16], "pooled"), atol=1e-5, rtol=0)


def test_a_tokenizer_learns_by_an_encoder_and_is_measured_by_it(tmp_path: Path, data: Artifact) -> None:
    eye = encoder(tmp_path, data)
    settings = settings_of({**VQGAN, "width": 4}, perceptual="eye")
    made = execute(train_tokenizer.STAGE, "codes", settings, {"data": data, "perceptual": eye}, tmp_path / "codes" / "f0", Worker())
    figures = json.loads(made.content("figures.json"))
    assert {"view.eye", "view.frechet_eye"} <= set(figures) and "view.random_vgg" not in figures
    lines = [json.loads(line) for line in (made.folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss/eye"] > 0 for line in lines) and len(lines) == 3


def test_a_vit_begins_with_the_tokens_of_a_trained_encoder(tmp_path: Path, data: Artifact) -> None:
    eye = encoder(tmp_path, data)
    about = VqGan.model_validate({**VQGAN, "backbone": BACKBONE})
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokenizer = ImageTokenizer.build(about, {"height": 16, "width": 16}, 1, NETWORKS)
    begin_with(tokenizer, eye)
    vit = tokenizer.autoencoder.encoder
    assert isinstance(vit, VitEncoder)
    with torch.no_grad():
        torch.testing.assert_close(vit.vit(x).tokens, open_eye(eye)(x).tokens, atol=1e-5, rtol=0)
    larger = ImageTokenizer.build(about, {"height": 24, "width": 16}, 1, NETWORKS)
    begin_with(larger, eye)
    tokenizer.save_pretrained(tmp_path / "saved")
    some = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(open_tokenizer(tmp_path / "saved").encode(some), tokenizer.encode(some))


def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path, data: Artifact) -> None:
    tokenizer = ImageTokenizer.build(VqGan.model_validate({**VQGAN, "backbone": BACKBONE}), {"height": 16, "width": 16}, 1, NETWORKS)
    other = VIT.model_copy(update={"depth": 4, "registers": 2, "stem": StemSettings(width=8, depths=(1,))})
    with pytest.raises(
        ValueError,
        match=r"eye does not fit tokenizer\.backbone: depth 4 against 5; stem patch=4 .* has not; registers 2, which a tokenizer has not",
    ):
        begin_with(tokenizer, encoder(tmp_path / "one", data, other))
    with pytest.raises(ValueError, match="eye is a swin, and the backbone a vit"):
        begin_with(tokenizer, encoder(tmp_path / "two", data, SWIN))


def test_settings_without_a_use_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"perceptual \(eye\) compares pictures, and codec is for sounds"):
        settings_of({"type": "codec"}, perceptual="eye")
    with pytest.raises(ValidationError, match=r"perceptual \(eye\) and tokenizer\.perceptual_weights name two networks"):
        settings_of({**VQGAN, "perceptual_weights": "vgg"}, perceptual="eye")
    with pytest.raises(ValidationError, match=r"encoder \(eye\) begins a vit backbone, and this tokenizer has none"):
        settings_of(VQGAN, encoder="eye")
