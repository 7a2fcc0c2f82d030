"""An encoder that goes on from the weights of another: the same but for tokens that stand for no patch, and for the size of its grid."""

import torch
from torch import nn

from worldloom.world_model.encoders.vit import ViT

TOKENS = ("class_token", "distillation_token", "mask_token", "registers")  # may come and go
POSITIONS = "positions.table"


@torch.no_grad()
def continue_from(encoder: nn.Module, before: nn.Module, where: str) -> None:
    """Gives `encoder` what `before` has learnt; positions are interpolated to its grid. Tokens that are new stay as they were drawn.

    ValueError, naming the first, where other weights are missing or of another shape.
    """
    weights, own = before.state_dict(), encoder.state_dict()
    if isinstance(encoder, ViT) and isinstance(before, ViT) and encoder.width == before.width and POSITIONS in own and POSITIONS in weights:
        weights[POSITIONS] = _positions(encoder, before)
    for token in TOKENS:
        if token not in own or token not in weights or own[token].shape != weights[token].shape:
            weights.pop(token, None)
            weights |= {token: own[token]} if token in own else {}
    wrong = sorted(set(weights) ^ set(own)) + sorted(name for name in set(weights) & set(own) if weights[name].shape != own[name].shape)
    if wrong:
        raise ValueError(f"{where}: its weights do not fit the encoder at {', '.join(wrong[:5])}; they are of different forms")
    encoder.load_state_dict(weights)


def _positions(encoder: ViT, before: ViT) -> torch.Tensor:
    """The table of `before` on the grid of `encoder`, behind the latter's own rows of class tokens."""
    mine, its = encoder.positions, before.positions
    assert mine is not None and its is not None
    found: torch.Tensor = its(mine.grid)
    table: torch.Tensor = encoder.state_dict()[POSITIONS].clone()
    shared = min(mine.prefix, its.prefix)
    table[:shared], table[mine.prefix :] = found[:shared], found[its.prefix :]
    return table
