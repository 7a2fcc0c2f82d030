"""Every layout against transformers' own classes: their folder read by us, ours read by them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.load import from_pretrained, save_pretrained
from worldloom.world_model.encoders.settings import StemSettings, SwinSettings, VitSettings
from worldloom.world_model.encoders.transformers_layout import kind_of, load_transformers, save_transformers, settings_of, table_of

VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "mlp_ratio": 4,
    "image_size": 12,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
}
SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4], "window_size": 3, "patch_size": 2, "image_size": 12}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", VIT),
    "vit tanh": ("ViT", VIT | {"hidden_act": "gelu_pytorch_tanh"}),
    "deit": ("DeiT", VIT),
    "dinov2": ("Dinov2", VIT),
    "dinov2 swiglu": ("Dinov2", VIT | {"use_swiglu_ffn": True}),
    "dinov2 registers": ("Dinov2WithRegisters", VIT | {"num_register_tokens": 5}),
    "dinov2 narrow": ("Dinov2", VIT | {"mlp_ratio": 2}),
    "dinov2 swiglu narrow": ("Dinov2", VIT | {"use_swiglu_ffn": True, "mlp_ratio": 3}),
    "dinov2 registers wide": ("Dinov2WithRegisters", VIT | {"num_register_tokens": 2, "mlp_ratio": 6, "layer_norm_eps": 0.1}),
    "swin": ("Swin", SWIN),
    "swin narrow": ("Swin", SWIN | {"mlp_ratio": 2.5}),
}


def randomised(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def theirs(case: str) -> Any:
    import transformers

    name, settings = CASES[case]
    config = getattr(transformers, f"{name}Config")(**settings)
    pooler = {"add_pooling_layer": False} if name in ("ViT", "DeiT") else {}
    return randomised(getattr(transformers, f"{name}Model")(config, **pooler), 7)


@pytest.mark.parametrize("case", CASES)
def test_folders_go_both_ways_with_the_same_features(case: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    its = theirs(case)
    its.save_pretrained(tmp_path / "theirs")
    ours, about = load_transformers(tmp_path / "theirs")
    table = table_of(kind_of(about), about)
    assert set(table) == set(ours.state_dict())
    assert sorted(name for place in table.values() for name in place.names) == sorted(load_file(tmp_path / "theirs" / "model.safetensors"))
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    expected = its(x).last_hidden_state
    found = ours(x).tokens if case.startswith("swin") else ours.sequence(x)  # type: ignore[operator]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    save_transformers(tmp_path / "ours", ours, about)
    pooler = {"add_pooling_layer": False} if CASES[case][0] in ("ViT", "DeiT") else {}
    again = AutoModel.from_pretrained(tmp_path / "ours", **pooler).eval()
    torch.testing.assert_close(again(x).last_hidden_state, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["dinov2", "dinov2 registers", "dinov2 swiglu"])
def test_the_mask_token_of_dino_stands_for_the_same_patches(case: str, tmp_path: Path) -> None:
    its = theirs(case)
    its.save_pretrained(tmp_path)
    ours, _ = load_transformers(tmp_path)
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    hidden = torch.rand(2, 9, generator=torch.Generator().manual_seed(4)) < 0.4
    expected = its(x, bool_masked_pos=hidden).last_hidden_state
    prefix = expected.shape[1] - 9
    features = ours(x, hidden)
    torch.testing.assert_close(features.tokens, expected[:, prefix:], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.pooled, expected[:, 0], rtol=0, atol=1e-5)


def test_weights_of_another_model_and_configs_of_none_are_refused(tmp_path: Path) -> None:
    theirs("vit").save_pretrained(tmp_path / "vit")
    config = (tmp_path / "vit" / "config.json").read_text()
    (tmp_path / "vit" / "config.json").write_text(config.replace('"model_type": "vit"', '"model_type": "deit"'))
    with pytest.raises(ValueError, match=r"lack embeddings.distillation_token; they are not of a DeiTModel"):
        load_transformers(tmp_path / "vit")
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is of model_type 'bert'; encoders are read from vit, deit"):
        load_transformers(tmp_path / "vit")
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit", "hidden_act": "relu"}')
    with pytest.raises(ValueError, match="encoders have GELU and biases"):
        load_transformers(tmp_path / "vit")
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "swin", "use_absolute_embeddings": true}')
    with pytest.raises(ValueError, match="asks for absolute embeddings"):
        load_transformers(tmp_path / "vit")
    (tmp_path / "vit" / "config.json").write_text(config.replace('"intermediate_size": 40', '"intermediate_size": 48'))
    with pytest.raises(ValueError, match=r"dense.weight is of shape \(40, 24\), config.json asks for \(48, 24\); they are of two models"):
        load_transformers(tmp_path / "vit")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (VitSettings(relation="rotary", positions="none"), "can hold this encoder's positions, relation"),
        (VitSettings(registers=2), "has no registers and no SwiGLU"),
        (VitSettings(layer_scale=1.0, distillation_token=True), "Dinov2 has no distillation token"),
        (VitSettings(layer_scale=1.0, mlp_width=600), "and MLPs of whole multiples of width"),
        (VitSettings(stem=StemSettings(depths=(1, 1, 1))), "can hold this encoder's stem"),
        (VitSettings(interpolation="bilinear", antialias=True), "can hold this encoder's interpolation, antialias"),
        (SwinSettings(epsilon=1e-6), "always have an epsilon of 1e-05, this encoder's have 1e-06"),
        (SwinSettings(mask_padding=True), "has no mask_padding"),
    ],
)
def test_what_no_layout_can_hold_is_refused(about: VitSettings | SwinSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind_of(about)


@pytest.mark.parametrize(
    "about",
    [
        VitSettings(width=24, depth=1, heads=3, patch=4, grid=(3, 2), relation="relative_bias", registers=2, pooling="attention"),
        VitSettings(width=24, depth=1, heads=3, patch=4, grid=(3, 2), stem=StemSettings(patch=2, width=8, depths=(1, 1), frozen=True)),
        SwinSettings(width=8, depths=(1, 1), heads=(2, 2), window=3, patch=2),
    ],
    ids=["vit", "vit with a stem", "swin"],
)
def test_our_own_folder_gives_the_same_encoder_back(about: VitSettings | SwinSettings, tmp_path: Path) -> None:
    made = randomised(build_encoder(about, torch.Generator().manual_seed(0)), 3)
    save_pretrained(tmp_path, made, about)
    made.requires_grad_(False)
    again, said = from_pretrained(tmp_path)
    x = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(3))
    assert said == about and torch.equal(again(x).pooled, made(x).pooled)
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_folder_that_holds_no_encoder_is_refused(tmp_path: Path) -> None:
    about = VitSettings(width=24, depth=1, heads=3, patch=4, grid=(3, 2))
    save_pretrained(tmp_path, build_encoder(about, torch.Generator()), about)
    config = (tmp_path / "config.json").read_text()
    for before, after, message in (
        ('"kind": "encoder"', '"kind": "image"', "kind 'image', expected 1 and 'encoder'"),
        ('"depth": 1', '"depth": 0', "does not describe an encoder"),
        ('"depth": 1', '"depth": 2', "the weights do not fit config.json at trunk.blocks.1"),
    ):
        (tmp_path / "config.json").write_text(config.replace(before, after))
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_eps": 1e-3}, "asks for an epsilon of 0.001 in some norms only; our Swin has one for all, 1e-05"),
        ({"hidden_act": "gelu_new"}, "asks for 'gelu_new'; our Swin has GELU without approximation"),
    ],
)
def test_a_swin_that_ours_would_read_otherwise_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of({"model_type": "swin", **SWIN, **changes})
