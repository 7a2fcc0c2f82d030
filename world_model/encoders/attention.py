"""Attention as each device does it best.

On a CPU in bfloat16 torch's fused attention is slow, backward above all: two products and a softmax take a fifth to a half of its time up
to some hundred keys. Everywhere else, and for long rows, whose scores would not fit the caches, it is the fused one.

B batch (any number of axes), K heads, T queries, S keys, E width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 512  # keys that scores are written out for


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, causal: bool = False) -> Tensor:
    """[..., K, T, E], [..., K, S, E] twice -> [..., K, T, E]: softmax(query key' / sqrt(E) + bias) value.

    `bias` broadcasts to [..., K, T, S]; bool says which keys count, and every query must have one. `causal` is for T = S.
    """
    if not _by_products(query, key):
        if bias is not None:
            bias = bias.expand(*query.shape[:-1], key.shape[-2])
            bias = bias if bias.dtype == torch.bool else bias.to(query.dtype)
        if query.dim() > 4:  # the fast kernels know four axes
            q, k, v = (each.flatten(0, -4) for each in (query, key, value))
            mixed = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.flatten(0, -4), is_causal=causal)
            return mixed.view_as(query)
        return F.scaled_dot_product_attention(query, key, value, bias, is_causal=causal)
    # In one call with the product, because queries are usually a view that is slow to multiply alone.
    rows, columns = query.flatten(0, -3), key.flatten(0, -3).mT
    scores = torch.baddbmm(query.new_zeros(1, 1, 1), rows, columns, beta=0, alpha=query.shape[-1] ** -0.5).view(*query.shape[:-1], -1)
    if causal:
        bias = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias.to(scores.dtype)
    return scores.softmax(-1).to(value.dtype) @ value


def _by_products(query: Tensor, key: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= LONGEST
