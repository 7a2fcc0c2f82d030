"""An encoder that goes on from the weights of another: the same but for tokens that stand for no patch, and for the size of its grid. Or a
ViT whose stem goes on from an encoder of convolutions."""

import torch
from torch import Tensor, nn

from worldloom.world_model.encoders.build import Network, NetworkSettings
from worldloom.world_model.encoders.convnet import ConvNet
from worldloom.world_model.encoders.patches import HybridPatches
from worldloom.world_model.encoders.relative_bias import GridBias
from worldloom.world_model.encoders.relative_keys import TwoPhase
from worldloom.world_model.encoders.settings import ConvSettings, StemSettings
from worldloom.world_model.encoders.vit import ViT

TOKENS = ("class_token", "distillation_token", "mask_token", "registers")  # may come and go
POSITIONS = "positions.table"


@torch.no_grad()
def continue_from(encoder: nn.Module, before: nn.Module, where: str) -> None:
    """Gives `encoder` what `before` has learnt; positions and tables of relative ones are interpolated to its grid. New tokens stay as they
    were drawn.

    ValueError, naming the first, where other weights are missing or of another shape.
    """
    weights, own = before.state_dict(), encoder.state_dict()
    if isinstance(encoder, ViT) and isinstance(before, ViT) and encoder.width == before.width:
        if POSITIONS in own and POSITIONS in weights:
            weights[POSITIONS] = _positions(encoder, before)
        weights |= _relations(encoder, before, where)
    for token in TOKENS:
        if token not in own or token not in weights or own[token].shape != weights[token].shape:
            weights.pop(token, None)
            weights |= {token: own[token]} if token in own else {}
    wrong = sorted(set(weights) ^ set(own)) + sorted(name for name in set(weights) & set(own) if weights[name].shape != own[name].shape)
    if wrong:
        raise ValueError(f"{where}: its weights do not fit the encoder at {', '.join(wrong[:5])}; they are of different forms")
    encoder.load_state_dict(weights)


def begin_stem(encoder: ViT, stem: StemSettings, before: Network, form: NetworkSettings, where: str) -> None:
    """Gives the stem of `encoder` the weights of the convolutions `before`; ValueError where `form` is not the stem's."""
    if not isinstance(before, ConvNet) or not isinstance(form, ConvSettings):
        raise ValueError(f"{where}: a stem is of convolutions, and this is a {form.type}; name a stage that trains an encoder of type conv")
    pairs = {name: (getattr(form, name), getattr(stem, name)) for name in ("patch", "width", "depths", "epsilon")}
    unlike = [f"{name} {theirs} against {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]
    if unlike:
        raise ValueError(f"{where}: its form is not that of encoder.stem: {'; '.join(unlike)}; make them equal")
    assert isinstance(encoder.patches, HybridPatches)
    encoder.patches.convolutions.load_state_dict(before.state_dict())


def _positions(encoder: ViT, before: ViT) -> Tensor:
    """The table of `before` on the grid of `encoder`, behind the latter's own rows of class tokens."""
    mine, its = encoder.positions, before.positions
    assert mine is not None and its is not None
    found: Tensor = its(mine.grid)
    table: Tensor = encoder.state_dict()[POSITIONS].clone()
    shared = min(mine.prefix, its.prefix)
    table[:shared], table[mine.prefix :] = found[:shared], found[its.prefix :]
    return table


def _relations(encoder: ViT, before: ViT, where: str) -> dict[str, Tensor]:
    """Tables of `before` that hang on the grid, on that of `encoder`."""
    found, mine = dict[str, Tensor](), dict(encoder.named_modules())
    for name, its in before.named_modules():
        own = mine.get(name)
        if isinstance(its, GridBias) and isinstance(own, GridBias):
            found[f"{name}.table"] = its.resized(own.grid)
        if isinstance(its, TwoPhase) and isinstance(own, TwoPhase) and its.tokens != own.tokens:
            raise ValueError(
                f"{where}: its two-phase positions are of {its.tokens} patches, the pictures have {own.tokens}, and offsets along another "
                "grid mean something else; bring pictures to its size, or go on from an encoder with another relation"
            )
    return found
