"""What the pipeline must know of a kind of stream: how a value is read from bytes, written to bytes, and batched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StreamKind:
    """One record per kind of stream; a new kind is a new file with one of these, and a line in stages/streams.py."""

    extension: str  # of the members in raw shards that worldloom writes itself
    decode: Callable[[bytes | memoryview, Any], Any]  # content, stream settings -> value; InputRejected if it is no good
    encode: Callable[[Any], bytes]  # value -> content, the same bytes every time
    batch: Callable[[Sequence[Any]], Any]  # values -> what a tokenizer of this kind encodes
    padding: Callable[[Any], Any] | None  # a value -> one like it, blank, to fill up a batch; None: batches need no filling
