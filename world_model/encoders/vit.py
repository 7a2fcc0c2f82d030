"""The Vision Transformer (arXiv:2010.11929; google-research/vision_transformer, models_vit.py): pre-norm blocks on patches of a picture.

B batch, C channels, H x W pixels, N patches, P class tokens (0 or 1), T = P + N tokens, D width, K heads, E = D / K.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.features import Features
from worldloom.world_model.encoders.patches import ConvPatches, LinearPatches
from worldloom.world_model.encoders.positions import LearnedPositions, SinePositions

EPSILON = 1e-6  # the original's; transformers' ViTConfig has 1e-12
Gelu = Literal["none", "tanh"]  # what approximates GELU: nothing (erf), or tanh as in Flax
Pooling = Literal["class", "mean"]


class ViT(nn.Module):
    """Pictures [B, C, H, W] -> Features; what is pooled is the class token, or the mean of the others."""

    def __init__(
        self,
        patches: ConvPatches | LinearPatches,
        positions: LearnedPositions | SinePositions | None,
        depth: int,
        heads: int,
        mlp_width: int | None = None,
        class_token: bool = True,
        pooling: Pooling = "class",
        dropout: float = 0.0,
        epsilon: float = EPSILON,
        gelu: Gelu = "none",
        generator: torch.Generator | None = None,
    ) -> None:
        """`mlp_width` is 4 D where it is not given; `positions` None leaves the model blind to where a patch lies.

        Weights are drawn from `generator`: Xavier-uniform, biases of the MLPs N(0, 1e-6), other biases and the class token zero.
        """
        super().__init__()
        width = patches.width
        if pooling == "class" and not class_token:
            raise ValueError("pooling is 'class', and there is no class token; set pooling to 'mean', or class_token")
        if positions is not None and positions.prefix != int(class_token):
            raise ValueError(f"positions for {positions.prefix} class tokens, the encoder has {int(class_token)}; make them equal")
        self.patches, self.positions, self.pooling = patches, positions, pooling
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.dropout = nn.Dropout(dropout)
        self.trunk = Trunk(width, depth, heads, mlp_width, dropout, epsilon, gelu, generator)

    @property
    def width(self) -> int:
        return self.patches.width

    def forward(self, pixels: Tensor) -> Features:
        x = self.trunk(self.embed(pixels))
        tokens = x if self.class_token is None else x[:, 1:]
        return Features(tokens, x[:, 0] if self.pooling == "class" else tokens.mean(1))

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, T, D]: patches behind the class token, with their positions."""
        x: Tensor = self.patches(pixels)
        if self.class_token is not None:
            x = torch.cat([self.class_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        if self.positions is not None:
            x = x + self.positions(self.patches.grid(*pixels.shape[-2:])).to(x.device, x.dtype)
        embedded: Tensor = self.dropout(x)
        return embedded

    def hidden_states(self, pixels: Tensor) -> Iterator[Tensor]:
        """[B, T, D] each: what enters the first block, what leaves every block, and that of the last behind the final norm."""
        yield from self.trunk.states(self.embed(pixels))


class Trunk(nn.Module):
    """Blocks and a final norm, [B, T, D] -> [B, T, D]; what an encoder of patches and a decoder to patches have in common."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int | None = None,
        dropout: float = 0.0,
        epsilon: float = EPSILON,
        gelu: Gelu = "none",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width or 4 * width, dropout, epsilon, gelu, generator) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed

    def states(self, x: Tensor) -> Iterator[Tensor]:
        """`x`, what leaves every block, and the last one normed."""
        yield x
        for block in self.blocks:
            x = block(x)
            yield x
        yield self.norm(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, dropout: float, epsilon: float, gelu: Gelu, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.heads, self.gelu = heads, gelu
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.qkv = nn.Linear(width, 3 * width)  # queries, keys, values
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for part in self.qkv.weight.chunk(3):  # as three matrices: together they would be drawn too narrowly
                nn.init.xavier_uniform_(part, generator=generator)
            nn.init.xavier_uniform_(self.out.weight, generator=generator)
            for layer in (self.up, self.down):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                layer.bias.normal_(0, 1e-6, generator=generator)
            for layer in (self.qkv, self.out):
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.out(self._mixed(self.qkv(self.attention_norm(x)))))
        hidden = self.dropout(F.gelu(self.up(self.mlp_norm(x)), approximate=self.gelu))
        out: Tensor = x + self.dropout(self.down(hidden))
        return out

    def _mixed(self, qkv: Tensor) -> Tensor:
        B, T, D = qkv.shape
        query, key, value = qkv.view(B, T, 3, self.heads, D // 3 // self.heads).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
