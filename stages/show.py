"""A value on a card: a picture, a clip that moves, a sound with the picture of it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worldloom.stages.card import write_clip, write_picture, write_sound
from worldloom.stages.settings import AudioStream, ImageStream, Stream, VideoStream

SIDE = 192  # pixels of a picture on a card, at most: a card of photographs must stay a page that one can mail
SHOWN_KINDS = frozenset({"image", "video", "audio"})


class Shown(NamedTuple):
    """Files inside the artifact."""

    file: str  # a picture
    sound: str | None


def show(out: Path, name: str, value: Any, stream: Stream) -> Shown | None:
    """Writes what shows the value, and brings pictures to SIDE where they are larger; None for texts and actions."""
    if isinstance(stream, VideoStream):
        return Shown(write_clip(out, name, value, stream.frame_rate), None)
    if isinstance(stream, AudioStream):
        block = write_sound(out, name, value, stream.sample_rate, name)
        return Shown(block.picture, block.file)
    if isinstance(stream, ImageStream):
        return Shown(write_picture(out, name, _small(value)), None)
    return None


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    if max(height, width) <= SIDE:
        return picture
    size = (max(1, width * SIDE // max(height, width)), max(1, height * SIDE // max(height, width)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
