"""What is joined to an encoder comes back as it went, beside the encoder and without its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from worldloom.world_model.encoders.build import build_coca, build_encoder
from worldloom.world_model.encoders.classifier import Classifier
from worldloom.world_model.encoders.deit import DeiT, combine
from worldloom.world_model.encoders.joined import (
    Namer,
    Redrawer,
    load_coca,
    load_namer,
    load_redrawer,
    save_coca,
    save_namer,
    save_redrawer,
)
from worldloom.world_model.encoders.load import save_pretrained
from worldloom.world_model.encoders.settings import ConvSettings, SwinSettings, TextSideSettings, VitSettings
from worldloom.world_model.encoders.simmim import SimMIM

VIT = VitSettings(width=8, depth=1, heads=2, patch=2, grid=(2, 3), distillation_token=True)
PIXELS = torch.randn((2, 3, 4, 6), generator=torch.Generator().manual_seed(1))


def stirred(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.2, generator=generator)
    return module.eval()


def test_a_deit_names_the_same_classes_when_it_comes_back(tmp_path: Path) -> None:
    model = DeiT(build_encoder(VIT, torch.Generator()), 3)
    stirred(model)
    save_pretrained(tmp_path / "encoder", model.encoder, VIT)
    save_namer(tmp_path, Namer(model, ("cat", "dog", "emu"), "softmaxes"))
    found = load_namer(tmp_path)
    assert found.classes == ("cat", "dog", "emu") and not found.model.training
    assert torch.equal(found.logits(PIXELS), combine(model(PIXELS), "softmaxes"))
    assert sorted(load_file(tmp_path / "classifier" / "model.safetensors")) == [
        f"{head}.{part}" for head in ("distillation_head", "head") for part in ("bias", "weight")
    ]


def test_a_classifier_on_convolutions_comes_back(tmp_path: Path) -> None:
    about = ConvSettings(width=8, depths=(1, 1))
    model = Classifier(build_encoder(about, torch.Generator()), 2)
    stirred(model)
    save_pretrained(tmp_path / "encoder", model.encoder, about)  # type: ignore[arg-type]
    save_namer(tmp_path, Namer(model, ("cat", "dog"), "sum"))
    assert torch.equal(load_namer(tmp_path).logits(PIXELS), model(PIXELS))


def test_a_coca_reads_and_writes_the_same_when_it_comes_back(tmp_path: Path) -> None:
    about = TextSideSettings(width=12, depth=2, heads=3, length=5, queries=4)
    encoder = build_encoder(VIT, torch.Generator())
    model = build_coca(encoder, about, 7, torch.Generator())
    stirred(model)
    save_pretrained(tmp_path / "encoder", encoder, VIT)
    save_coca(tmp_path, model, about)
    found, of_file = load_coca(tmp_path)
    assert of_file == about
    ids = torch.tensor([[1, 5, 2], [1, 2, 3]])
    for mine, its in zip(model(PIXELS, ids, ids != 3), found(PIXELS, ids, ids != 3), strict=True):
        assert torch.equal(mine, its)
    with pytest.raises(ValueError, match="this encoder learnt to name no classes; give one of objective supervised, distill or deit"):
        load_namer(tmp_path)


def test_what_draws_hidden_patches_draws_the_same_when_it_comes_back(tmp_path: Path) -> None:
    about = SwinSettings(patch=2, width=8, depths=(1,), heads=(2,), window=2, mask_token=True)
    model = SimMIM(build_encoder(about, torch.Generator()))
    stirred(model).requires_grad_(False)
    save_pretrained(tmp_path / "encoder", model.encoder, about)
    save_redrawer(tmp_path, Redrawer(model, 1, 0.5))
    found = load_redrawer(tmp_path)
    hidden = torch.tensor([[True, False, True, False, False, True]] * 2)
    assert torch.equal(found.model(PIXELS, hidden).pixels, model(PIXELS, hidden).pixels) and found[1:] == (1, 0.5)
    assert sorted(load_file(tmp_path / "redraw" / "model.safetensors")) == ["head.bias", "head.weight"]


def test_what_is_missing_or_of_another_form_is_refused(tmp_path: Path) -> None:
    save_pretrained(tmp_path / "encoder", build_encoder(VIT, torch.Generator()), VIT)
    with pytest.raises(ValueError, match="this encoder never saw a text; give one of objective coca"):
        load_coca(tmp_path)
    with pytest.raises(ValueError, match="learnt to draw nothing; give one of objective simmim"):
        load_redrawer(tmp_path)
    (tmp_path / "coca").mkdir()
    (tmp_path / "coca" / "config.json").write_text('{"format": 2, "kind": "coca"}')
    with pytest.raises(ValueError, match="has format 2 and kind 'coca', expected 1 and 'coca'"):
        load_coca(tmp_path)
    (tmp_path / "coca" / "config.json").write_text('{"format": 1, "kind": "coca", "text": {"heads": 5}, "vocabulary": 7}')
    with pytest.raises(ValueError, match="does not describe a text side"):
        load_coca(tmp_path)
