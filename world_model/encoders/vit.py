"""The Vision Transformer (arXiv:2010.11929; google-research/vision_transformer, models_vit.py): pre-norm blocks on patches of a picture.

With what its successors added, each of it left out by default: a distillation token (arXiv:2012.12877), LayerScale (arXiv:2103.17239),
SwiGLU, a mask token (arXiv:2304.07193), registers (arXiv:2309.16588), and positions inside the attention.

B batch, C channels, H x W pixels, N = h w patches, P prefix tokens (class, distillation, registers), T = P + N tokens, D width, K heads,
E = D / K.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.attention import attend
from worldloom.world_model.encoders.attention_pool import AttentionPool
from worldloom.world_model.encoders.drop_path import DropPath, Sizes, SubsetPath, rates
from worldloom.world_model.encoders.features import Features
from worldloom.world_model.encoders.patches import Patches
from worldloom.world_model.encoders.positions import LearnedPositions, SinePositions

EPSILON = 1e-6  # the original's; transformers' ViTConfig has 1e-12
Gelu = Literal["none", "tanh"]  # what approximates GELU: nothing (erf), or tanh as in Flax
Pooling = Literal["class", "mean", "attention"]
Grid = tuple[int, int]


class Relation(Protocol):
    """Positions inside the attention: a module (rotary.py, relative_bias.py, relative_keys.py), one for each block."""

    def __call__(self, query: Tensor, key: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor | None]:
        """[B, K, T, E] each -> queries, keys, and what is added to the scores: [B or 1, K, T, T] or None."""
        ...


class Style(NamedTuple):
    """What the blocks of a trunk have in common."""

    heads: int
    mlp_width: int | None = None  # 4 D where it is not given; of SwiGLU two thirds of that, in steps of 8
    dropout: float = 0.0
    epsilon: float = EPSILON
    gelu: Gelu = "none"
    swiglu: bool = False
    layer_scale: float | None = None  # what the residual branches are multiplied with at first, channel by channel; None: nothing is
    drop_path: float = 0.0  # of the last block; it rises linearly from 0 at the first
    subset: bool = False  # dropped samples skip the computation
    relation: Callable[[], Relation] | None = None  # makes one for each block


class ViT(nn.Module):
    """Pictures [B, C, H, W] -> Features; pooled is the class token, the mean of the patches' tokens, or what a learnt query reads."""

    undecayed = ("class_token", "distillation_token", "registers", "mask_token")

    def __init__(
        self,
        patches: Patches,
        positions: LearnedPositions | SinePositions | None,
        depth: int,
        style: Style,
        class_token: bool = True,
        distillation_token: bool = False,
        registers: int = 0,
        mask_token: bool = False,
        pooling: Pooling = "class",
        generator: torch.Generator | None = None,
    ) -> None:
        """`positions` None and no relation leave the model blind to where a patch lies; registers have no position.

        Weights are drawn from `generator`: Xavier-uniform, biases of the MLPs N(0, 1e-6), registers N(0, 1e-6), the distillation token
        N(0, 0.02); other biases, the class token and the mask token are zero.
        """
        super().__init__()
        width, placed = patches.width, int(class_token) + int(distillation_token)
        if pooling == "class" and not class_token:
            raise ValueError("pooling is 'class', and there is no class token; set pooling to 'mean', or class_token")
        if positions is not None and positions.prefix != placed:
            raise ValueError(f"positions for {positions.prefix} class tokens, the encoder has {placed}; make them equal")
        self.patches, self.positions, self.pooling = patches, positions, pooling
        self.prefix = placed + registers
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width)) if distillation_token else None
        self.registers = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if mask_token else None
        with torch.no_grad():
            if self.distillation_token is not None:
                self.distillation_token.normal_(0, 0.02, generator=generator)
            if self.registers is not None:
                self.registers.normal_(0, 1e-6, generator=generator)
        self.dropout = nn.Dropout(style.dropout)
        self.trunk = Trunk(width, depth, style, generator)
        self.pool = AttentionPool(width, style.heads, epsilon=style.epsilon, generator=generator) if pooling == "attention" else None

    @property
    def width(self) -> int:
        return self.patches.width

    @property
    def stride(self) -> int:
        """Pixels along the side of the square that a token stands for."""
        return self.patches.patch

    def forward(self, pixels: Tensor, hidden: Tensor | None = None) -> Features:
        """`hidden`, bool [B, N], names patches that the mask token stands for."""
        return self._features(self.sequence(pixels, hidden))

    def several(self, batches: Sequence[Tensor], hidden: Sequence[Tensor | None]) -> list[Features]:
        """Features of pictures of several sizes, one batch a size, in one pass: every product has the tokens of all of them as its rows,
        and attention stays within a picture (as DINOv2's nested tensors, arXiv:2304.07193, section 5)."""
        embedded = [self.embed(pixels, places) for pixels, places in zip(batches, hidden, strict=True)]
        return [self._features(x) for x in self.trunk.packed(embedded, [self._grid(pixels) for pixels in batches])]

    def _features(self, x: Tensor) -> Features:
        """[B, T, D] behind the final norm -> Features."""
        tokens = x[:, self.prefix :]
        if self.pool is not None:
            return Features(tokens, self.pool(tokens)[:, 0])
        return Features(tokens, x[:, 0] if self.pooling == "class" else tokens.mean(1))

    def sequence(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, T, D] behind the final norm: class token, distillation token, registers, patches."""
        out: Tensor = self.trunk(self.embed(pixels, hidden), self._grid(pixels))
        return out

    def embed(self, pixels: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, T, D]: patches behind the prefix tokens, with their positions."""
        x: Tensor
        if hidden is None:
            x = self.patches(pixels)
        else:
            if self.mask_token is None:
                raise ValueError("this ViT has no mask token to hide patches with; make it with mask_token")
            x = self.patches(self.patches.blanked(pixels, hidden))
            x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x)
        first = [token.to(x.dtype).expand(len(x), -1, -1) for token in (self.class_token, self.distillation_token) if token is not None]
        x = torch.cat([*first, x], dim=1)
        if self.positions is not None:
            x = x + self.positions(self._grid(pixels)).to(x.device, x.dtype)
        if self.registers is not None:
            x = torch.cat([x[:, : len(first)], self.registers.to(x.dtype).expand(len(x), -1, -1), x[:, len(first) :]], dim=1)
        embedded: Tensor = self.dropout(x)
        return embedded

    def hidden_states(self, pixels: Tensor) -> Iterator[Tensor]:
        """[B, T, D] each: what enters the first block, what leaves every block, and that of the last behind the final norm."""
        yield from self.trunk.states(self.embed(pixels), self._grid(pixels))

    def attention(self, pixels: Tensor) -> Tensor:
        """[B, K, T, T]: the weights of the last block, each row a distribution over the tokens that are read."""
        return self.trunk.attention(self.embed(pixels), self._grid(pixels))

    def _grid(self, pixels: Tensor) -> Grid:
        return self.patches.grid(pixels.shape[-2], pixels.shape[-1])


class Trunk(nn.Module):
    """Blocks and a final norm, [B, T, D] -> [B, T, D]; what an encoder of patches and a decoder to patches have in common.

    `grid` is that of the last h w tokens; only relations ask for it.
    """

    def __init__(self, width: int, depth: int, style: Style, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if width % style.heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({style.heads})")
        self.blocks = nn.ModuleList(Block(width, style, rate, generator) for rate in rates(style.drop_path, depth))
        self.norm = nn.LayerNorm(width, eps=style.epsilon)

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, grid)
        normed: Tensor = self.norm(x)
        return normed

    def packed(self, groups: Sequence[Tensor], grids: Sequence[Grid]) -> list[Tensor]:
        """The same for groups [B, T, D] of different B and T, which share every product."""
        sizes = [(len(x), x.shape[1]) for x in groups]
        packed = torch.cat([x.flatten(0, 1) for x in groups])
        for block in self.blocks:
            assert isinstance(block, Block)
            packed = block.packed(packed, sizes, grids)
        parts = self.norm(packed).split([B * T for B, T in sizes])
        return [part.view(B, T, -1) for part, (B, T) in zip(parts, sizes, strict=True)]

    def states(self, x: Tensor, grid: Grid | None = None) -> Iterator[Tensor]:
        """`x`, what leaves every block, and the last one normed."""
        yield x
        for block in self.blocks:
            x = block(x, grid)
            yield x
        yield self.norm(x)

    def attention(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """[B, K, T, T]: the weights of the last block."""
        *before, last = self.blocks
        for block in before:
            x = block(x, grid)
        assert isinstance(last, Block)
        return last.weights(x, grid)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, style: Style, drop_path: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.heads, self.gelu = style.heads, style.gelu
        hidden = style.mlp_width or 4 * width
        if style.swiglu and style.mlp_width is None:
            hidden = (hidden * 2 // 3 + 7) // 8 * 8
        self.attention_norm = nn.LayerNorm(width, eps=style.epsilon)
        self.qkv = nn.Linear(width, 3 * width)  # queries, keys, values
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=style.epsilon)
        self.swiglu = style.swiglu
        self.up, self.down = nn.Linear(width, 2 * hidden if style.swiglu else hidden), nn.Linear(hidden, width)  # of SwiGLU: gate, value
        self.attention_scale, self.mlp_scale = (
            None if style.layer_scale is None else nn.Parameter(torch.full((width,), style.layer_scale)) for _ in range(2)
        )
        self.relation = style.relation() if style.relation is not None else None
        self.dropout = nn.Dropout(style.dropout)
        self.drop_path = SubsetPath(drop_path) if style.subset else DropPath(drop_path)
        with torch.no_grad():
            for part in self.qkv.weight.chunk(3):  # as three matrices: together they would be drawn too narrowly
                nn.init.xavier_uniform_(part, generator=generator)
            nn.init.xavier_uniform_(self.out.weight, generator=generator)
            for part in (*self.up.weight.chunk(2 if style.swiglu else 1), self.down.weight):
                nn.init.xavier_uniform_(part, generator=generator)
            for layer in (self.up, self.down):
                layer.bias.normal_(0, 1e-6, generator=generator)
            for layer in (self.qkv, self.out):
                layer.bias.zero_()

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        x = self.drop_path(x, lambda x: _scaled(self._attended(x, grid), self.attention_scale))
        out: Tensor = self.drop_path(x, lambda x: _scaled(self._thought(x), self.mlp_scale))
        return out

    def packed(self, x: Tensor, sizes: Sizes, grids: Sequence[Grid]) -> Tensor:
        """The same for groups that stand one behind the other, [sum of B T, D]."""
        x = self.drop_path.packed(x, sizes, lambda x, sizes: _scaled(self._attended_apart(x, sizes, grids), self.attention_scale))
        return self.drop_path.packed(x, sizes, lambda x, sizes: _scaled(self._thought(x), self.mlp_scale))

    def weights(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """[B, K, T, T]: what the softmax makes of the scores."""
        query, key, _, bias = self._asked(self.qkv(self.attention_norm(x)), grid)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        weights: Tensor = (scores if bias is None else scores + bias).softmax(-1)
        return weights

    def _attended(self, x: Tensor, grid: Grid | None) -> Tensor:
        out: Tensor = self.dropout(self.out(self._mixed(self.qkv(self.attention_norm(x)), grid)))
        return out

    def _attended_apart(self, x: Tensor, sizes: Sizes, grids: Sequence[Grid]) -> Tensor:
        """The same for groups one behind the other, [sum of B T, D]."""
        parts = self.qkv(self.attention_norm(x)).split([B * T for B, T in sizes])
        mixed = [self._mixed(part.view(*size, -1), grid).flatten(0, 1) for part, size, grid in zip(parts, sizes, grids, strict=True)]
        out: Tensor = self.dropout(self.out(torch.cat(mixed)))
        return out

    def _mixed(self, qkv: Tensor, grid: Grid | None) -> Tensor:
        """[B, T, 3 D] -> [B, T, D]: values as the scores weigh them."""
        query, key, value, bias = self._asked(qkv, grid)
        return attend(query, key, value, bias).transpose(1, 2).flatten(2)

    def _asked(self, qkv: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values [B, K, T, E], and what is added to the scores."""
        B, T, D3 = qkv.shape
        query, key, value = qkv.view(B, T, 3, self.heads, D3 // 3 // self.heads).permute(2, 0, 3, 1, 4)
        if self.relation is None:
            return query, key, value, None
        assert grid is not None, "positions inside the attention need the grid of the tokens"
        query, key, bias = self.relation(query, key, grid)
        return query, key, value, None if bias is None else bias.to(query.dtype)

    def _thought(self, x: Tensor) -> Tensor:
        hidden = self.up(self.mlp_norm(x))
        if self.swiglu:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden, approximate=self.gelu)
        out: Tensor = self.dropout(self.down(self.dropout(hidden)))
        return out


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale
