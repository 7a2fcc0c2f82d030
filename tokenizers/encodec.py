"""Public EnCodec checkpoints, in the key layout of transformers, as tokenizers of sounds; the config.json beside them says what they are.

Weights are read as plain tensors only, and weight norm is folded: w = g v / |v|.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldloom.tokenizers.audio import AudioTokenizer
from worldloom.tokenizers.encodec_settings import Encodec

CONFIG = "config.json"
ADVICE = "import_tokenizer reads EnCodecs as transformers saves them: model.safetensors with config.json beside it"
IGNORED = (".codebook.inited", ".codebook.cluster_size", ".codebook.embed_avg")  # what its training kept of its codebooks
NORMED = (  # names of the length g and the direction v of a normed weight, in older files and in newer ones
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
# What this network is, where config.json could say otherwise: key -> (value there, what to do instead).
NEEDED: dict[str, tuple[Any, str]] = {
    "model_type": ("encodec", ADVICE),
    "normalize": (False, "codecs that scale each sound (48 kHz) are not read; take the one for 24 kHz"),
    "chunk_length_s": (None, "codecs that cut sounds into chunks (48 kHz) are not read; take the one for 24 kHz"),
    "norm_type": ("weight_norm", "codecs normed over time (48 kHz) are not read; take the one for 24 kHz"),
    "use_causal_conv": (True, "codecs that look ahead (48 kHz) are not read; take the one for 24 kHz"),
    "trim_right_ratio": (1.0, "only codecs that trim at the right alone are read"),
}
FIELDS = {  # config.json's key -> our setting, where both say the same
    "codebook_size": "codebook_size",
    "hidden_size": "code_width",
    "num_filters": "width",
    "num_residual_layers": "blocks",
    "kernel_size": "kernel",
    "last_kernel_size": "last_kernel",
    "residual_kernel_size": "residual_kernel",
    "dilation_growth_rate": "dilation_growth",
    "compress": "compress",
    "use_conv_shortcut": "shortcut",
    "num_lstm_layers": "lstm_layers",
    "pad_mode": "padding",
}


class Architecture(NamedTuple):
    """What a config.json says."""

    settings: Encodec
    channels: int
    sample_rate: int  # Hz


def read_encodec(path: Path, seconds: float, levels: int | None = None) -> AudioTokenizer:
    """The checkpoint in `path` as a tokenizer of sounds of `seconds`, by its first `levels` codebooks (None: all).

    ValueError where it is none or of a kind that is not read, FileNotFoundError.
    """
    weights = read_weights(path)
    try:
        about = architecture(json.loads((path.parent / CONFIG).read_text(encoding="utf-8")), weights, levels)
        samples = round(seconds * about.sample_rate)
        if not samples:
            raise ValueError(
                f"seconds ({seconds:g}) is less than one sample of this codec, which hears {about.sample_rate} a second; set it higher"
            )
        form = {"channels": about.channels, "samples": samples, "sample_rate": about.sample_rate}
        tokenizer = AudioTokenizer.build(about.settings, form, seed=0)
        put_weights(tokenizer, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    tokenizer.weights.eval().requires_grad_(False)
    return tokenizer


def read_weights(path: Path) -> dict[str, Tensor]:
    """Folded tensors by key; ValueError for a file of another form, FileNotFoundError where it or its config.json is not there."""
    for file in (path, path.parent / CONFIG):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}; {ADVICE}")
    try:
        return folded(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); {ADVICE}") from None


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what only training needs, each normed weight made plain."""
    plain = {key: value.float() for key, value in weights.items() if not key.endswith(IGNORED)}
    for length, direction in NORMED:
        for key in [key for key in plain if key.endswith(f".{length}")]:
            stem = key.removesuffix(length)
            if f"{stem}{direction}" not in plain:
                raise ValueError(f"the checkpoint has {key} and no {stem}{direction}; {ADVICE}")
            g, v = plain.pop(key), plain.pop(f"{stem}{direction}")
            plain[f"{stem}weight"] = v * (g / torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True))
    return plain


def architecture(config: Any, weights: Mapping[str, Tensor], levels: int | None) -> Architecture:
    """What config.json says, a key left out standing for transformers' default; ValueError for codecs that are not read."""
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} holds no object of names and values; {ADVICE}")
    for key, (needed, advice) in NEEDED.items():
        found = config.get(key, None if key == "model_type" else needed)
        if found != needed:
            raise ValueError(f"{CONFIG} has {key} {found!r}, and {needed!r} is needed: {advice}")
    held = sum(key.endswith(".codebook.embed") for key in weights)
    if levels is not None and levels > held:
        raise ValueError(f"levels ({levels}) must not be above the {held} codebooks that the checkpoint has")
    same = {ours: config[theirs] for theirs, ours in FIELDS.items() if theirs in config}
    ratios = config.get("upsampling_ratios")
    strides = {} if ratios is None else {"strides": ratios[::-1] if isinstance(ratios, list) else ratios}
    settings = Encodec.model_validate_json(json.dumps({**same, **strides, "levels": levels or held}))
    heard = {"audio_channels": 1, "sampling_rate": 24_000, **config}
    for key in ("audio_channels", "sampling_rate"):
        if type(heard[key]) is not int or heard[key] < 1:
            raise ValueError(f"{CONFIG} has {key} {heard[key]!r}, and a positive whole number is needed; {ADVICE}")
    return Architecture(settings, heard["audio_channels"], heard["sampling_rate"])


def put_weights(tokenizer: AudioTokenizer, weights: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint into the network; ValueError unless every key has its place and shape, codebooks behind the last level apart."""
    assert isinstance(tokenizer.settings, Encodec)
    table, own = key_table(tokenizer.settings), tokenizer.autoencoder.state_dict()
    unused = {key for key in weights if key.endswith(".codebook.embed")} - set(table.values())
    missing, extra = sorted(set(table.values()) - set(weights)), sorted(set(weights) - set(table.values()) - unused)
    odd = sorted(theirs for ours, theirs in table.items() if theirs in weights and weights[theirs].shape != own[ours].shape)
    for what, keys in (("lacks", missing), ("has what this network has not:", extra), ("has other shapes at", odd)):
        if keys:
            raise ValueError(f"the checkpoint {what} {', '.join(keys[:4])}{' ...' if len(keys) > 4 else ''}; {ADVICE}")
    tokenizer.autoencoder.load_state_dict({**own, **{ours: weights[theirs] for ours, theirs in table.items()}})


def key_table(settings: Encodec) -> dict[str, str]:
    """Our parameter -> theirs with norms folded, for every parameter there is."""
    books = {f"quantizer.codebooks.{level}.weight_KD": f"quantizer.layers.{level}.codebook.embed" for level in range(settings.levels)}
    return {**books, **_encoder(settings), **_decoder(settings)}


def _encoder(settings: Encodec) -> dict[str, str]:
    """Theirs is one list in which activations count: a stage is its blocks, an ELU and a convolution."""
    table, place = _both("encoder.stem.conv", "encoder.layers.0.conv"), 1
    for stage in range(len(settings.strides)):
        for block in range(settings.blocks):
            table |= _residual(settings, f"encoder.stages.{stage}.blocks.{block}", f"encoder.layers.{place}")
            place += 1
        table |= _both(f"encoder.stages.{stage}.change.conv", f"encoder.layers.{place + 1}.conv")
        place += 2
    table |= _lstm(settings, "encoder.lstm", f"encoder.layers.{place}.lstm")
    return table | _both("encoder.head.conv", f"encoder.layers.{place + 2}.conv")


def _decoder(settings: Encodec) -> dict[str, str]:
    """A stage is an ELU, a convolution and its blocks."""
    table = _both("decoder.stem.conv", "decoder.layers.0.conv") | _lstm(settings, "decoder.lstm", "decoder.layers.1.lstm")
    place = 2
    for stage in range(len(settings.strides)):
        table |= _both(f"decoder.stages.{stage}.change.conv", f"decoder.layers.{place + 1}.conv")
        place += 2
        for block in range(settings.blocks):
            table |= _residual(settings, f"decoder.stages.{stage}.blocks.{block}", f"decoder.layers.{place}")
            place += 1
    return table | _both("decoder.head.conv", f"decoder.layers.{place + 1}.conv")


def _residual(settings: Encodec, ours: str, theirs: str) -> dict[str, str]:
    shortcut = _both(f"{ours}.shortcut.conv", f"{theirs}.shortcut.conv") if settings.shortcut else {}
    return _both(f"{ours}.first.conv", f"{theirs}.block.1.conv") | _both(f"{ours}.second.conv", f"{theirs}.block.3.conv") | shortcut


def _lstm(settings: Encodec, ours: str, theirs: str) -> dict[str, str]:
    parts = [f"{what}_{side}_l{layer}" for layer in range(settings.lstm_layers) for what in ("weight", "bias") for side in ("ih", "hh")]
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in parts}


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
