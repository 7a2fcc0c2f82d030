"""Linear layer and cross-entropy in one: logits exist only for a chunk of positions, and only for the ids that their label was chosen from.

The gradient is made in the same pass, while the chunk's probabilities are at hand, so nothing of the size positions x vocabulary is ever
kept. The softmax is in fp32 whatever the weights are.

N positions, D width, V vocabulary, n positions of a chunk, C ids of a choice.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldloom.world_model.example import Choice, Legal

CHUNK = 1 << 20  # logits held at a time
LEAST_ROWS = 64  # positions of a chunk, whatever that holds
# Gradients of logits, in the type of the weights, that meet the hidden states in one product: adding its result to the gradient of the
# whole matrix is a pass over memory, and chunks small enough for the cache would take many.
GATHERED = 1 << 22


class Losses(NamedTuple):
    """Cross-entropy in nats; only `total` carries a gradient."""

    total: Tensor  # fp32 scalar: the sum over positions of weight x cross-entropy
    sums: Tensor  # fp32 [choices]: the sum of the cross-entropy for every choice, weights, smoothing and `legality` left out
    counts: Tensor  # int64 [choices]: positions of every choice
    legality: Tensor  # fp32 scalar: what of `total` is there because being legal counts more than once


def cross_entropy(hidden: Tensor, weight: Tensor, choices: Sequence[Choice], weights: Tensor) -> Losses:
    """The loss of `hidden` [N, D] under the output layer `weight` [V, D]; `weights` [N] is what a position counts."""
    total, sums, legality = _CrossEntropy.apply(hidden, weight, tuple(choices), weights, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    counts = torch.tensor([len(choice.places) for choice in choices], dtype=torch.int64)
    return Losses(total, sums, counts, legality)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, choices: tuple[Choice, ...], weights: Tensor, with_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=wide)
        sums = hidden.new_zeros(len(choices), dtype=wide)
        legality = torch.zeros_like(total)
        d_hidden = torch.zeros_like(hidden) if with_gradient else None
        d_weight = torch.zeros_like(weight, dtype=wide) if with_gradient else None
        for number, choice in enumerate(choices):
            rows_CD = _rows(weight, choice.ranges)
            step = max(LEAST_ROWS, CHUNK // len(rows_CD))
            at_once = max(step, GATHERED // len(rows_CD))
            waiting: list[tuple[Tensor, Tensor]] = []  # gradients of logits, and hidden states
            for at in range(0, len(choice.places), step):
                places = choice.places[at : at + step]
                labels = choice.labels[at : at + step, None]
                weights_n1 = weights[places, None]
                hidden_nD = hidden[places]
                logits_nC = (hidden_nD @ rows_CD.t()).to(wide)
                if choice.allowed is not None:
                    logits_nC.masked_fill_(~choice.allowed[at : at + step], -torch.inf)
                log_p_nC = torch.log_softmax(logits_nC, dim=1)
                ce_n1 = -log_p_nC.gather(1, labels)
                sums[number] += ce_n1.sum()
                if choice.smoothing:
                    ce_n1 = (1 - choice.smoothing) * ce_n1 - choice.smoothing * log_p_nC.mean(dim=1, keepdim=True)
                parts = list(parts_of(choice, at, at + len(places))) if choice.legality != 1 else []
                among = [_among(log_p_nC[rows], legal, labels[rows]) for rows, legal in parts]
                if among:
                    more_n1 = (1 - choice.legality) * torch.cat([log_p_n1 for log_p_n1, _ in among])
                    legality += (more_n1 * weights_n1).sum()
                    ce_n1 = ce_n1 + more_n1
                total += (ce_n1 * weights_n1).sum()
                if d_hidden is None or d_weight is None:
                    continue
                d_logits_nC = log_p_nC.exp_()
                if among:
                    d_logits_nC *= choice.legality
                    for (rows, legal), (_, p_nc) in zip(parts, among, strict=True):
                        _subtract(d_logits_nC[rows], legal, labels[rows], p_nc * (choice.legality - 1))
                d_logits_nC.scatter_add_(1, labels, torch.full_like(ce_n1, choice.smoothing - 1.0))
                if choice.smoothing:
                    d_logits_nC -= choice.smoothing / d_logits_nC.shape[1]
                d_logits_nC *= weights_n1
                d_logits = d_logits_nC.to(hidden.dtype)
                d_hidden.index_copy_(0, places, d_logits @ rows_CD)
                waiting.append((d_logits, hidden_nD))
                if len(waiting) * step >= at_once or at + step >= len(choice.places):
                    d_logits, hidden_nD = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*waiting, strict=True))
                    _add_rows(d_weight, choice.ranges, d_logits.t() @ hidden_nD)
                    waiting.clear()
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(sums, legality)
        return total, sums, legality

    @staticmethod
    def backward(ctx: Any, d_total: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return (d_hidden * d_total).to(d_hidden.dtype), (d_weight * d_total).to(ctx.weight_dtype), None, None, None


def parts_of(choice: Choice, first: int, last: int) -> Iterator[tuple[slice, Legal]]:
    """What of each legal set lies in the chunk [first, last) of the choice's places: rows of the chunk, and the set of just those."""
    at = 0
    for legal in choice.legal:
        begin, end = max(at, first), min(at + legal.places, last)
        if begin < end:
            allowed = None if legal.allowed is None else legal.allowed[begin - at : end - at]
            yield slice(begin - first, end - first), Legal(end - begin, legal.ranges, allowed)
        at += legal.places


def _among(log_p_nC: Tensor, legal: Legal, labels_n1: Tensor) -> tuple[Tensor, Tensor]:
    """log of the probability of all legal ids together, [n, 1], and the probabilities of each among them, [n, c]."""
    if not legal.ranges:
        log_p_n1 = log_p_nC.gather(1, labels_n1)
        return log_p_n1, torch.ones_like(log_p_n1)
    log_p_nc = torch.cat([log_p_nC[:, first:last] for first, last in legal.ranges], dim=1)
    if legal.allowed is not None:
        log_p_nc = log_p_nc.masked_fill(~legal.allowed, -torch.inf)
    log_p_n1 = log_p_nc.logsumexp(1, keepdim=True)
    return log_p_n1, (log_p_nc - log_p_n1).exp_()


def _subtract(d_logits_nC: Tensor, legal: Legal, labels_n1: Tensor, values_nc: Tensor) -> None:
    """Takes `values`, as _among orders them, from their ids."""
    if not legal.ranges:
        d_logits_nC.scatter_add_(1, labels_n1, -values_nc)
        return
    for (first, last), part in zip(
        legal.ranges, torch.split(values_nc, [last - first for first, last in legal.ranges], dim=1), strict=True
    ):
        d_logits_nC[:, first:last] -= part


def _rows(weight: Tensor, ranges: Sequence[tuple[int, int]]) -> Tensor:
    if len(ranges) == 1:
        return weight[slice(*ranges[0])]
    return torch.cat([weight[first:last] for first, last in ranges])


def _add_rows(total: Tensor, ranges: Sequence[tuple[int, int]], rows: Tensor) -> None:
    for (first, last), part in zip(ranges, torch.split(rows, [last - first for first, last in ranges]), strict=True):
        total[first:last] += part
