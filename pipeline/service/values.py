"""Values as requests and answers have them: what they cost, and what they look like. Nothing here needs a tokenizer."""

import base64
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.npy import read_npy, write_npy
from worldloom.stages.present import File, present
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ActionStream, AudioStream, Stream, TextStream, VideoStream

TOGETHER = 16  # values that are decoded, then encoded; the next are decoded meanwhile by whoever calls next
Unit = Literal["pixels", "samples", "characters", "numbers"]
UNITS: dict[str, Unit] = {"text": "characters", "image": "pixels", "video": "pixels", "audio": "samples", "action": "numbers"}
TYPES = {
    "png": "image/png",
    "wav": "audio/wav",
    "mp4": "video/mp4",
    "npy": "application/x-npy",
    "txt": "text/plain",
    "json": "application/json",
}


Content = bytes | NDArray[Any]  # a file, or a value in the form of its stream, for which nothing is decoded
# Of several values: one array [values, *shape], or, where shapes vary, an array a value.
SeveralCodes = NDArray[Any] | list[NDArray[Any]]


class Refused(NamedTuple):
    """Why a value has no codes."""

    at: int  # its place in the request
    code: str
    detail: str


class Encoded(NamedTuple):
    """The codes of values, or what is wrong with some of them."""

    codes: SeveralCodes  # in the type of token shards and their own shape; anything where a value was refused
    refused: list[Refused]


def as_file(value: Any, stream: Stream, file_format: str | None = None, scale: int = 1) -> File:
    """A value as a file of that format, of its kind's own by default; InputRejected: format_not_allowed."""
    own = present(value, stream, scale) if file_format != "npy" else None
    if own is not None and file_format in (None, own.extension):
        return own
    if file_format == "npy" and not isinstance(stream, TextStream):
        return File("npy", write_npy(np.asarray(value)))
    if file_format == "mp4" and isinstance(stream, VideoStream):
        from worldloom.pipeline.dream import mp4

        return File("mp4", mp4(value, stream.frame_rate))
    raise InputRejected("format_not_allowed", f"a value of kind {stream.kind} cannot be written as {file_format}")


def cost_of(stream: Stream, content: bytes) -> int:
    """What a value costs, before it is decoded: pixels, samples, characters or numbers, as the tokenizer sees it or as the file claims."""
    if isinstance(stream, TextStream):
        return len(content)
    if isinstance(stream, AudioStream):
        from worldloom.stages.stream_audio import claimed_samples

        return max(stream.channels * stream.samples, len(content) // 2, claimed_samples(content))
    if isinstance(stream, ActionStream):
        return max(stream.steps * stream.dimensions, len(content) // 8)
    if isinstance(stream, VideoStream):
        from worldloom.stages.stream_video import claimed_pixels

        return max(stream.frames * stream.height * stream.width, len(content), claimed_pixels(content, stream))
    return max(stream.height * stream.width, pixels_of(content))


def codes_in(codes: Any) -> int:
    """Codes of one value, lists of them or an .npy; 0 of what is neither, which the tokenizer refuses."""
    if isinstance(codes, list):
        return sum(map(codes_in, codes))
    if not isinstance(codes, bytes):
        return 1
    try:
        return read_npy(codes, len(codes), "codes_invalid").size
    except InputRejected:
        return 0


def pixels_of(content: bytes) -> int:
    """Pixels that a picture's header claims; 0 where it has none, or claims too many, which the decoder refuses without more work."""
    from worldloom.stages.stream_image import MAX_PIXELS, read_claim

    try:
        claim = read_claim(content)
    except InputRejected:
        return 0
    pixels = claim.width * claim.height
    return pixels if pixels <= MAX_PIXELS else 0


def shown(file: File) -> dict[str, Any]:
    """A file as `Shown`: text as text, everything else in base64."""
    if file.extension == "txt":
        return {"media_type": TYPES["txt"], "content": None, "text": file.content.decode("utf-8").removesuffix("\n")}
    return {"media_type": TYPES[file.extension], "content": base64.b64encode(file.content).decode("ascii"), "text": None}
