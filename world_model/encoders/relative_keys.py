"""Relative positions as vectors that queries meet: clipped, added to the keys (arXiv:1803.02155, section 3.2), or in two phases
(arXiv:2010.11929, appendix D.4).

B batch, K heads, T = P + N tokens of which P are prefix tokens, h x w grid, E width of a head. Pairs with a prefix token get nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RelativeKeys(nn.Module):
    """Scores q (k + a) / sqrt(E): a is the vector of the clipped offset, the sum of one for rows and one for columns; heads share them.

    A sequence is a grid of one row. Any grid will do, because offsets beyond `furthest` share a vector.
    """

    undecayed = ("rows", "columns")

    def __init__(self, head_width: int, furthest: int = 16, generator: torch.Generator | None = None) -> None:
        """Drawn from `generator`: N(0, 0.02)."""
        super().__init__()
        self.furthest = furthest
        self.rows, self.columns = (nn.Parameter(torch.empty(2 * furthest + 1, head_width)) for _ in range(2))
        with torch.no_grad():
            for table in (self.rows, self.columns):
                table.normal_(0, 0.02, generator=generator)

    def forward(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys as they are; bias [B, K, T, T]."""
        h, w = grid
        prefix = query.shape[2] - h * w
        places = query[:, :, prefix:].reshape(*query.shape[:2], h, w, -1)
        along_rows = torch.einsum("bkrce,rse->bkrcs", places, self.rows[self._clipped(h, query.device)])
        along_columns = torch.einsum("bkrce,cde->bkrcd", places, self.columns[self._clipped(w, query.device)])
        bias = (along_rows[..., None] + along_columns[..., None, :]) / query.shape[-1] ** 0.5
        return query, key, F.pad(bias.flatten(4).flatten(2, 3), (prefix, 0, prefix, 0))

    def _clipped(self, length: int, device: torch.device) -> Tensor:
        """int64 [length, length]: key's place - query's, clipped and counted from zero."""
        at = torch.arange(length, device=device)
        return (at[None] - at[:, None]).clamp(-self.furthest, self.furthest) + self.furthest


class TwoPhase(nn.Module):
    """Phase 1: the content's queries meet embeddings of offsets p_q - p_k along the sequence as keys, which gives logits for every pair;
    phase 2: those are a bias to the logits of the content, before the one softmax. Heads share the embeddings."""

    undecayed = ("table",)

    def __init__(self, head_width: int, tokens: int, generator: torch.Generator | None = None) -> None:
        """Drawn from `generator`: N(0, 0.02). `tokens` is N: offsets along another grid mean something else."""
        super().__init__()
        self.tokens = tokens
        self.table = nn.Parameter(torch.empty(2 * tokens - 1, head_width))
        with torch.no_grad():
            self.table.normal_(0, 0.02, generator=generator)

    def forward(self, query: Tensor, key: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys as they are; bias [B, K, T, T]."""
        N = grid[0] * grid[1]
        if self.tokens != N:
            raise ValueError(
                f"two-phase relative positions were made for {self.tokens} patches, the picture has {N}; bring pictures to that size, "
                f"or choose relation 'relative_bias', 'relative_keys' or 'rotary'"
            )
        prefix = query.shape[2] - N
        met = query[:, :, prefix:] @ self.table.T / query.shape[-1] ** 0.5  # [B, K, N, 2 N - 1]
        at = torch.arange(N, device=query.device)
        offsets = (at[:, None] - at[None] + N - 1).expand(*met.shape[:2], N, N)
        return query, key, F.pad(met.gather(3, offsets), (prefix, 0, prefix, 0))
