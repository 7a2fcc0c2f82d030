"""What a stage shows of its work: a card of typed blocks, the pictures on it, and its figures.

The report renders these blocks, whichever stage wrote them, so a new stage needs no change there. Everything here is content of an
artifact: the same values give the same bytes.
"""

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat

from worldloom.stages.disk import canonical_json, write_file
from worldloom.stages.settings import Settings

CARD = "card.json"
FIGURES = "figures.json"
Verdict = Literal["right", "wrong"]
Cell = str | int | float | bool | None
Inside = Annotated[str, Field(description="path of a file inside the artifact, with forward slashes")]


class Text(Settings):
    """A paragraph."""

    type: Literal["text"] = "text"
    text: str


class Table(Settings):
    """Rows under column names; numbers are aligned to the right, and a share reads better as 0.93 than as text."""

    type: Literal["table"] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


class Picture(Settings):
    """One picture; `caption` also serves those who cannot see it."""

    type: Literal["picture"] = "picture"
    file: Inside
    caption: str


class Sound(Settings):
    """A sound to listen to, with the picture of it."""

    type: Literal["sound"] = "sound"
    file: Inside
    picture: Inside
    caption: str


class Item(Settings):
    """A picture in a gallery; `before`, if given, is shown at its left (an original beside its reconstruction), `sound` can be played."""

    file: Inside
    caption: str
    sound: Inside | None = None
    verdict: Verdict | None = None
    detail: str = ""
    before: Inside | None = None


class Gallery(Settings):
    """Many pictures of one size, each with a caption and perhaps a verdict."""

    type: Literal["gallery"] = "gallery"
    items: tuple[Item, ...]
    title: str = ""


class Curves(Settings):
    """Numbers of a JSON-lines file over `x`; a series that the file does not hold is left out."""

    type: Literal["curves"] = "curves"
    file: Inside = "logs/metrics.jsonl"
    x: str = "step"
    series: tuple[str, ...]
    title: str
    unit: str = ""


class Bars(Settings):
    """One bar a value: columns side by side, or, where `labels` name them, lines below each other."""

    type: Literal["bars"] = "bars"
    values: tuple[NonNegativeFloat, ...]
    title: str
    labels: tuple[str, ...] = ()
    unit: str = ""


Block = Annotated[Text | Table | Picture | Sound | Gallery | Curves | Bars, Field(discriminator="type")]


class Card(Settings):
    """A stage's part of the report; `headline` names the figures that also stand at the top of the page."""

    title: str
    blocks: tuple[Block, ...]
    headline: tuple[str, ...] = ()


def write_card(out: Path, card: Card) -> None:
    """Writes card.json; ValueError where a block names a picture or sound that is not there."""
    for file in _files(card):
        if not (out / file).is_file():
            raise ValueError(
                f"the card {card.title!r} shows {file}, which is not in the artifact; write it first, by write_picture, _clip or _sound"
            )
    write_file(out / CARD, canonical_json(card.model_dump(mode="json")))


def write_figures(out: Path, figures: Mapping[str, float]) -> None:
    """Writes figures.json; ValueError for a number that is not finite, which JSON cannot say."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"the figure {name} is {value}; a figure must be a finite number")
    write_file(out / FIGURES, canonical_json(dict(figures)))


def write_picture(out: Path, name: str, picture: NDArray[np.uint8]) -> str:
    """Writes [H, W, 3] as pictures/<name>.png and returns that path, as cards want it."""
    return _written(out, f"pictures/{_checked(name)}.png", png(picture))


def write_clip(out: Path, name: str, clip: NDArray[np.uint8], frame_rate: float) -> str:
    """Writes uint8 [T, H, W, 3] as pictures/<name>.png, which browsers show moving, and returns that path."""
    return _written(out, f"pictures/{_checked(name)}.png", animated_png(clip, frame_rate))


def write_sound(out: Path, name: str, sound: NDArray[np.float32], sample_rate: int, caption: str) -> Sound:
    """Writes float32 [channels, samples] as sounds/<name>.wav and its spectrogram as a picture; the block that shows both."""
    from worldloom.stages.spectrogram import spectrogram

    file = _written(out, f"sounds/{_checked(name)}.wav", wav(sound, sample_rate))
    return Sound(file=file, picture=write_picture(out, f"{name}-spectrogram", spectrogram(sound)), caption=caption)


def png(picture: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] as a PNG file without any metadata."""
    from PIL import Image

    channels = picture.shape[2]
    assert channels == 3 and picture.dtype == np.uint8, f"expected uint8 [H, W, 3], got {picture.dtype} {picture.shape}"
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()


def animated_png(clip: NDArray[np.uint8], frame_rate: float) -> bytes:
    """[T, H, W, 3] as one PNG file that moves for ever; readers that know only still pictures show its first frame."""
    from PIL import Image

    assert clip.ndim == 4 and clip.shape[3] == 3 and clip.dtype == np.uint8, f"expected uint8 [T, H, W, 3], got {clip.dtype} {clip.shape}"
    if len(clip) == 1:
        return png(clip[0])
    first, *others = (Image.fromarray(np.ascontiguousarray(frame)) for frame in clip)
    buffer = io.BytesIO()
    first.save(buffer, format="PNG", save_all=True, append_images=others, duration=1000 / frame_rate, loop=0, compress_level=9)
    return buffer.getvalue()


def wav(sound: NDArray[np.float32], sample_rate: int) -> bytes:
    """[channels, samples] as a WAV file of 16 bits; what lies outside [-1, 1] is clipped."""
    import wave

    levels = np.clip(np.asarray(sound, np.float64) * 32767, -32768, 32767).round().astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(levels.shape[0])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.ascontiguousarray(levels.T).tobytes())
    return buffer.getvalue()


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"{name!r} is no name for a picture or sound; it may hold a-z, 0-9, _ and -")
    return name


def _written(out: Path, file: str, content: bytes) -> str:
    (out / file).parent.mkdir(exist_ok=True)
    write_file(out / file, content)
    return file


def _files(card: Card) -> list[str]:
    files: list[str] = []
    for block in card.blocks:
        if isinstance(block, Picture):
            files.append(block.file)
        elif isinstance(block, Sound):
            files += [block.file, block.picture]
        elif isinstance(block, Gallery):
            files.extend(file for item in block.items for file in (item.before, item.file, item.sound) if file)
    return files
