"""What the pipeline must know of a kind of stream: how a value is read from bytes, written to bytes, and batched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class StreamKind:
    """One record per kind of stream; a new kind is a new file with one of these, and a line in stages/streams.py."""

    extensions: tuple[str, ...]  # of files of this kind, in lower case; the first is what worldloom writes itself
    decode: Callable[[bytes | memoryview, Any], Any]  # content, stream settings -> value; InputRejected if it is no good
    encode: Callable[[Any, Any], bytes]  # value, stream settings -> content, the same bytes every time
    batch: Callable[[Sequence[Any]], Any]  # values -> what a tokenizer of this kind encodes
    most_bytes: int  # of a file; no more is read
    form: Callable[[Any], "Form"] | None  # stream settings -> shape and type of every value; None: values differ in length

    @property
    def extension(self) -> str:
        """Of the members in raw shards that worldloom writes itself."""
        return self.extensions[0]


class Form(NamedTuple):
    """What every value of a stream is, as an array."""

    shape: tuple[int, ...]
    dtype: str
