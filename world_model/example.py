"""What a world model is trained on: documents one behind the other, without padding, sorted by length.

Sorting puts documents of one length side by side, so that attention sees each run of them as one dense batch: nothing is gathered, nothing
is padded, and no document can see another.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Run(NamedTuple):
    """Neighbouring documents of one length."""

    documents: int
    length: int  # tokens of each
    causal: bool = True  # whether a position sees only what stands at or before it, or its whole document


class Legal(NamedTuple):
    """Neighbouring places of a choice whose labels were chosen from the same ids, fewer than the choice's softmax is over."""

    places: int  # how many
    ranges: tuple[tuple[int, int], ...]  # the ids [first, last), none where the label was the only one
    allowed: Tensor | None  # bool [places, those ids]; None where every one is


class Choice(NamedTuple):
    """Positions whose labels were chosen from the same ids, so that one small softmax serves them all."""

    name: str  # under which the loss is reported: a stream (one choice for each of its levels), "order" or "full"
    places: Tensor  # int64 [n]: which of the example's N positions
    ranges: tuple[tuple[int, int], ...]  # the ids [first, last) that the softmax is over: its columns, in this order
    labels: Tensor  # int64 [n]: columns
    allowed: Tensor | None  # bool [n, columns]; None where every column is
    smoothing: float = 0.0  # share of the label's probability that is spread over all columns; never together with `allowed`
    # With these the softmax is over all ids, and -log of the probability of all legal ones together, a part of the cross-entropy,
    # counts `legality` times.
    legal: tuple[Legal, ...] = ()  # together all places, in order
    legality: float = 1.0


class Example(NamedTuple):
    """N positions of all documents; a label is the token behind its input or, where codes were hidden, the token itself."""

    inputs: Tensor  # int64 [N]
    labels: Tensor  # int64 [N]
    positions: Tensor  # int64 [N]: starts again at 0 with every document
    weights: Tensor  # float32 [N]: what a label counts in the loss
    legal: Tensor  # int64 [N]: the legal set of every label, as in weave
    runs: tuple[Run, ...]  # together all documents, in order
    choices: tuple[Choice, ...]  # every position at most once; one in none of them costs nothing

    @property
    def segments(self) -> Tensor:
        """int64 [N]: the number of every position's document."""
        lengths = [run.length for run in self.runs for _ in range(run.documents)]
        return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))

    def to(self, device: torch.device | str) -> "Example":
        choices = tuple(
            choice._replace(
                places=choice.places.to(device),
                labels=choice.labels.to(device),
                allowed=None if choice.allowed is None else choice.allowed.to(device),
                legal=tuple(one._replace(allowed=None if one.allowed is None else one.allowed.to(device)) for one in choice.legal),
            )
            for choice in self.choices
        )
        tensors = {name: getattr(self, name).to(device) for name in ("inputs", "labels", "positions", "weights", "legal")}
        return self._replace(**tensors, choices=choices)


def join(examples: Mapping[str, Example]) -> Example:
    """One example of several, so that one pass serves them all; choices are named after their example's key: "masked.frame"."""
    sizes = [len(example.inputs) for example in examples.values()]
    choices = [
        choice._replace(name=f"{key}.{choice.name}", places=choice.places + first)
        for (key, example), first in zip(examples.items(), np.cumsum([0, *sizes]).tolist(), strict=False)
        for choice in example.choices
    ]
    parts = list(examples.values())
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "labels", "positions", "weights", "legal")}
    return Example(**tensors, runs=tuple(run for part in parts for run in part.runs), choices=tuple(choices))


def runs_of(lengths: np.ndarray) -> tuple[Run, ...]:
    """The runs of neighbouring equal `lengths`, those of 0 left out."""
    lengths = np.asarray(lengths, dtype=np.int64)
    lengths = lengths[lengths > 0]
    first = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(first, append=len(lengths))
    return tuple(Run(int(count), int(length)) for count, length in zip(counts, lengths[first], strict=True))
