"""The world model's mathematics for the training loop: documents in, one loss of every objective out."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from worldloom.stages.learner import Mean, Player, Turn
from worldloom.stages.order import uniform
from worldloom.stages.token_batches import TokenBatch
from worldloom.stages.train_world_model import ObjectiveName
from worldloom.world_model.example import Example, join
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.masked import masked
from worldloom.world_model.next_token import ORDER, next_token
from worldloom.world_model.span import span
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.weave import Woven

_OBJECTIVE = 3  # what a draw is for; others are in token_batches

# (woven documents, grammar, their places, seed) -> example
Objective = Callable[[Woven, Grammar, "np.ndarray", int], Example]


class Legality(NamedTuple):
    """How often being legal counts at the labels with the softmax over all ids: once until step `begin`, then `times`; None: as if all
    labels had that softmax, which is how an objective leaves it.
    """

    times: float | None = 1.0
    begin: int = 0

    def of(self, example: Example, step: int) -> Example:
        """The example as it counts at `step`."""
        count = self.times if step >= self.begin else 1.0
        if count is None:
            return example
        return example._replace(choices=tuple(choice._replace(legality=count) if choice.legal else choice for choice in example.choices))


ONCE = Legality()


def objectives(
    shares: Mapping[ObjectiveName, float], full_share: float, weights: Mapping[str, float]
) -> dict[str, tuple[Objective, float]]:
    """What each named objective makes of a document, and the share of documents that it gets; in an order of their own: that of
    `shares` is no part of the settings.
    """
    of_streams = {name: weight for name, weight in weights.items() if name != ORDER}
    known: dict[ObjectiveName, Objective] = {
        "next_token": partial(next_token, full_share=full_share, weights=weights),
        "masked": partial(masked, weights=of_streams),
        "span": partial(span, full_share=full_share, weights=of_streams),
    }
    return {name: (make, shares[name] / sum(shares.values())) for name, make in known.items() if name in shares}


class WorldModelLearner:
    """One player. A document serves one objective, drawn for its place; the loss is a mean over all labels of the global batch or,
    with `by_stream`, the mean over the streams (and the order of streams) of the mean over each one's labels.

    Documents of all objectives lie in one batch and go through the model together.
    """

    def __init__(
        self,
        model: WorldModel,
        grammar: Grammar,
        player: Player,
        objectives: Mapping[str, tuple[Objective, float]],
        seed: int,
        parts: int,
        by_stream: bool = False,
        legality: Legality = ONCE,
    ) -> None:
        """`player` holds `model`; `parts`: backward passes that a rank's batch is split into."""
        assert player.module is model
        self.model = model
        self.grammar = grammar
        self.players = (player,)
        self.objectives = dict(objectives)
        self.seed = seed
        self.parts = parts
        self.by_stream = by_stream
        self.legality = legality

    def turns(self, batch: TokenBatch, step: int) -> Iterator[Turn]:
        """One turn for each part of the batch."""
        device = next(self.model.parameters()).device
        seen = None if batch.seen is None else torch.from_numpy(batch.seen).to(device)
        shares = [batch.take(part) for part in np.array_split(np.arange(len(batch.places)), self.parts)]
        parts = [self._examples(share) for share in shares]
        counted = [self._weights(example) for examples in parts for example in examples.values()]
        weights = _over_ranks(torch.stack(counted).sum(0), device)
        if self.by_stream:
            # What a label of each stream counts, so that all labels of all streams together count 1.
            each = torch.where(weights > 0, 1 / (weights * (weights > 0).sum()), 0.0)
            parts = [{name: self._weighted(example, each) for name, example in examples.items()} for examples in parts]
        weight = 1.0 if self.by_stream else float(weights.sum())
        for number, (share, examples) in enumerate(zip(shares, parts, strict=True)):
            there = {name: self.legality.of(example, step).to(device) for name, example in examples.items()}
            # Every token but a document's first is predicted; examples leave out some whose prediction cannot be wrong.
            predicted = int(share.woven.lengths.sum()) - len(share.places)
            yield self._turn(there, weight, predicted, number == len(parts) - 1, seen)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        assert not state

    def _examples(self, batch: TokenBatch) -> dict[str, Example]:
        shares = np.cumsum([share for _, share in self.objectives.values()])
        drawn = np.searchsorted(shares[:-1], uniform(self.seed, batch.places, _OBJECTIVE), side="right")
        examples = {}
        for number, (name, (make, _)) in enumerate(self.objectives.items()):
            mine = batch.take(np.flatnonzero(drawn == number))
            examples[name] = make(mine.woven, self.grammar, mine.places, self.seed)
        return examples

    def _weights(self, example: Example) -> Tensor:
        """The sum of the labels' weights for each stream, then for everything else, float64; labels that cost nothing left out."""
        places = torch.cat([choice.places for choice in example.choices]) if example.choices else torch.zeros(0, dtype=torch.int64)
        sums = torch.zeros(len(self.grammar.vocabulary.streams) + 1, dtype=torch.float64)
        return sums.index_add_(0, self._streams(example)[places], example.weights[places].double())

    def _weighted(self, example: Example, each: Tensor) -> Example:
        return example._replace(weights=example.weights * each[self._streams(example)].float())

    def _streams(self, example: Example) -> Tensor:
        """The number of every label's stream; one more than there are for the order of streams."""
        streams = len(self.grammar.vocabulary.streams)
        return torch.where((example.legal >= 0) & (example.legal < streams), example.legal, streams)

    def _turn(self, examples: Mapping[str, Example], weight: float, predicted: int, last: bool, seen: Tensor | None) -> Turn:
        metrics: dict[str, Mean] = {}
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        example = join(examples)
        found = self.model.losses(example, seen)
        for choice, nats, labels in zip(example.choices, found.sums, found.counts, strict=True):
            objective, _, stream = choice.name.partition(".")
            plain = stream if objective == "next_token" else choice.name
            for series in (f"loss/{plain}", *([f"loss/{objective}"] if len(examples) > 1 else [])):
                other = metrics.get(series)
                metrics[series] = Mean(nats, labels) if other is None else Mean(other.total + nats, other.weight + labels)
        name = next(iter(examples)) if len(examples) == 1 else "all"
        share = ranks / weight if weight else 0.0
        losses = {name: found.total * share}
        return Turn(
            self.players[0].name,
            losses,
            metrics,
            {"tokens": predicted, "operations": self.model.operations(example)},
            last,
            found.legality * share,
        )


def _over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sums over all ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    box = values.to(device)
    dist.all_reduce(box)
    return box.cpu()
