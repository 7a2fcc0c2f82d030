"""A tokenizer of pictures that serves clips, frame by frame: streams of pictures and of clips then share one codebook."""

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from worldloom.tokenizers.image import ImageTokenizer


class EachFrame:
    """Clips, uint8 [B, frames, height, width, 3], to codes [B, frames, *those of a picture]."""

    kind: ClassVar[str] = "video"

    def __init__(self, picture: ImageTokenizer, frames: int, frame_rate: float) -> None:
        self.picture, self.frames, self.frame_rate = picture, frames, frame_rate

    @property
    def codebook_size(self) -> int:
        return self.picture.codebook_size

    @property
    def levels(self) -> int:
        return self.picture.levels

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frames, *self.picture.shape

    @property
    def form(self) -> dict[str, Any]:
        return {**self.picture.form, "frames": self.frames, "frame_rate": self.frame_rate}

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Of every frame, and how many there are."""
        return {**self.picture.preprocessing, "num_frames": self.frames, "fps": self.frame_rate}

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the tokenizer's own and the number of frames."""
        return hashlib.sha256(f"{self.picture.fingerprint} each of {self.frames} frames".encode()).hexdigest()

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.int64]:
        """ValueError for frames of another number or size."""
        if batch.ndim != 5 or batch.shape[1] != self.frames:
            raise ValueError(f"this tokenizer reads clips of {self.frames} frames [B, {self.frames}, height, width, 3], got {batch.shape}")
        codes: NDArray[np.int64] = self.picture.encode(batch.reshape(-1, *batch.shape[2:])).reshape(len(batch), *self.shape)
        return codes

    def decode(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        """Codes [B, *shape] -> clips; ValueError for another shape."""
        if tuple(codes.shape[1:]) != self.shape:
            raise ValueError(f"this tokenizer reads codes [B, {', '.join(map(str, self.shape))}], got {tuple(codes.shape)}")
        pictures: NDArray[np.uint8] = self.picture.decode(codes.reshape(-1, *self.picture.shape))
        return pictures.reshape(len(codes), self.frames, *pictures.shape[1:])

    def save_pretrained(self, folder: Path) -> None:
        """Writes the tokenizer of pictures: how many frames a clip has is the stream's business."""
        self.picture.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """A clip of one frame at a time."""
        return cls(ImageTokenizer.from_pretrained(folder), frames=1, frame_rate=1.0)
