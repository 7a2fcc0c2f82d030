"""What a tokenizer reads, from its own config.json: files of its kind become values of its form, as in training."""

from pathlib import Path
from typing import Any

from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, Stream, TextStream, VideoStream
from worldloom.stages.streams import kind_of
from worldloom.tokenizers.each_frame import EachFrame
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.tokenizer import Tokenizer


def stream_of(tokenizer: Tokenizer) -> Stream:
    """The stream whose values the tokenizer encodes."""
    form: dict[str, Any] = getattr(tokenizer, "form", {})
    if tokenizer.kind == "text":
        return TextStream(kind="text")
    if tokenizer.kind == "image":
        return ImageStream(kind="image", size=(form["height"], form["width"]), resample=form.get("resample", "lanczos"))
    if tokenizer.kind == "video":
        return VideoStream(kind="video", size=(form["height"], form["width"]), frames=form["frames"], frame_rate=form["frame_rate"])
    if tokenizer.kind == "audio":
        rate = form["sample_rate"]
        return AudioStream(kind="audio", sample_rate=rate, seconds=form["samples"] / rate, channels=form["channels"])
    return ActionStream(kind="action", steps=form["steps"], dimensions=form["dimensions"], choices=form["choices"])


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
    return kind.decode(path.read_bytes(), stream)
