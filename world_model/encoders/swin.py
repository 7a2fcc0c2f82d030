"""Swin, a hierarchy of transformers on shifted windows (arXiv:2103.14030; microsoft/Swin-Transformer, swin_transformer.py).

B batch, C channels, H x W pixels, h x w grid, S windows of a picture, T tokens of a window, D width, K heads, E = D / K.

Pictures of any size: what windows do not divide is padded with zeros behind the first norm. As in the original, padded cells are keys
like others; `mask_padding` bars them. A window is never larger than the grid, whatever was seen before: nothing here remembers a size.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.attention import attend
from worldloom.world_model.encoders.drop_path import DropPath, rates
from worldloom.world_model.encoders.features import Features
from worldloom.world_model.encoders.patches import ConvPatches
from worldloom.world_model.encoders.windows import (
    merge,
    offset_index,
    pad_grid,
    padded_grid,
    padding_mask,
    partition,
    shift_mask,
    shift_of,
)

EPSILON = 1e-5


class SwinSize(NamedTuple):
    """A size of the paper's."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    drop_path: float


SIZES = {  # section 3.3; drop path of section A2.1
    "tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2),
    "small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3),
    "base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5),
    "large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.5),
}


class Swin(nn.Module):
    """Pictures [B, C, H, W] -> Features of the last grid; what is pooled is their mean."""

    undecayed = ("mask_token",)

    def __init__(
        self,
        channels: int,
        patch: int,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mask_token: bool = False,
        mask_padding: bool = False,
        epsilon: float = EPSILON,
        generator: torch.Generator | None = None,
    ) -> None:
        """`width` is that of the first stage; every stage doubles it. Matrices, tables and the mask token are drawn from `generator`:
        N(0, 0.02), cut at two; biases are zero."""
        super().__init__()
        if len(depths) != len(heads):
            raise ValueError(f"there are {len(depths)} depths and {len(heads)} numbers of heads; give one of each for every stage")
        self.patches = ConvPatches(channels, width, patch, "pad", generator)
        self.patch_norm = nn.LayerNorm(width, eps=epsilon)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if mask_token else None
        dropped = iter(rates(drop_path, sum(depths)))
        self.stages = nn.ModuleList(
            _Stage(
                width << number,
                [next(dropped) for _ in range(depth)],
                heads[number],
                window,
                mlp_ratio,
                number + 1 < len(depths),
                mask_padding,
                epsilon,
            )
            for number, depth in enumerate(depths)
        )
        self.width = width << (len(depths) - 1)
        self.norm = nn.LayerNorm(self.width, eps=epsilon)
        with torch.no_grad():
            for module in self.stages.modules():
                if isinstance(module, nn.Linear):
                    _drawn(module.weight, generator)
                    if module.bias is not None:
                        module.bias.zero_()
                elif isinstance(module, _Block):
                    _drawn(module.offsets, generator)
            if self.mask_token is not None:
                _drawn(self.mask_token, generator)

    @property
    def stride(self) -> int:
        """Pixels along the side of the square that a token of the last grid stands for."""
        return self.patches.patch << (len(self.stages) - 1)

    def forward(self, pixels: Tensor, hidden: Tensor | None = None) -> Features:
        """`hidden`, bool [B, N], names patches that the mask token stands for."""
        *_, last = self.grids(pixels, hidden)
        tokens = self.norm(last).flatten(1, 2)
        return Features(tokens, tokens.mean(1))

    def grids(self, pixels: Tensor, hidden: Tensor | None = None) -> Iterator[Tensor]:
        """[B, h, w, D] each: the patches, what leaves every stage but the last (merged already), and the last before its norm."""
        x = self.embed(pixels, hidden)
        yield x
        for stage in self.stages:
            x = stage(x)
            yield x

    def embed(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, h, w, D]."""
        x: Tensor = self.patch_norm(self.patches(pixels))
        if hidden is not None:
            if self.mask_token is None:
                raise ValueError("this Swin has no mask token to hide patches with; make it with mask_token")
            x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x)
        return x.reshape(len(x), *self.patches.grid(pixels.shape[-2], pixels.shape[-1]), -1)


class _Stage(nn.Module):
    """Blocks on one grid, every other one shifted; then, but in the last stage, four neighbours become one."""

    def __init__(
        self,
        width: int,
        drop_paths: Sequence[float],
        heads: int,
        window: int,
        mlp_ratio: float,
        merging: bool,
        mask_padding: bool,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(width, heads, window, number % 2 == 1, mlp_ratio, rate, mask_padding, epsilon) for number, rate in enumerate(drop_paths)
        )
        self.merging = _Merging(width, epsilon) if merging else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.merging is None else self.merging(x)


class _Merging(nn.Module):
    """[B, h, w, D] -> [B, ceil(h / 2), ceil(w / 2), 2 D]; of a square come (0, 0), (1, 0), (0, 1), (1, 1), rows first."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=epsilon)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_grid(x, padded_grid((x.shape[1], x.shape[2]), 2))
        B, h, w, D = x.shape
        squares = x.view(B, h // 2, 2, w // 2, 2, D).permute(0, 1, 3, 4, 2, 5).reshape(B, h // 2, w // 2, 4 * D)
        merged: Tensor = self.reduction(self.norm(squares))
        return merged


class _Block(nn.Module):
    """x + attention in windows(norm(x)), then x + mlp(norm(x))."""

    undecayed = ("offsets",)

    def __init__(
        self, width: int, heads: int, window: int, shifted: bool, mlp_ratio: float, drop_path: float, mask_padding: bool, epsilon: float
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
        self.heads, self.window, self.shifted, self.mask_padding = heads, window, shifted, mask_padding
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.qkv = nn.Linear(width, 3 * width)  # queries, keys, values
        self.offsets = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, int(mlp_ratio * width)), nn.Linear(int(mlp_ratio * width), width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop_path(self.drop_path(x, self._attended), self._thought)
        return out

    def _thought(self, x: Tensor) -> Tensor:
        thought: Tensor = self.down(F.gelu(self.up(self.mlp_norm(x))))
        return thought

    def _attended(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x)
        grid = (x.shape[1], x.shape[2])
        window, shift = shift_of(grid, self.window, self.shifted)
        padded = padded_grid(grid, window)
        x = pad_grid(x, padded)
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        mixed = merge(self._mixed(self.qkv(partition(x, window)), self._bias(grid, padded, window, shift)), padded, window)
        if shift:
            mixed = mixed.roll((shift, shift), (1, 2))
        attended: Tensor = self.out(mixed[:, : grid[0], : grid[1]])
        return attended

    def _bias(self, grid: tuple[int, int], padded: tuple[int, int], window: int, shift: int) -> Tensor:
        """[1 or S, K, T, T]: what is added to the scores."""
        device = self.offsets.device
        bias = self.offsets[offset_index(window, self.window, device)].permute(2, 0, 1)[None]
        if shift:
            bias = bias + shift_mask(padded, window, shift, device)[:, None].to(bias.dtype)
        if self.mask_padding and padded != grid:
            bias = bias + padding_mask(grid, padded, window, shift, device)[:, None].to(bias.dtype)
        return bias

    def _mixed(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """[B S, T, 3 D] -> [B S, T, D]."""
        windows, T, D3 = qkv.shape
        S = len(bias)
        query, key, value = qkv.view(windows // S, S, T, 3, self.heads, D3 // 3 // self.heads).permute(3, 0, 1, 4, 2, 5)
        return attend(query, key, value, bias).transpose(2, 3).reshape(windows, T, -1)


def _drawn(weight: Tensor, generator: torch.Generator | None) -> None:
    nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04, generator=generator)
