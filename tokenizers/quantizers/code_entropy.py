"""How evenly a batch uses the codes, as something that can be learnt: entropies of soft choices (arXiv:2310.05737, section 3.1).

A vector z chooses code k with p_k = softmax_k(-|z - e_k|^2 / t). K codes, D width, N vectors of this rank, T vectors a tile.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from worldloom.tokenizers.quantizers.ranks import ranks, sum_over_ranks, sum_with_gradient

PROBABILITIES = 1 << 18  # of a tile: they stay in the cache
LEAST = -60.0  # log of a probability: smaller ones count for nothing, and their products would be denormal, which are slow


class CodeEntropy(NamedTuple):
    """In nats, both between 0 and log K; they carry a gradient to the vectors, none to the codes."""

    each: Tensor  # mean over this rank's vectors of the entropy of p: how undecided a vector is
    together: Tensor  # entropy of the mean of p over the vectors of all ranks: how evenly the codes are used


def code_entropy(z_ND: Tensor, vectors_KD: Tensor, codes_N: Tensor, temperature: float) -> CodeEntropy:
    """Of float32 vectors. `temperature` is in units of the mean squared distance to the nearest code (`codes_N`) over all ranks, so that
    nothing depends on the scale of the vectors.
    """
    vectors_KD = vectors_KD.detach().clone()  # codes move before backward makes p again
    off = (z_ND.detach() - vectors_KD[codes_N]).square().sum()
    total, count = sum_over_ranks(torch.stack([off, off.new_tensor(float(len(z_ND)))]))
    unit = (total / count).clamp(min=torch.finfo(torch.float32).tiny)
    each, mean_K = cast(tuple[Tensor, Tensor], _SoftChoice.apply(z_ND, vectors_KD, temperature * unit))  # type: ignore[no-untyped-call]
    return CodeEntropy(each, entropy(sum_with_gradient(mean_K) / ranks()))


def entropy(probability_K: Tensor) -> Tensor:
    """In nats; its gradient is finite where a probability is zero."""
    return -(probability_K * probability_K.clamp(min=torch.finfo(torch.float32).tiny).log()).sum()


class _SoftChoice(torch.autograd.Function):
    """(z [N, D], e [K, D], t) -> mean entropy of p, and mean of p [K]. Backward makes p again, tile by tile: memory for N x D + K x D."""

    @staticmethod
    def forward(ctx: Any, z_ND: Tensor, vectors_KD: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z_ND, vectors_KD, t)
        total, sum_K = z_ND.new_zeros(()), z_ND.new_zeros(len(vectors_KD))
        for z_TD in _tiles(z_ND, len(vectors_KD)):
            log_TK = _log_choice(z_TD, vectors_KD, t)
            p_TK = log_TK.exp()
            total -= torch.dot(p_TK.flatten(), log_TK.flatten())
            sum_K += p_TK.sum(0)
        return total / len(z_ND), sum_K / len(z_ND)

    @staticmethod
    def backward(ctx: Any, of_each: Tensor, of_mean_K: Tensor) -> tuple[Tensor, None, None]:
        z_ND, vectors_KD, t = ctx.saved_tensors
        parts = []
        for z_TD in _tiles(z_ND, len(vectors_KD)):
            log_TK = _log_choice(z_TD, vectors_KD, t)
            p_TK = log_TK.exp()
            slope_TK = of_mean_K - of_each * log_TK  # of the sum over the tile by p, but for a constant of each row
            weighed_TK = p_TK * slope_TK
            by_logit_TK = weighed_TK.addcmul_(p_TK, weighed_TK.sum(1, keepdim=True), value=-1)
            parts.append(by_logit_TK @ vectors_KD * (2 / (t * len(z_ND))))  # rows sum to zero: of -|z - e|^2 only 2 z.e is left
        return torch.cat(parts), None, None


def _tiles(z_ND: Tensor, codes: int) -> tuple[Tensor, ...]:
    return torch.split(z_ND, max(1, PROBABILITIES // codes))


def _log_choice(z_TD: Tensor, vectors_KD: Tensor, t: Tensor) -> Tensor:
    centred_KD = vectors_KD - vectors_KD.mean(0)  # what all scores share falls out of the softmax; large numbers would cancel badly
    score_TK = torch.addmm(centred_KD.square().sum(1) / -t, (z_TD - vectors_KD.mean(0)) * (2 / t), centred_KD.T)
    return score_TK.log_softmax(1).clamp_(min=LEAST)
