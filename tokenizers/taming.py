"""Public VQ-GAN checkpoints in the key layout of taming-transformers, as an image tokenizer; the architecture follows from the shapes.

Read from .safetensors, or from .ckpt, .pt and .pth by torch's loader of plain tensors alone: a checkpoint never runs code here.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.resampling import Resampling
from worldloom.tokenizers.taming_settings import Taming

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")
IGNORED = ("loss.", "model_ema.")  # the discriminator and perceptual network of its training, a second copy of the weights
ADVICE = "import_tokenizer reads VQ-GANs in the key layout of taming-transformers"


def read_taming(path: Path, height: int, width: int, precision: str = "fp32", resample: Resampling = "lanczos") -> ImageTokenizer:
    """The checkpoint in `path` as a tokenizer of pictures [height, width, 3]; ValueError where it is none, FileNotFoundError.

    No checkpoint says how the pictures that it learnt from were brought to their size, so `resample` does.
    """
    weights = read_weights(path)
    try:
        settings = architecture(weights).model_copy(update={"precision": precision})
        autoencoder = build_autoencoder(settings, seed=0)
        put_weights(autoencoder, settings, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    autoencoder.eval().requires_grad_(False)
    return ImageTokenizer(autoencoder, settings, height, width, resample)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by key, those of the training's losses left out; ValueError for a file of another form."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} does not end in {', '.join(SUFFIXES)}; a checkpoint is one such file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give the path of a checkpoint")
    try:
        held: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as plain tensors ({first}); it is damaged, or holds Python objects, which are never loaded: "
            f"save its state_dict alone, as .safetensors"
        ) from None
    held = held.get("state_dict", held) if isinstance(held, Mapping) else None
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{path} holds no state_dict of tensors; {ADVICE}")
    return {key: value for key, value in held.items() if not key.startswith(IGNORED)}


def architecture(weights: Mapping[str, Tensor]) -> Taming:
    """What the keys and shapes say; ValueError where they are not those of such a network."""
    stem, head = _take(weights, "encoder.conv_in.weight", 4), _take(weights, "encoder.conv_out.weight", 4)
    codes = _take(weights, "quantize.embedding.weight", 2)
    if stem.shape[1] != 3:
        raise ValueError(f"its encoder reads {stem.shape[1]} channels; only pictures of 3 can be encoded")
    levels = _count(weights, r"encoder\.down\.(\d+)\.block\.0\.")
    blocks = _count(weights, r"encoder\.down\.0\.block\.(\d+)\.")
    width = stem.shape[0]
    widths = [_take(weights, f"encoder.down.{level}.block.0.conv2.weight", 4).shape[0] for level in range(levels)]
    if not levels or not blocks or any(each % width for each in widths):
        raise ValueError(f"its resolutions are {', '.join(map(str, widths)) or 'none'} channels wide, not multiples of {width}; {ADVICE}")
    return Taming(
        codebook_size=codes.shape[0],
        code_width=codes.shape[1],
        features=head.shape[0],
        width=width,
        multipliers=tuple(each // width for each in widths),
        blocks=blocks,
        attention=tuple(f"encoder.down.{level}.attn.0.q.weight" in weights for level in range(levels)),
    )


def put_weights(autoencoder: DiscreteAutoencoder, settings: Taming, weights: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint into the network that `architecture` found; ValueError unless every key has its place and shape."""
    table = key_table(settings)
    own = autoencoder.state_dict()
    missing, extra = sorted(set(table.values()) - set(weights)), sorted(set(weights) - set(table.values()))
    odd = sorted(theirs for ours, theirs in table.items() if theirs in weights and weights[theirs].shape != own[ours].shape)
    for what, keys in (("lacks", missing), ("has what this network has not:", extra), ("has other shapes at", odd)):
        if keys:
            raise ValueError(f"the checkpoint {what} {', '.join(keys[:4])}{' ...' if len(keys) > 4 else ''}; {ADVICE}")
    autoencoder.load_state_dict({**own, **{ours: weights[theirs].float() for ours, theirs in table.items()}})


def key_table(settings: Taming) -> dict[str, str]:
    """Our parameter -> theirs, for every parameter there is."""
    table = {
        "quantizer.codebook.weight_KD": "quantize.embedding.weight",
        **_both("encoder.stem", "encoder.conv_in"),
        **_both("encoder.norm", "encoder.norm_out"),
        **_both("encoder.head", "encoder.conv_out"),
        **_both("encoder.to_code", "quant_conv"),
        **_both("decoder.from_code", "post_quant_conv"),
        **_both("decoder.stem", "decoder.conv_in"),
        **_both("decoder.norm", "decoder.norm_out"),
        **_both("decoder.head", "decoder.conv_out"),
    }
    last = len(settings.multipliers) - 1
    widths = [settings.width * each for each in settings.multipliers]
    for side, top in (("encoder", widths[-1]), ("decoder", widths[-1])):
        table |= _residual(f"{side}.middle.first", f"{side}.mid.block_1", top, top)
        table |= _attention(f"{side}.middle.attention", f"{side}.mid.attn_1")
        table |= _residual(f"{side}.middle.second", f"{side}.mid.block_2", top, top)
    before = settings.width
    for level, width in enumerate(widths):
        ours, theirs = f"encoder.levels.{level}", f"encoder.down.{level}"
        table |= _level(ours, theirs, before, width, settings.blocks, settings.attention[level])
        if level < last:
            table |= _both(f"{ours}.change.conv", f"{theirs}.downsample.conv")
        before = width
    before = widths[-1]
    for level in reversed(range(last + 1)):
        ours, theirs = f"decoder.levels.{last - level}", f"decoder.up.{level}"
        table |= _level(ours, theirs, before, widths[level], settings.blocks + 1, settings.attention[level])
        if level:
            table |= _both(f"{ours}.change.conv", f"{theirs}.upsample.conv")
        before = widths[level]
    return table


def _level(ours: str, theirs: str, before: int, width: int, blocks: int, attends: bool) -> dict[str, str]:
    table: dict[str, str] = {}
    for block in range(blocks):
        table |= _residual(f"{ours}.blocks.{block}", f"{theirs}.block.{block}", width if block else before, width)
        if attends:
            table |= _attention(f"{ours}.attention.{block}", f"{theirs}.attn.{block}")
    return table


def _residual(ours: str, theirs: str, before: int, width: int) -> dict[str, str]:
    names = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2"} | (
        {} if before == width else {"shortcut": "nin_shortcut"}
    )
    return {key: value for mine, other in names.items() for key, value in _both(f"{ours}.{mine}", f"{theirs}.{other}").items()}


def _attention(ours: str, theirs: str) -> dict[str, str]:
    names = {"norm": "norm", "q": "q", "k": "k", "v": "v", "mix": "proj_out"}
    return {key: value for mine, other in names.items() for key, value in _both(f"{ours}.{mine}", f"{theirs}.{other}").items()}


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def _take(weights: Mapping[str, Tensor], key: str, axes: int) -> Tensor:
    if key not in weights or weights[key].ndim != axes:
        raise ValueError(f"the checkpoint has no {key} of {axes} axes; {ADVICE}")
    return weights[key]


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many there are of what the pattern numbers."""
    return len({found[1] for key in weights if (found := re.match(pattern, key))})
