"""What an encoder sees, as pictures: what it draws in hidden places, and where its class token looks."""

from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from worldloom.stages.card import Picture, write_picture
from worldloom.stages.encoder_features import signed, unsigned
from worldloom.world_model.encoders.build import Network
from worldloom.world_model.encoders.simmim import SimMIM
from worldloom.world_model.encoders.vit import ViT

SIDE = 64  # pixels of a picture, at least


def show_redrawn(model: SimMIM, some: NDArray[np.uint8], hidden: Tensor, out: Path) -> Picture:
    """uint8 [B, H, W, 3] and bool [B, N] -> pictures/redrawn.png."""
    x = signed(some)
    mask = model.hidden_pixels(hidden, *x.shape[2:])
    drawn = model(x, hidden).pixels
    file = write_picture(out, "redrawn", rows([some, unsigned(x * (1 - mask)), unsigned(x * (1 - mask) + drawn * mask)]))
    return Picture(file=file, caption="Pictures, what the encoder saw of them, and what it drew in the hidden places.")


def looks(encoder: Network) -> TypeGuard[ViT]:
    """Whether it has a class token, whose attention can be shown."""
    return isinstance(encoder, ViT) and encoder.class_token is not None


def show_attention(encoder: ViT, some: NDArray[np.uint8], out: Path) -> Picture:
    """uint8 [B, H, W, 3] -> pictures/attention.png."""
    file = write_picture(out, "attention", rows([some, *attention_maps(encoder, signed(some))]))
    return Picture(file=file, caption="Pictures, and where the class token of each head of the last block looks: white is most.")


def attention_maps(encoder: ViT, x: Tensor) -> list[NDArray[np.uint8]]:
    """uint8 [B, H, W, 3] for every head: the class token's weights on patches, each picture's largest being white."""
    h, w = encoder.patches.grid(x.shape[2], x.shape[3])
    weights = encoder.attention(x)[:, :, 0, encoder.prefix :].reshape(len(x), -1, h, w)
    shown = (weights / weights.amax((2, 3), keepdim=True) * 255).round().byte()
    large = F.interpolate(shown, size=x.shape[2:], mode="nearest")
    return [head[..., None].expand(-1, -1, -1, 3).numpy() for head in large.unbind(1)]


def rows(lines: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Rows of pictures with white between them, enlarged by whole pixels."""
    scale = max(1, SIDE // lines[0].shape[1])
    gap = max(2, lines[0].shape[1] * scale // 16)
    made = []
    for pictures in lines:
        large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
        made.append(np.concatenate(list(np.pad(large, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=255)), axis=1))
    return np.pad(np.concatenate(made), ((0, gap), (0, gap), (0, 0)), constant_values=255)
