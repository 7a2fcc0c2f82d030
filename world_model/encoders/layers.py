"""How deep in its encoder a parameter lies, and learning rates that fall with it (layer-wise decay, as in BEiT, arXiv:2106.08254; SimMIM,
arXiv:2111.09886, fine-tunes so, and DINOv2, arXiv:2304.07193, trains so).

Layer 0 are patches, positions and tokens, layer n the n-th block, with what merges the patches behind it, and the last layer is all that is
behind the blocks. A layer's rate is that of the one behind it times the decay.

Weight decay is for what multiplies: a module whose tables or tokens are added to something names them in `undecayed`.
"""

import re

from torch import nn

_BLOCK = re.compile(r"(trunk\.|stages\.\d+\.)?blocks\.\d+")
_MERGING = re.compile(r"stages\.\d+\.merging")
_BEHIND = ("trunk.norm.", "norm.", "pool.")
_PATCHES = ("patches.", "patch_norm.", "stem.")


def layers_of(encoder: nn.Module) -> dict[str, int]:
    """Every parameter's layer; the last is one more than there are blocks."""
    found, blocks = {}, 0
    for name, _ in encoder.named_modules():  # in the order in which pictures go through them
        if _BLOCK.fullmatch(name):
            blocks += 1
        if _BLOCK.fullmatch(name) or _MERGING.fullmatch(name):
            found[f"{name}."] = blocks
    found |= dict.fromkeys(_BEHIND, blocks + 1)
    return {name: next((layer for start, layer in found.items() if name.startswith(start)), 0) for name, _ in encoder.named_parameters()}


def rate_shares(encoder: nn.Module, decay: float, patches: float) -> dict[str, float]:
    """Every parameter's learning rate as a share of that behind the blocks; that of the patch embedding is `patches` times its layer's."""
    layers = layers_of(encoder)
    last = max(layers.values())
    return {name: decay ** (last - layer) * (patches if name.startswith(_PATCHES) else 1) for name, layer in layers.items()}


def undecayed(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay leaves alone, vectors apart: positions, tables of relative ones, and learnt tokens."""
    called = {id(parameter): name for name, parameter in module.named_parameters()}
    named = (getattr(child, name) for child in module.modules() for name in getattr(child, "undecayed", ()))
    return frozenset(called[id(parameter)] for parameter in named if parameter is not None)
