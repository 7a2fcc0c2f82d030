"""What features are worth: their neighbours' labels, a linear probe, and finding the other half of pairs.

N bank, M queries, D width, K classes. Features may be bare pixels: D is worked through some columns at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

AT_ONCE = 1024  # queries that are compared with the whole bank together
COLUMNS = 2048  # numbers of a row that are copied together
NEIGHBOURS, TEMPERATURE = 20, 0.07  # of DINO's classifier (arXiv:2104.14294, section 4.1)
PROBE_STEPS, PROBE_DECAY = 200, 1e-3
HARDLY = 1e-10  # of the product of a row with itself, added to it: where pictures are there twice, products alone have no root


class Recalls(NamedTuple):
    """Share of queries whose own half is among the k nearest."""

    to_captions: float
    to_pictures: float


def weighted_knn(
    bank: Tensor, labels: Tensor, queries: Tensor, classes: int, neighbours: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """int64 [M]: the class with most votes among the nearest by cosine, a vote counting exp(cosine / temperature)."""
    _can_be_told_apart(bank, labels, classes)
    found = []
    for part in torch.split(queries, AT_ONCE):
        near = _cosines(part, bank).topk(min(neighbours, len(bank)), dim=1)
        votes = torch.zeros(len(part), classes, dtype=torch.float64)
        votes.scatter_add_(1, labels[near.indices], ((near.values.double() - 1) / temperature).exp())
        found.append(votes.argmax(1))
    return torch.cat(found) if found else labels[:0]


def _cosines(queries: Tensor, bank: Tensor) -> Tensor:
    """float32 [M, N]."""
    products, lengths = torch.zeros(len(queries), len(bank)), [torch.zeros(len(rows)) for rows in (queries, bank)]
    for both in zip(torch.split(queries, COLUMNS, 1), torch.split(bank, COLUMNS, 1), strict=True):
        asked, known = (columns.float() for columns in both)
        products += asked @ known.T
        lengths = [length + columns.square().sum(1) for length, columns in zip(lengths, (asked, known), strict=True)]
    of_queries, of_bank = (length.sqrt().clamp(min=1e-12) for length in lengths)
    return products / of_queries[:, None] / of_bank


def linear_probe(features: Tensor, labels: Tensor, queries: Tensor, classes: int) -> Tensor:
    """int64 [M]: what a linear classifier, trained on the bank with whitened numbers and a little decay, says; always the same."""
    _can_be_told_apart(features, labels, classes)
    x, asked = _whitened(features, queries)
    with torch.inference_mode(False), torch.enable_grad():
        x, wanted = x.clone(), labels.clone()
        weight = torch.zeros(classes, x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weight[:, 1:].T + weight[:, 0], wanted) + PROBE_DECAY * weight[:, 1:].square().sum() / 2
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    learnt = weight.detach()
    return (asked @ learnt[:, 1:].T + learnt[:, 0]).argmax(1)


def _whitened(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """float64 [N, d] and [M, d]: of the bank's mean and spread, d being the smaller of D and N.

    Of rows x with more numbers than there are rows only the products count, x x^T = L L^T, and L stands for x: the weights of a
    classifier that decays lie in the space of the rows it learns from, so that it says the same.
    """
    N, D = bank.shape
    if D <= N:
        known, asked = zip(*_white_columns(bank, queries), strict=True)
        return torch.cat(known, 1), torch.cat(asked, 1)
    own, others = (torch.zeros(len(rows), N, dtype=torch.float64) for rows in (bank, queries))
    for x, q in _white_columns(bank, queries):
        own += x @ x.T
        others += q @ x.T
    own.diagonal().add_(HARDLY * D)
    L = torch.linalg.cholesky(own)
    return L, torch.linalg.solve_triangular(L, others.T, upper=False).T


def _white_columns(bank: Tensor, queries: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some columns of both at a time."""
    for known, asked in zip(torch.split(bank, COLUMNS, 1), torch.split(queries, COLUMNS, 1), strict=True):
        known, asked = known.double(), asked.double()
        mean, spread = known.mean(0), known.std(0, correction=0).clamp(min=1e-6)
        yield (known - mean) / spread, (asked - mean) / spread


def _can_be_told_apart(bank: Tensor, labels: Tensor, classes: int) -> None:
    """ValueError where there is nothing to compare with, or nothing to tell apart."""
    if not len(bank):
        raise ValueError("the reference set is empty: there are no pictures with labels to compare with; train on some")
    if classes < 2:
        raise ValueError(f"there is {classes} class only, and nothing to tell apart; give labels of two classes at least")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {int(labels.min())} .. {int(labels.max())}; count the classes anew")


def recalls(pictures: Tensor, captions: Tensor, k: int) -> Recalls:
    """Of pairs [N, D] each, by cosine; an equally near stranger counts against the pair, and so does one that is no number."""
    scores = F.normalize(pictures.float(), dim=1) @ F.normalize(captions.float(), dim=1).T
    own = scores.diagonal()
    nearer = [(~(scores < own[:, None])).sum(1), (~(scores < own[None])).sum(0)]
    return Recalls(*(float((each <= k).double().mean()) for each in nearer))
