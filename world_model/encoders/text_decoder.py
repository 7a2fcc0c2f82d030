"""CoCa's text decoder (arXiv:2205.01917, section 3.2): a causal half that sees text only, then a half that also reads the picture.

The first half's output is the query of the second; encodings of the picture are its keys and values. A class token stands last, behind
the text; it sees the text but no padding, and nothing sees it.

B batch, T text tokens, Q encodings of the picture, D width, K heads, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.attention import attend

EPSILON = 1e-6


class Text(NamedTuple):
    """What the first half makes of captions."""

    tokens: Tensor  # [B, T, D], the query of the second half
    pooled: Tensor  # [B, D], of the class token


class Memory(NamedTuple):
    """What writing a caption keeps: keys and values of both halves' self-attention, and those of the picture, taken once.

    There is room for `length` tokens from the start, which `step` fills in place.
    """

    own: list[tuple[Tensor, Tensor]]  # [B, K, length, E], one for each block, of the first half, then of the second
    picture: list[tuple[Tensor, Tensor]]  # [B, K, Q, E], one for each block of the second half
    tokens: int  # that are there

    def of(self, source: Tensor) -> "Memory":
        """That of the captions `source`, int64 [B], of which one may go on in several ways."""
        return self._replace(own=[(key[source], value[source]) for key, value in self.own])


class TextDecoder(nn.Module):
    """Captions, and pictures' encodings, to vectors and logits."""

    undecayed = ("positions", "class_token")

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        depth: int,
        heads: int,
        picture_width: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """`depth` counts the blocks of both halves and is even. Embeddings are drawn from `generator`, N(0, 0.02), matrices Xavier."""
        super().__init__()
        if depth % 2 or width % heads:
            raise ValueError(f"the text decoder needs an even depth and a width that heads divide, got {depth}, and {width} over {heads}")
        self.length, self.heads = length, heads
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))
        self.positions = nn.Parameter(torch.empty(length, width))
        self.class_token = nn.Parameter(torch.empty(width))
        self.unimodal = nn.ModuleList(_TextBlock(width, heads, None, generator) for _ in range(depth // 2))
        self.multimodal = nn.ModuleList(_TextBlock(width, heads, picture_width, generator) for _ in range(depth // 2))
        self.pooled_norm, self.norm = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        with torch.no_grad():
            for table in (self.embedding, self.positions, self.class_token):
                table.normal_(0, 0.02, generator=generator)

    def read(self, ids: Tensor, present: Tensor) -> Text:
        """int64 [B, T] and bool [B, T], False on padding, which stands behind the text -> the first half's output."""
        B, T = ids.shape
        if self.length < T:
            raise ValueError(f"captions of {T} tokens, the text decoder has positions for {self.length}; cut them or make it longer")
        x = torch.cat([self.embedding[ids] + self.positions[:T], self.class_token.expand(B, 1, -1)], dim=1)
        seen = torch.ones(T + 1, T + 1, dtype=torch.bool, device=ids.device).tril().repeat(B, 1, 1)
        seen[:, T, :T] = present
        for block in self.unimodal:
            x = block(x, seen[:, None])
        return Text(x[:, :T], self.pooled_norm(x[:, T]))

    def logits(self, text: Text, picture: Tensor) -> Tensor:
        """The second half: [B, T, V], at each place for the token behind it; `picture` [B, Q, C]."""
        x = text.tokens
        for block in self.multimodal:
            x = block(x, None, picture)
        logits: Tensor = self.norm(x) @ self.embedding.T
        return logits

    def begin(self, picture: Tensor) -> Memory:
        """An empty memory with the keys and values of the picture [B, Q, C]."""
        B, D, K = len(picture), self.embedding.shape[1], self.heads
        room = [picture.new_empty(2, B, K, self.length, D // K) for _ in range(len(self.unimodal) + len(self.multimodal))]
        read = [block.picture_keys(picture) for block in self.multimodal if isinstance(block, _TextBlock)]
        return Memory([(keys, values) for keys, values in room], read, 0)

    def step(self, ids: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The next token of every caption, int64 [B] -> logits [B, V] for the one behind it, and the memory with it."""
        at = memory.tokens
        if at >= self.length:
            raise ValueError(f"captions of {at + 1} tokens, the text decoder has positions for {self.length}; stop earlier")
        x = (self.embedding[ids] + self.positions[at])[:, None]
        for number, block in enumerate([*self.unimodal, *self.multimodal]):
            read = memory.picture[number - len(self.unimodal)] if number >= len(self.unimodal) else None
            assert isinstance(block, _TextBlock)
            x = block.step(x, memory.own[number], at, read)
        return self.norm(x[:, 0]) @ self.embedding.T, memory._replace(tokens=at + 1)


class _TextBlock(nn.Module):
    """Pre-norm: causal self-attention, then, in the second half, cross-attention to the picture, then an MLP."""

    def __init__(self, width: int, heads: int, picture_width: int | None, generator: torch.Generator | None) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        layers = [self.qkv, self.out, self.up, self.down]
        if picture_width is not None:
            self.cross_norm = nn.LayerNorm(width, eps=EPSILON)
            self.cross_query, self.cross_out = nn.Linear(width, width), nn.Linear(width, width)
            self.cross_keys = nn.Linear(picture_width, 2 * width)  # keys, values
            layers += [self.cross_query, self.cross_out, self.cross_keys]
        with torch.no_grad():
            for layer in layers:
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                layer.bias.zero_()

    def forward(self, x: Tensor, seen: Tensor | None, picture: Tensor | None = None) -> Tensor:
        """`seen`, bool [B, 1, T, T], says which keys count; None: those before and the token itself."""
        query, key, value = self._own(x)
        mixed = attend(query, key, value, seen, causal=seen is None)
        return self._behind(x + self.out(_joined(mixed)), None if picture is None else self.picture_keys(picture))

    def step(self, x: Tensor, own: tuple[Tensor, Tensor], at: int, picture: tuple[Tensor, Tensor] | None) -> Tensor:
        """One token [B, 1, D], behind `at` others whose keys and values are in `own`; its own join them."""
        query, *new = self._own(x)
        for room, part in zip(own, new, strict=True):
            room[:, :, at] = part[:, :, 0]
        key, value = (room[:, :, : at + 1] for room in own)
        return self._behind(x + self.out(_joined(attend(query, key, value))), picture)

    def picture_keys(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the picture."""
        key, value = self.cross_keys(picture).chunk(2, dim=-1)
        return _split(key, self.heads), _split(value, self.heads)

    def _behind(self, x: Tensor, picture: tuple[Tensor, Tensor] | None) -> Tensor:
        """What follows the self-attention."""
        if picture is not None:
            query = _split(self.cross_query(self.cross_norm(x)), self.heads)
            x = x + self.cross_out(_joined(attend(query, *picture)))
        out: Tensor = x + self.down(F.gelu(self.up(self.mlp_norm(x))))
        return out

    def _own(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (_split(each, self.heads) for each in self.qkv(self.norm(x)).chunk(3, dim=-1))
        return query, key, value


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, T, D] -> [B, K, T, E]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """[B, K, T, E] -> [B, T, D]."""
    return x.transpose(1, 2).flatten(2)
