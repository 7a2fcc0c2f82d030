"""A learner of encoders that is looked at while it learns: the k-NN accuracy of its features, every so many steps, among its metrics."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.stages.encoder_features import features_of
from worldloom.stages.encoder_learner import EncoderLearner
from worldloom.stages.encoder_scores import weighted_knn
from worldloom.stages.labels import Labels
from worldloom.stages.learner import Player, Turn
from worldloom.stages.picture_batches import Pictures
from worldloom.stages.value_batches import Values, spaced

BANK, QUERIES = 1_000, 500  # pictures, at most: a curve is to cost little


class Watched:
    """Learns as `learner` does. The curve's points are taken before the step that they stand at, the first before any.

    Every rank takes them: they would wait for each other anyway.
    """

    def __init__(self, learner: EncoderLearner, bank: Values, queries: Values, labels: Labels, every: int) -> None:
        self.learner, self.labels, self.every = learner, labels, every
        self.bank, self.queries = (bank, spaced(len(bank), BANK)), (queries, spaced(len(queries), QUERIES))

    @property
    def players(self) -> tuple[Player, ...]:
        return self.learner.players

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        accuracy = self.accuracy() if step == 0 or (step + 1) % self.every == 0 else None
        for turn in self.learner.turns(batch, step):
            yield turn if accuracy is None else turn._replace(metrics={**turn.metrics, "knn": accuracy})
            accuracy = None

    def state(self) -> dict[str, Any]:
        return self.learner.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.learner.load_state(state)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Share of the queries that their neighbours in the bank name rightly."""
        encoder = self.learner.judged
        learning = encoder.training
        encoder.eval()
        features, answers = [], []
        for values, index in (self.bank, self.queries):
            features.append(features_of(values, index, self._pooled))
            answers.append(torch.from_numpy(self.labels.of[values.split][values.samples[index]]))
        encoder.train(learning)
        named = weighted_knn(features[0], answers[0], features[1], len(self.labels.classes))
        return float(np.mean((named == answers[1]).numpy()))

    def _pooled(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.learner.judged(x.to(self.learner.device)).pooled
        return pooled.float().cpu()
