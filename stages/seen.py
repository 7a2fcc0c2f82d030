"""Pictures with their features: what a picture is called, shows and says, by its number."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.dataset import Dataset
from worldloom.stages.features import FeatureSet
from worldloom.stages.streams import kind_of


class Seen(NamedTuple):
    """Pictures with their features."""

    features: FeatureSet
    data: Dataset

    def key(self, number: int) -> str:
        """split/key of the picture's sample."""
        place = self.features.place(number)
        return f"{place.split}/{self.data.reader(place.split, place.shard, self.features.stream).key(place.sample)}"

    def caption(self, number: int) -> str:
        """Of the first stream of text that the picture's sample has; "" where it has none."""
        place = self.features.place(number)
        for name, stream in self.data.streams.items():
            content = self.data.reader(place.split, place.shard, name).content(place.sample) if stream.kind == "text" else None
            if content is not None:
                return bytes(content).decode("utf-8")
        return ""

    def picture(self, number: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]."""
        place, stream = self.features.place(number), self.data.streams[self.features.stream]
        content = self.data.reader(place.split, place.shard, self.features.stream).content(place.sample)
        assert content is not None, "it was embedded"
        picture: NDArray[np.uint8] = kind_of(stream.kind).decode(content, stream)
        return picture

    def pictures(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 [B, H, W, 3]."""
        return np.stack([self.picture(number) for number in numbers.tolist()])
