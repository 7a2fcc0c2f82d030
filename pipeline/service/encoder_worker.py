"""An encoder at work in a replica: pictures to embeddings, and the samples of a dataset that are most like one.

Embeddings are those of embed_dataset where the run has a set of features of this encoder: the same function, the same padded batch.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.pipeline.service.contract import EncoderInfo
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.served import EncoderPlace
from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset
from worldloom.stages.embed_dataset import embedded
from worldloom.stages.eye import Keep, open_eye
from worldloom.stages.features import FeatureSet
from worldloom.stages.nearest import exact_anywhere
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ImageStream
from worldloom.stages.streams import kind_of

TOGETHER = 16  # pictures, where no set of features says another number


class Likeness(NamedTuple):
    """A sample that is alike."""

    key: str
    split: str
    score: float


class EncoderWorker:
    """Safe for several threads."""

    def __init__(self, place: EncoderPlace) -> None:
        artifact = Artifact.open(Path(place.folder))
        self.name, self.fingerprint, self.eye = place.name, artifact.fingerprint, open_eye(artifact)
        self.stream = ImageStream(kind="image", size=self.eye.side)
        self.keep: Keep = "pooled"
        self.batch = TOGETHER
        self.features: FeatureSet | None = None
        if place.features is not None:
            made = Artifact.open(Path(place.features))
            self.features, self.data = FeatureSet(made), Dataset(made.input("data"))
            self.batch = int(made.settings["batch_size"])
            self.keep = "joint" if self.features.keep == "joint" else "pooled"
            stream = self.data.streams[self.features.stream]
            assert isinstance(stream, ImageStream)
            self.stream = stream
        self._working = threading.Lock()

    def about(self) -> EncoderInfo:
        """What there is to know of it."""
        return EncoderInfo(
            name=self.name,
            fingerprint=self.fingerprint,
            width=self.eye.form(self.keep)[0],
            size=(self.stream.height, self.stream.width),
            indexed=0 if self.features is None else len(self.features),
            reads_texts=self.keep == "joint",
        )

    def embed(self, contents: Sequence[bytes]) -> NDArray[np.float32]:
        """float32 [B, D]; InputRejected names what is wrong with a picture, and `which` of them it is."""
        pictures = []
        for number, content in enumerate(contents):
            try:
                pictures.append(kind_of("image").decode(content, self.stream))
            except InputRejected as refused:
                raise ServiceError.of(refused, f"input[{number}]") from None
        with self._working:
            parts = [
                embedded(self.eye, np.stack(pictures[first : first + self.batch]), self.batch, self.keep)
                for first in range(0, len(pictures), self.batch)
            ]
        return np.concatenate(parts)

    def read(self, text: str) -> NDArray[np.float32]:
        """float32 [D] of a text, where pictures are compared with texts."""
        if self.keep != "joint":
            raise ServiceError("request_invalid", 422, "this encoder compares no texts; give a picture", "text")
        try:
            with self._working:
                found: NDArray[np.float32] = self.eye.reads_texts.texts([text]).float().cpu().numpy()[0]
        except ValueError as error:
            raise ServiceError("text_too_long", 413, str(error), "text") from None
        return found

    def search(self, content: bytes | None, text: str | None, vector: Sequence[float] | None, top: int) -> list[Likeness]:
        """The samples whose embeddings have the highest cosine, the most alike first."""
        if self.features is None:
            raise ServiceError("index_unknown", 404, "the run has no features of this encoder; add a stage embed_dataset", "encoder")
        if content is not None:
            query: Any = self.embed([content])[0]
        else:
            query = self.read(text) if text is not None else np.asarray(vector, np.float64)
        if query.shape != (self.features.width,) or not np.isfinite(query).all():
            raise ServiceError("request_invalid", 422, f"an embedding is {self.features.width} finite numbers", "embedding")
        unit = (query / max(float(np.linalg.norm(query)), 1e-12)).astype(np.float32)[None]
        numbers, cosines = exact_anywhere(self.features, unit, min(top, len(self.features)))
        return [self._likeness(int(number), float(cosine)) for number, cosine in zip(numbers[0], cosines[0], strict=True) if number >= 0]

    def _likeness(self, number: int, cosine: float) -> Likeness:
        assert self.features is not None
        place = self.features.place(number)
        key = self.data.reader(place.split, place.shard, self.features.stream).key(place.sample)
        return Likeness(key, place.split, cosine)
