"""What a tokenizer reads, from its own preprocessor_config.json: files of its kind become values of its form, as in training."""

from pathlib import Path
from typing import Any

from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, Stream, TextStream, VideoStream
from worldloom.stages.streams import kind_of
from worldloom.tokenizers.action import ActionTokenizer
from worldloom.tokenizers.each_frame import EachFrame
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.learned import LearnedTokenizer
from worldloom.tokenizers.resampling import RESAMPLING
from worldloom.tokenizers.tokenizer import Tokenizer


def stream_of(tokenizer: Tokenizer) -> Stream:
    """The stream whose values the tokenizer encodes."""
    if isinstance(tokenizer, LearnedTokenizer | EachFrame):
        return _learned(tokenizer.kind, tokenizer.preprocessing)
    if isinstance(tokenizer, ActionTokenizer):
        form = tokenizer.form
        return ActionStream(kind="action", steps=form["steps"], dimensions=form["dimensions"], choices=form["choices"])
    assert tokenizer.kind == "text"
    return TextStream(kind="text")


def _learned(kind: str, about: dict[str, Any]) -> Stream:
    if kind == "audio":
        seconds = about["num_samples"] / about["sampling_rate"]
        return AudioStream(kind="audio", sample_rate=about["sampling_rate"], seconds=seconds, channels=about["num_channels"])
    size = about["size"]["height"], about["size"]["width"]
    if kind == "video":
        return VideoStream(kind="video", size=size, frames=about["num_frames"], frame_rate=about["fps"])
    assert kind == "image"
    resample = next(name for name, number in RESAMPLING.items() if number == about["resample"])
    return ImageStream(kind="image", size=size, resample=resample)


def serving(tokenizer: Tokenizer, stream: Stream) -> Tokenizer | None:
    """The tokenizer as it serves the stream: one of pictures codes clips frame by frame; None where it cannot."""
    if isinstance(stream, VideoStream) and isinstance(tokenizer, ImageTokenizer):
        return EachFrame(tokenizer, stream.frames, stream.frame_rate)
    return tokenizer if tokenizer.kind == stream.kind else None


def read_value(path: Path, stream: Stream) -> Any:
    """One file as a value; FileNotFoundError, or InputRejected with its code."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or not a file")
    kind = kind_of(stream.kind)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in kind.extensions:
        raise InputRejected(
            "format_not_allowed", f"files of kind {stream.kind} end in {', '.join(kind.extensions)}, not {ending or 'nothing'}"
        )
    with open(path, "rb") as file:
        return kind.decode(file.read(kind.most_bytes + 1), stream)
