"""Values as files that people open: what `sample` and `decode` write."""

import json
from typing import Any, NamedTuple

import numpy as np

from worldloom.stages.card import animated_png, png, wav
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, Stream, TextStream, VideoStream


class File(NamedTuple):
    """A file's ending, without the dot, and its bytes."""

    extension: str
    content: bytes


def present(value: Any, stream: Stream, scale: int = 1) -> File:
    """Text as txt, a picture as png, a clip as a png that moves, a sound as wav, actions as json: one list a step.

    `scale` enlarges pictures and clips by whole pixels.
    """
    if isinstance(stream, TextStream):
        return File("txt", value.encode("utf-8") + b"\n")
    if isinstance(stream, AudioStream):
        return File("wav", wav(value, stream.sample_rate))
    if isinstance(stream, ActionStream):
        rows = np.asarray(value, np.float32)
        return File("json", (json.dumps([[_plain(number) for number in row] for row in rows.tolist()]) + "\n").encode())
    enlarged = np.repeat(np.repeat(value, scale, axis=-3), scale, axis=-2)
    if isinstance(stream, VideoStream):
        return File("png", animated_png(enlarged, stream.frame_rate))
    assert isinstance(stream, ImageStream)
    return File("png", png(enlarged))


def _plain(number: float) -> float | int:
    """Whole numbers without a decimal point, others as short as float32 allows."""
    return int(number) if number == int(number) else float(np.format_float_positional(np.float32(number), unique=True))
