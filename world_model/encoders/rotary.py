"""Rotary positions (arXiv:2104.09864) over several axes: each has an equal part of a head, and turns it by place x frequency.

Pairs are (i, i + half) of an axis's part, as in Llama; a checkpoint of interleaved pairs needs its queries and keys permuted.
Angles are taken in float32 at least: in bfloat16 places above 256 would coincide.

T tokens, A axes, E width of a head.
"""

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Turns queries and keys of the tokens of a grid; prefix tokens lie nowhere and stay as they are."""

    def __init__(self, head_width: int, theta: float = 10_000.0, native: tuple[int, int] | None = None) -> None:
        """Where `native` is given, places of another grid are scaled to that one (position interpolation, arXiv:2306.15595)."""
        super().__init__()
        if head_width % 4:
            raise ValueError(f"rotary positions over two axes need heads of a width that 4 divides, got {head_width}; choose other heads")
        self.theta, self.native = theta, native

    def forward(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, None]:
        """[B, K, T, E] each; nothing is added to the scores."""
        places = places_of(grid, query.device)
        if self.native is not None:
            places = places * torch.tensor([n / g for n, g in zip(self.native, grid, strict=True)], device=query.device)
        angles = axial_angles(places, query.shape[-1], self.theta)
        return _turned_behind_prefix(query, angles), _turned_behind_prefix(key, angles), None


def places_of(grid: tuple[int, int], device: torch.device) -> Tensor:
    """float32 [h w, 2]: row and column of every token."""
    down, across = (torch.arange(length, dtype=torch.float32, device=device) for length in grid)
    return torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1).flatten(0, 1)


def axial_angles(places: Tensor, head_width: int, theta: float) -> Tensor:
    """[T, A] -> [T, A, E / A / 2]: place x theta^(-2i / (E / A)) for every axis."""
    part = head_width // places.shape[1]
    frequencies = 1.0 / theta ** (torch.arange(0, part, 2, dtype=torch.float32, device=places.device) / part)
    return places.float()[..., None] * frequencies


def turn(x: Tensor, angles: Tensor) -> Tensor:
    """[..., T, E] turned by [T, A, E / A / 2]."""
    axes, half = angles.shape[1:]
    parts = x.reshape(*x.shape[:-1], axes, 2, half)
    first, second = parts[..., 0, :], parts[..., 1, :]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2).flatten(-3)


def _turned_behind_prefix(x: Tensor, angles: Tensor) -> Tensor:
    prefix = x.shape[2] - len(angles)
    return torch.cat([x[:, :, :prefix], turn(x[:, :, prefix:], angles)], dim=2) if prefix else turn(x, angles)
