"""What a world sees of each sample ahead of its tokens: features that a stage kept, found by the sample's key."""

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.features import FeatureSet


class Sights:
    """Features [B, T, W] of samples of a set of tokens."""

    def __init__(self, artifact: Artifact, tokens: Tokens) -> None:
        """`artifact` is that of embed_dataset; ValueError where it embeds another dataset than that of the tokens."""
        self.features, self.tokens = FeatureSet(artifact), tokens
        ours, theirs = (one.inputs["data"] for one in (tokens.artifact, artifact))
        if ours["fingerprint"] != theirs["fingerprint"]:
            raise ValueError(
                f"sees.features: {artifact.name} embeds {theirs['stage']}, the tokens are of {ours['stage']}; embed {ours['stage']}"
            )
        self.count, self.width = self.features.tokens or 1, self.features.width
        self._data = Dataset(artifact.input("data"))
        self._places: dict[str, tuple[list[str], NDArray[np.int64], NDArray[np.int64]]] = {}
        self._open: dict[tuple[str, str], NDArray[np.floating]] = {}

    def of(self, split: str, samples: NDArray[np.int64]) -> NDArray[np.float32]:
        """[B, T, W]; NaN for samples without the picture, and for crops, of which nobody has features."""
        names, shards, rows = self._index(split)
        seen = np.full((len(samples), self.count, self.width), np.nan, np.float32)
        for number in np.unique(shards[samples]).tolist():
            mine = np.flatnonzero((shards[samples] == number) & (rows[samples] >= 0))
            if len(mine):
                seen[mine] = self._shard(split, names[number])[rows[samples[mine]]].reshape(len(mine), self.count, self.width)
        return seen

    def _index(self, split: str) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """Of a split: its shards, and for every sample of the tokens the number of its shard and its row there, -1 where there is none."""
        if split not in self._places:
            embedded = {part.shard for part in self.features.parts if part.split == split}
            names, shards, rows = list(self.tokens.shards(split)), list[NDArray[np.int64]](), list[NDArray[np.int64]]()
            for number, name in enumerate(names):
                keys = self.tokens.reader(split, name, next(iter(self.tokens.streams))).keys
                shards.append(np.full(len(keys), number, np.int64))
                rows.append(self._rows(split, name, keys) if name in embedded else np.full(len(keys), -1, np.int64))
            empty = np.zeros(0, np.int64)
            self._places[split] = names, np.concatenate([empty, *shards]), np.concatenate([empty, *rows])
        return self._places[split]

    def _rows(self, split: str, shard: str, keys: list[str]) -> NDArray[np.int64]:
        reader = self._data.reader(split, shard, self.features.stream)
        row_of = {reader.key(sample): row for row, sample in enumerate(self.features.samples(split, shard).tolist())}
        return np.array([row_of.get(key, -1) for key in keys], np.int64)

    def _shard(self, split: str, shard: str) -> NDArray[np.floating]:
        if (split, shard) not in self._open:
            self._open[split, shard] = self.features.shard(split, shard)
        return self._open[split, shard]
