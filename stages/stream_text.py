"""Text on disk: UTF-8 bytes to one string and back. Every character is kept, NUL and direction marks included."""

from collections.abc import Sequence

from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import TextStream
from worldloom.stages.stream_kind import StreamKind

MAX_BYTES = 1 << 20


def decode(content: bytes | memoryview, stream: TextStream) -> str:
    """The string; InputRejected: empty_input, text_too_long, text_not_utf8 (a lone surrogate is no UTF-8 either)."""
    if not len(content):
        raise InputRejected("empty_input", "the text has no bytes")
    if len(content) > MAX_BYTES:
        raise InputRejected("text_too_long", f"{len(content)} bytes, at most {MAX_BYTES}")
    try:
        return bytes(content).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputRejected("text_not_utf8", f"byte {error.start} is not UTF-8") from None


def encode(value: str, stream: TextStream) -> bytes:
    return value.encode("utf-8")


def batch(values: Sequence[str]) -> list[str]:
    return list(values)


KIND = StreamKind(extensions=("txt",), decode=decode, encode=encode, batch=batch, most_bytes=MAX_BYTES, form=None)
