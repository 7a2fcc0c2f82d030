"""CoCa in open_clip's design, written plainly: one attentional pooler whose first query is the contrastive vector, torch's own attention
modules with additive masks, a text tower and a multimodal decoder of alternating self- and cross-attention blocks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, TEXT_WIDTH, VOCABULARY, LENGTH, QUERIES = 384, 256, 1_024, 32, 32


class Residual(nn.Module):
    """Pre-norm attention through nn.MultiheadAttention, keys and values normed apart where they come from elsewhere, then an MLP."""

    def __init__(self, width: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.outer_norm = nn.LayerNorm(width) if cross else None
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, outer: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        query = self.norm(x)
        keys = query if outer is None or self.outer_norm is None else self.outer_norm(outer)
        x = x + self.attention(query, keys, keys, need_weights=False, attn_mask=mask)[0]
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class CocaPeer(nn.Module):
    """Pictures of 64 pixels, patches of 8; three text blocks, three multimodal pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8, bias=False)
        self.class_token = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.positions = nn.Parameter(torch.randn(65, WIDTH) * 0.02)
        self.pre_norm, self.post_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(TEXT_WIDTH)
        self.blocks = nn.ModuleList(Residual(WIDTH, 6) for _ in range(4))
        self.queries = nn.Parameter(torch.randn(QUERIES + 1, TEXT_WIDTH))
        self.pool = nn.MultiheadAttention(TEXT_WIDTH, 4, kdim=WIDTH, vdim=WIDTH, batch_first=True)
        self.query_norm, self.key_norm = nn.LayerNorm(TEXT_WIDTH), nn.LayerNorm(WIDTH)
        self.projection = nn.Parameter(torch.randn(TEXT_WIDTH, TEXT_WIDTH) * TEXT_WIDTH**-0.5)
        self.embedding = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.text_positions = nn.Parameter(torch.randn(LENGTH + 1, TEXT_WIDTH) * 0.01)
        self.text_class = nn.Parameter(torch.randn(TEXT_WIDTH) * 0.01)
        self.text_blocks = nn.ModuleList(Residual(TEXT_WIDTH, 4) for _ in range(3))
        self.text_norm = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(torch.randn(TEXT_WIDTH, TEXT_WIDTH) * TEXT_WIDTH**-0.5)
        self.own = nn.ModuleList(Residual(TEXT_WIDTH, 4) for _ in range(3))
        self.cross = nn.ModuleList(Residual(TEXT_WIDTH, 4, cross=True) for _ in range(3))
        self.out_norm = nn.LayerNorm(TEXT_WIDTH)
        self.out = nn.Parameter(torch.randn(TEXT_WIDTH, VOCABULARY) * 0.02)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode(self, pixels: Tensor) -> Tensor:
        return F.normalize(self._picture(pixels)[0], dim=-1)

    def _picture(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        x = self.pre_norm(x)
        for block in self.blocks:
            x = block(x)
        keys = self.key_norm(x)
        queries = self.query_norm(self.queries).expand(len(x), -1, -1)
        pooled = self.post_norm(self.pool(queries, keys, keys, need_weights=False)[0])
        return pooled[:, 0] @ self.projection, pooled[:, 1:]

    def loss(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Contrastive + 2 x captions."""
        vector, tokens = self._picture(pixels)
        x = torch.cat([self.embedding(ids), self.text_class.expand(len(ids), 1, -1)], 1) + self.text_positions
        T = x.shape[1]
        # As in open_clip: a causal mask as numbers, repeated for every head.
        causal = torch.full((T, T), -torch.inf, dtype=x.dtype).triu(1)
        mask = causal.expand(len(ids) * 4, T, T).contiguous()
        for block in self.text_blocks:
            x = block(x, mask=mask)
        text, x = self.text_norm(x[:, -1]) @ self.text_projection, x[:, :-1]
        mask = torch.full((T - 1, T - 1), -torch.inf, dtype=x.dtype).triu(1)
        for own, cross in zip(self.own, self.cross, strict=True):
            x = cross(own(x, mask=mask), tokens)
        logits = self.out_norm(x) @ self.out
        scores = self.log_scale.exp() * F.normalize(vector, dim=-1) @ F.normalize(text, dim=-1).T
        right = torch.arange(len(ids))
        contrastive = (F.cross_entropy(scores.float(), right) + F.cross_entropy(scores.T.float(), right)) / 2
        return contrastive + 2 * F.cross_entropy(logits[:, :-1].permute(0, 2, 1).float(), ids[:, 1:])
