"""From pictures to the numbers that networks read, and back. B batch, H x W pixels; pictures are uint8 [B, H, W, 3]."""

import torch
from torch import Tensor

EPS = 0.1  # of map_pixels (arXiv:2102.12092, appendix A.3)


def to_signed(pictures: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def from_signed(x: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1], clipped -> uint8 [B, H, W, 3]."""
    return _to_bytes((x.float() + 1) / 2)


def to_mapped(pictures: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [eps, 1 - eps]: (1 - 2 eps) x + eps."""
    return (1 - 2 * EPS) * (pictures.permute(0, 3, 1, 2).float() / 255) + EPS


def from_mapped(x: Tensor) -> Tensor:
    """[B, 3, H, W] in [eps, 1 - eps], clipped -> uint8 [B, H, W, 3]."""
    return _to_bytes((x.float() - EPS) / (1 - 2 * EPS))


def _to_bytes(unit: Tensor) -> Tensor:
    return (unit.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
