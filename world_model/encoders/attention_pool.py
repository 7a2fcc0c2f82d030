"""Attention pooling: learnt queries read tokens, and one vector each is left (arXiv:1810.00825; poolers of CoCa, arXiv:2205.01917).

B batch, N tokens of width C, Q queries, D width, K heads, E = D / K.
"""

import torch
from torch import Tensor, nn

from worldloom.world_model.encoders.attention import attend


class AttentionPool(nn.Module):
    """[B, N, C] -> [B, Q, D]: norm of the tokens, cross-attention of the normed queries, one map out, norm."""

    undecayed = ("queries",)

    def __init__(
        self,
        width: int,
        heads: int,
        queries: int = 1,
        context: int | None = None,
        epsilon: float = 1e-6,
        generator: torch.Generator | None = None,
    ) -> None:
        """`context` is C, D where it is not given. Queries are drawn from `generator`, N(0, 0.02), matrices Xavier-uniform."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
        self.heads = heads
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.query_norm, self.out_norm = nn.LayerNorm(width, eps=epsilon), nn.LayerNorm(width, eps=epsilon)
        self.context_norm = nn.LayerNorm(context or width, eps=epsilon)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(context or width, width), nn.Linear(context or width, width)
        with torch.no_grad():
            self.queries.normal_(0, 0.02, generator=generator)
            for layer in (self.query, self.key, self.value, self.out):
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                layer.bias.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.context_norm(tokens)
        query = self._heads(self.query(self.query_norm(self.queries)).expand(len(x), -1, -1))
        mixed = attend(query, self._heads(self.key(x)), self._heads(self.value(x)))
        pooled: Tensor = self.out_norm(self.out(mixed.transpose(1, 2).flatten(2)))
        return pooled

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, K, N, E]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
