"""Encoders in the layouts of transformers' ViTModel, DeiTModel, Dinov2Model, Dinov2WithRegistersModel and SwinModel, both ways.

A layout is an explicit table, ours -> theirs, one to one: their queries, keys and values stand one above the other in ours. Theirs are the
names in files, those of published checkpoints, which transformers 5 renames as it reads. transformers itself is not needed: a folder is a
config.json and a model.safetensors. Poolers and heads of theirs are left out, and what they do not have
of ours (relations, sines, stems, mean pooling in a ViT) is refused.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.load import fill
from worldloom.world_model.encoders.settings import SwinSettings, VitSettings
from worldloom.world_model.encoders.swin import EPSILON, Swin
from worldloom.world_model.encoders.vit import ViT

GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
ARCHITECTURES = {
    "vit": "ViTModel",
    "deit": "DeiTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "swin": "SwinModel",
}


class Theirs(NamedTuple):
    """Where a tensor of ours is found in their layout."""

    names: tuple[str, ...]  # one above the other
    shape: tuple[int, ...] | None = None  # theirs, where it is another than ours


Table = dict[str, Theirs]


def table_of(kind: str, about: VitSettings | SwinSettings) -> Table:
    """Ours -> theirs, for a `model_type` of transformers."""
    if isinstance(about, SwinSettings):
        return _swin_table(about)
    return _dino_table(about) if kind.startswith("dinov2") else _vit_table(about)


def load_transformers(folder: Path) -> tuple[ViT | Swin, VitSettings | SwinSettings]:
    """The encoder in a folder that transformers wrote, frozen and in evaluation mode; ValueError where ours has no such part."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    theirs = load_file(folder / "model.safetensors")
    about = settings_of(config, mask_token=any(name.endswith("embeddings.mask_token") for name in theirs))
    encoder = build_encoder(about, torch.Generator())
    fill(encoder, ours_from(theirs, config["model_type"], about), str(folder))
    return encoder.eval().requires_grad_(False), about


def save_transformers(folder: Path, encoder: ViT | Swin, about: VitSettings | SwinSettings) -> None:
    """Writes a folder that transformers' AutoModel reads; ValueError for an encoder that no layout of theirs can hold."""
    kind = kind_of(about)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(theirs_from(encoder.state_dict(), kind, about), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(kind, about), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def ours_from(theirs: dict[str, Tensor], kind: str, about: VitSettings | SwinSettings) -> dict[str, Tensor]:
    """Their state dict as ours; what ours has no place for (poolers, heads) is left out. ValueError where something is missing or of
    another shape."""
    inside = {"vit": "vit.", "deit": "deit.", "swin": "swin."}.get(kind, "dinov2." if kind == "dinov2" else "dinov2_with_registers.")
    plain = {name.removeprefix(inside): value for name, value in theirs.items()}
    table = table_of(kind, about)
    missing = [name for place in table.values() for name in place.names if name not in plain]
    if missing:
        raise ValueError(f"the weights lack {', '.join(missing[:5])}; they are not of a {ARCHITECTURES[kind]} as config.json says")
    shapes = {name: value.shape for name, value in build_encoder(about, torch.Generator()).state_dict().items()}
    for ours, place in table.items():
        first, *rest = place.shape or shapes[ours]
        expected = (first // len(place.names), *rest)
        for name in place.names:
            if plain[name].shape != expected:
                raise ValueError(f"{name} is of shape {tuple(plain[name].shape)}, config.json asks for {expected}; they are of two models")
    return {ours: torch.cat([plain[name] for name in place.names]).reshape(shapes[ours]) for ours, place in table.items()}


def theirs_from(ours: dict[str, Tensor], kind: str, about: VitSettings | SwinSettings) -> dict[str, Tensor]:
    """Our state dict as theirs."""
    found = {}
    for name, place in table_of(kind, about).items():
        value = ours[name].detach().float().cpu()
        for part, their_name in zip(value.chunk(len(place.names)), place.names, strict=True):
            found[their_name] = part.reshape(place.shape or part.shape).contiguous()
    return found


def kind_of(about: VitSettings | SwinSettings) -> str:
    """The `model_type` that holds such an encoder; ValueError where there is none."""
    if isinstance(about, SwinSettings):
        if about.mask_padding:
            raise ValueError("transformers' Swin has no mask_padding; only the padding of the original can be saved in its layout")
        if about.epsilon != EPSILON:
            raise ValueError(f"some norms of transformers' Swin always have an epsilon of {EPSILON}, this encoder's have {about.epsilon}")
        return "swin"
    odd = {
        "positions": about.positions != "learned",
        "relation": about.relation != "none",
        "pooling": about.pooling != "class",
        "fitting": about.fitting != "error",
        "grid": about.grid[0] != about.grid[1],
        "stem": about.stem is not None,
        "interpolation": about.interpolation != "bicubic",
        "antialias": about.antialias,
    }
    if any(odd.values()):
        raise ValueError(f"no layout of transformers can hold this encoder's {', '.join(name for name, is_odd in odd.items() if is_odd)}")
    if about.layer_scale is not None:
        if about.distillation_token or _ratio(about) is None:
            raise ValueError("transformers' Dinov2 has no distillation token and MLPs of whole multiples of width; this encoder differs")
        return "dinov2_with_registers" if about.registers else "dinov2"
    if about.registers or about.swiglu:
        raise ValueError("transformers' ViT has no registers and no SwiGLU; those layouts need layer_scale, as in DINOv2")
    return "deit" if about.distillation_token else "vit"


def settings_of(config: dict[str, Any], mask_token: bool = False) -> VitSettings | SwinSettings:
    """Our settings from their config.json, which does not tell of a mask token; ValueError where ours has no such part."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"config.json is of model_type {kind!r}; encoders are read from {', '.join(ARCHITECTURES)}")
    act = config.get("hidden_act", "gelu")
    if act not in GELUS or config.get("qkv_bias", True) is not True:
        raise ValueError(f"encoders have GELU and biases on queries, keys and values; config.json says {act!r}, {config.get('qkv_bias')!r}")
    if kind == "swin":
        if config.get("use_absolute_embeddings"):
            raise ValueError("config.json asks for absolute embeddings, which our Swin does not have")
        epsilon = config.get("layer_norm_eps", EPSILON)
        if epsilon != EPSILON:  # theirs is not that of the norms of patches and merging, which always have this one
            raise ValueError(f"config.json asks for an epsilon of {epsilon} in some norms only; our Swin has one for all, {EPSILON}")
        if GELUS[act] != "none":
            raise ValueError(f"config.json asks for {act!r}; our Swin has GELU without approximation")
        return SwinSettings(
            channels=config.get("num_channels", 3),
            patch=config.get("patch_size", 4),
            width=config["embed_dim"],
            depths=tuple(config["depths"]),
            heads=tuple(config["num_heads"]),
            window=config.get("window_size", 7),
            mlp_ratio=float(config.get("mlp_ratio", 4.0)),
            drop_path=config.get("drop_path_rate", 0.1),
            mask_token=mask_token,
        )
    dino, swiglu = kind.startswith("dinov2"), bool(config.get("use_swiglu_ffn", False))
    width, patch = config["hidden_size"], config.get("patch_size", 14 if dino else 16)
    side = config.get("image_size", 224) // patch
    return VitSettings(
        channels=config.get("num_channels", 3),
        patch=patch,
        width=width,
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_width=_mlp_width(width, config.get("mlp_ratio", 4), swiglu) if dino else config["intermediate_size"],
        swiglu=swiglu,
        gelu="tanh" if GELUS[act] == "tanh" else "none",
        grid=(side, side),
        distillation_token=kind == "deit",
        registers=config.get("num_register_tokens", 4) if kind == "dinov2_with_registers" else 0,
        layer_scale=config.get("layerscale_value", 1.0) if dino else None,
        drop_path=config.get("drop_path_rate", 0.0) if dino else 0.0,
        epsilon=config.get("layer_norm_eps", 1e-6 if dino else 1e-12),
        mask_token=mask_token,
    )


def config_of(kind: str, about: VitSettings | SwinSettings) -> dict[str, Any]:
    """Their config.json."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "num_channels": about.channels,
        "patch_size": about.patch,
        "use_mask_token": about.mask_token,
        "layer_norm_eps": about.epsilon,
        "drop_path_rate": about.drop_path,
    }
    if isinstance(about, SwinSettings):
        return config | {
            "embed_dim": about.width,
            "depths": list(about.depths),
            "num_heads": list(about.heads),
            "window_size": about.window,
            "mlp_ratio": about.mlp_ratio,
            "hidden_act": "gelu",
            "image_size": about.patch * about.window << (len(about.depths) - 1),
        }
    return config | {
        "hidden_size": about.width,
        "num_hidden_layers": about.depth,
        "num_attention_heads": about.heads,
        "intermediate_size": about.mlp_width or 4 * about.width,
        "mlp_ratio": _ratio(about) or 4,  # of Dinov2, which does not read the line above
        "hidden_act": "gelu" if about.gelu == "none" else "gelu_pytorch_tanh",
        "image_size": about.grid[0] * about.patch,
        "use_swiglu_ffn": about.swiglu,
        "layerscale_value": about.layer_scale if about.layer_scale is not None else 1.0,
        "num_register_tokens": about.registers,
    }


def _mlp_width(width: int, ratio: float, swiglu: bool) -> int:
    """Of Dinov2's hidden layers: two thirds in steps of 8 where they are gated."""
    hidden = int(width * ratio)
    return (hidden * 2 // 3 + 7) // 8 * 8 if swiglu else hidden


def _ratio(about: VitSettings) -> int | None:
    """The whole ratio that gives Dinov2 the MLPs of `about`; None where there is none."""
    asked = about.mlp_width or _mlp_width(about.width, 4, about.swiglu)
    ratios = range(1, 2 + 3 * asked // (2 * about.width))
    return next((ratio for ratio in ratios if _mlp_width(about.width, ratio, about.swiglu) == asked), None)


def _vit_table(about: VitSettings) -> Table:
    table = _outside(about) | _both("trunk.norm", "layernorm")
    for layer in range(about.depth):
        ours, theirs = f"trunk.blocks.{layer}", f"encoder.layer.{layer}"
        table |= _attention(ours, theirs, "attention") | _block(ours, theirs)
    return table


def _dino_table(about: VitSettings) -> Table:
    table = _outside(about, mask_token=(1, about.width)) | _both("trunk.norm", "layernorm")
    mlp = ("weights_in", "weights_out") if about.swiglu else ("fc1", "fc2")
    for layer in range(about.depth):
        ours, theirs = f"trunk.blocks.{layer}", f"encoder.layer.{layer}"
        table |= _both(f"{ours}.attention_norm", f"{theirs}.norm1") | _both(f"{ours}.mlp_norm", f"{theirs}.norm2")
        table |= _attention(ours, theirs, "attention")
        table |= _both(f"{ours}.up", f"{theirs}.mlp.{mlp[0]}") | _both(f"{ours}.down", f"{theirs}.mlp.{mlp[1]}")
        table[f"{ours}.attention_scale"] = Theirs((f"{theirs}.layer_scale1.lambda1",))
        table[f"{ours}.mlp_scale"] = Theirs((f"{theirs}.layer_scale2.lambda1",))
    return table


def _swin_table(about: SwinSettings) -> Table:
    table = _both("patches", "embeddings.patch_embeddings.projection") | _both("patch_norm", "embeddings.norm") | _both("norm", "layernorm")
    if about.mask_token:
        table["mask_token"] = Theirs(("embeddings.mask_token",))
    for stage, depth in enumerate(about.depths):
        for block in range(depth):
            ours, theirs = f"stages.{stage}.blocks.{block}", f"encoder.layers.{stage}.blocks.{block}"
            table |= _attention(ours, theirs, "self") | _block(ours, theirs)
            table[f"{ours}.offsets"] = Theirs((f"{theirs}.attention.self.relative_position_bias_table",))
        if stage + 1 < len(about.depths):
            table |= _both(f"stages.{stage}.merging.norm", f"encoder.layers.{stage}.downsample.norm")
            table[f"stages.{stage}.merging.reduction.weight"] = Theirs((f"encoder.layers.{stage}.downsample.reduction.weight",))
    return table


def _outside(about: VitSettings, mask_token: tuple[int, ...] | None = None) -> Table:
    places = about.grid[0] * about.grid[1] + 1 + int(about.distillation_token)
    table = _both("patches", "embeddings.patch_embeddings.projection")
    table["class_token"] = Theirs(("embeddings.cls_token",))
    table["positions.table"] = Theirs(("embeddings.position_embeddings",), (1, places, about.width))
    if about.distillation_token:
        table["distillation_token"] = Theirs(("embeddings.distillation_token",))
    if about.registers:
        table["registers"] = Theirs(("embeddings.register_tokens",))
    if about.mask_token:
        table["mask_token"] = Theirs(("embeddings.mask_token",), mask_token)
    return table


def _block(ours: str, theirs: str) -> Table:
    return (
        _both(f"{ours}.attention_norm", f"{theirs}.layernorm_before")
        | _both(f"{ours}.mlp_norm", f"{theirs}.layernorm_after")
        | _both(f"{ours}.up", f"{theirs}.intermediate.dense")
        | _both(f"{ours}.down", f"{theirs}.output.dense")
    )


def _attention(ours: str, theirs: str, inner: str) -> Table:
    table = _both(f"{ours}.out", f"{theirs}.attention.output.dense")
    for part in ("weight", "bias"):
        names = tuple(f"{theirs}.attention.{inner}.{name}.{part}" for name in ("query", "key", "value"))
        table[f"{ours}.qkv.{part}"] = Theirs(names)
    return table


def _both(ours: str, theirs: str) -> Table:
    return {f"{ours}.{part}": Theirs((f"{theirs}.{part}",)) for part in ("weight", "bias")}
