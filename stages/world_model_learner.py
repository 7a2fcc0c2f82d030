"""The world model's mathematics for the training loop: documents in, one loss of every objective out."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from worldloom.stages.learner import Mean, Player, Turn
from worldloom.stages.order import uniform
from worldloom.stages.token_batches import TokenBatch
from worldloom.world_model.example import Example, join
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.masked import masked
from worldloom.world_model.next_token import ORDER, next_token
from worldloom.world_model.span import span
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.weave import Woven

_OBJECTIVE = 3  # what a draw is for; others are in token_batches

Name = Literal["next_token", "masked", "span"]
# (woven documents, grammar, their places, seed) -> example
Objective = Callable[[Woven, Grammar, "np.ndarray", int], Example]


def objectives(shares: Mapping[Name, float], full_share: float, weights: Mapping[str, float]) -> dict[str, tuple[Objective, float]]:
    """What each named objective makes of a document, and the share of documents that it gets."""
    of_streams = {name: weight for name, weight in weights.items() if name != ORDER}
    known: dict[Name, Objective] = {
        "next_token": partial(next_token, full_share=full_share, weights=weights),
        "masked": partial(masked, weights=of_streams),
        "span": partial(span, full_share=full_share, weights=of_streams),
    }
    return {name: (known[name], share / sum(shares.values())) for name, share in shares.items()}


class WorldModelLearner:
    """One player. A document serves one objective, drawn for its place; the loss is a mean over all labels of the global batch.

    Documents of all objectives lie in one batch and go through the model together.
    """

    def __init__(
        self, model: WorldModel, grammar: Grammar, player: Player, objectives: Mapping[str, tuple[Objective, float]], seed: int, parts: int
    ) -> None:
        """`player` holds `model`; `parts`: backward passes that a rank's batch is split into."""
        assert player.module is model
        self.model = model
        self.grammar = grammar
        self.players = (player,)
        self.objectives = dict(objectives)
        self.seed = seed
        self.parts = parts

    def turns(self, batch: TokenBatch, step: int) -> Iterator[Turn]:
        """One turn for each part of the batch."""
        device = next(self.model.parameters()).device
        shares = [batch.take(part) for part in np.array_split(np.arange(len(batch.places)), self.parts)]
        parts = [self._examples(share) for share in shares]
        weight = _over_ranks(sum(_weight(example) for examples in parts for example in examples.values()), device)
        for number, (share, examples) in enumerate(zip(shares, parts, strict=True)):
            there = {name: example.to(device) for name, example in examples.items()}
            # Every token but a document's first is predicted; examples leave out some whose prediction cannot be wrong.
            predicted = int(share.woven.lengths.sum()) - len(share.places)
            yield self._turn(there, weight, predicted, last=number == len(parts) - 1)

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

    def _turn(self, examples: Mapping[str, Example], weight: float, predicted: int, last: bool) -> Turn:
        metrics: dict[str, Mean] = {}
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        example = join(examples)
        found = self.model.losses(example)
        for choice, nats, labels in zip(example.choices, found.sums, found.counts, strict=True):
            objective, _, stream = choice.name.partition(".")
            plain = stream if objective == "next_token" else choice.name
            for series in (f"loss/{plain}", *([f"loss/{objective}"] if len(examples) > 1 else [])):
                other = metrics.get(series)
                metrics[series] = Mean(nats, labels) if other is None else Mean(other.total + nats, other.weight + labels)
        name = next(iter(examples)) if len(examples) == 1 else "all"
        losses = {name: found.total * (ranks / max(weight, 1.0))}
        return Turn(self.players[0].name, losses, metrics, {"tokens": predicted}, step=last)


def _weight(example: Example) -> float:
    return float(sum(example.weights[choice.places].double().sum() for choice in example.choices))


def _over_ranks(value: float, device: torch.device) -> float:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(box)
    return float(box)
