"""Actions, rewards and ends of episodes on disk: .npy, .json or .csv to float32 [steps, dimensions] and back."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.npy import read_npy, write_npy
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ActionStream
from worldloom.stages.stream_kind import Form, StreamKind

MAX_BYTES = 16 << 20
LARGEST = 1e30  # beyond that float32 squares overflow


def decode(content: bytes | memoryview, stream: ActionStream) -> NDArray[np.float32]:
    """InputRejected: empty_input, action_too_large, type_mismatch, action_invalid (shape, not finite, beyond 1e30, no such choice)."""
    values = read_steps(content, stream)
    if len(values) != stream.steps:
        raise InputRejected("action_invalid", f"{stream.steps} steps of {stream.dimensions} numbers are expected, got shape {values.shape}")
    return values


def read_steps(content: bytes | memoryview, stream: ActionStream) -> NDArray[np.float32]:
    """As `decode`, of any number of steps, but at least one."""
    content = bytes(content)
    if not content:
        raise InputRejected("empty_input", "the file has no bytes")
    if len(content) > MAX_BYTES:
        raise InputRejected("action_too_large", f"{len(content)} bytes, at most {MAX_BYTES}")
    values = read_npy(content, MAX_BYTES, "action_invalid") if content.startswith(b"\x93NUMPY") else _read_text(content)
    if values.dtype.kind not in "fiub":
        raise InputRejected("action_invalid", f"actions are real numbers, not {values.dtype}")
    if values.ndim == 1 and stream.dimensions == 1:
        values = values[:, None]
    if values.ndim != 2 or not len(values) or values.shape[1] != stream.dimensions:
        raise InputRejected("action_invalid", f"{stream.steps} steps of {stream.dimensions} numbers are expected, got shape {values.shape}")
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all() or np.abs(wide).max() > LARGEST:
        raise InputRejected("action_invalid", f"every number must be finite and within {LARGEST:g}")
    if stream.choices is not None and not ((wide == np.floor(wide)) & (wide >= 0) & (wide < stream.choices)).all():
        raise InputRejected("action_invalid", f"every number must be one of 0 .. {stream.choices - 1}")
    return wide.astype(np.float32)


def encode(value: NDArray[np.float32], stream: ActionStream) -> bytes:
    """An .npy file."""
    return write_npy(np.asarray(value, np.float32))


def batch(values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """float32 [B, steps, dimensions]."""
    return np.stack(values)


def form(stream: ActionStream) -> Form:
    """float32 [steps, dimensions]."""
    return Form((stream.steps, stream.dimensions), "float32")


def _read_text(content: bytes) -> NDArray[Any]:
    """JSON (a list of numbers, or of lists of them) or CSV without a header."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise InputRejected("type_mismatch", f"neither an .npy file nor text: it begins with {content[:12]!r}") from None
    try:
        rows: Any = json.loads(text) if text.lstrip().startswith("[") else [row for row in csv.reader(io.StringIO(text)) if row]
        return np.array(rows, dtype=np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError, csv.Error) as error:
        raise InputRejected("action_invalid", f"not rows of numbers: {str(error).splitlines()[0][:120]}") from None


KIND = StreamKind(extensions=("npy", "json", "csv"), decode=decode, encode=encode, batch=batch, most_bytes=MAX_BYTES, form=form)
