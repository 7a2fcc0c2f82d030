"""A tokenizer at work in a replica: files in, codes out, and back, by the functions with which a dataset is encoded."""

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from worldloom.pipeline.service.contract import TokenizerInfo
from worldloom.pipeline.service.errors import place_of
from worldloom.pipeline.service.served import TokenizerPlace
from worldloom.pipeline.service.values import TOGETHER, UNITS, Content, Encoded, Refused, as_file
from worldloom.stages.dataset_writer import code_type
from worldloom.stages.encode_dataset import encode_batch
from worldloom.stages.npy import read_npy
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.preprocess import serving, stream_of
from worldloom.stages.present import File
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import Stream
from worldloom.stages.streams import kind_of

log = logging.getLogger("worldloom.service")

MOST_CODES = 64 << 20  # bytes of the codes of one value
_STREAM: TypeAdapter[Stream] = TypeAdapter(Stream)


class TokenizerWorker:
    """Safe for several threads: what one decodes another may encode meanwhile."""

    def __init__(self, place: TokenizerPlace) -> None:
        opened = open_tokenizer(Path(place.folder))
        if place.stream is None:
            self.stream = stream_of(opened)
        else:
            self.stream = _STREAM.validate_json(json.dumps(place.stream))  # as JSON, in which a list may fill a tuple
        tokenizer = serving(opened, self.stream)
        if tokenizer is None:
            raise ValueError(f"{place.folder} encodes {opened.kind}, the stream {place.name} is {self.stream.kind}")
        self.place, self.tokenizer = place, tokenizer
        self.dtype = np.dtype(code_type(tokenizer.codebook_size)).newbyteorder("<")
        self._encoding = threading.Lock()

    def about(self) -> TokenizerInfo:
        """What there is to know of it."""
        known = self.tokenizer
        return TokenizerInfo(
            name=self.place.name,
            kind=self.stream.kind,
            stage=self.place.stage,
            stream=self.stream,
            codebook_size=known.codebook_size,
            levels=known.levels,
            shape=known.shape,
            dtype="uint16" if self.dtype.itemsize == 2 else "uint32",
            fingerprint=known.fingerprint,
            endings=kind_of(self.stream.kind).extensions,
            unit=UNITS[self.stream.kind],
        )

    def golden(self) -> bytes:
        """A digest of the codes of values that follow from the codebook alone: another network gives another."""
        shape = self.tokenizer.shape
        codes = np.arange(64) % self.tokenizer.codebook_size if shape is None else np.arange(prod(shape)).reshape(shape)
        with self._encoding:
            value = self.tokenizer.decode([codes] if shape is None else codes[None] % self.tokenizer.codebook_size)
            found = encode_batch(self.tokenizer, list(value))
        return hashlib.sha256(self.tokenizer.fingerprint.encode() + np.asarray(found[0]).astype(self.dtype).tobytes()).digest()

    def encode(self, contents: Sequence[Content]) -> Encoded:
        """The codes of each value, as encode_dataset writes them."""
        if isinstance(contents, np.ndarray):  # there is nothing to decode meanwhile
            with self._encoding:
                return Encoded(self.tokenizer.encode(contents).astype(self.dtype), [])
        codes: list[NDArray[Any]] = []
        shape = self.tokenizer.shape
        nothing = np.zeros(0 if shape is None else shape, self.dtype)
        refused: list[Refused] = []
        for first in range(0, len(contents), TOGETHER):
            values: list[Any] = []
            for index, content in enumerate(contents[first : first + TOGETHER], first):
                try:
                    values.append(self._value(content))
                except InputRejected as error:
                    values.append(None)
                    refused.append(Refused(index, error.code, error.detail))
            with self._encoding:
                found = encode_batch(self.tokenizer, values)
            codes += [nothing if one is None else np.asarray(one).astype(self.dtype) for one in found]
        # One array goes over a handle at a fraction of what many cost.
        return Encoded(codes if shape is None else np.stack(codes), refused)

    def _value(self, content: Content) -> Any:
        if not isinstance(content, bytes):
            return content
        try:
            return kind_of(self.stream.kind).decode(content, self.stream)
        except InputRejected:
            raise
        except Exception as error:  # a decoder that let something out: a fault of ours, for which the others of a batch must not fail
            log.error(json.dumps({"event": "decoder_failed", "tokenizer": self.place.name, "error": place_of(error)}))
            raise InputRejected("value_unreadable", f"its decoder failed at this value, of kind {self.stream.kind}") from error

    def prepare(self, content: bytes) -> File:
        """A value as the tokenizer sees it, as a file of its kind, a clip as its frames; InputRejected."""
        return as_file(self._value(content), self.stream, "npy" if self.stream.kind == "video" else None)

    def decode(self, codes: Sequence[Any], file_format: str | None, scale: int = 1) -> list[File]:
        """What values' codes (nested or flat lists, or the bytes of an .npy) stand for, as files; InputRejected: codes_invalid."""
        shape = self.tokenizer.shape
        grids = [_grid(one, shape) for one in codes]
        try:
            with self._encoding:
                values = self.tokenizer.decode(grids if shape is None else np.stack(grids))
        except ValueError as error:
            raise InputRejected("codes_invalid", str(error)) from None
        return [as_file(value, self.stream, file_format, scale) for value in values]


def _grid(codes: Any, shape: tuple[int, ...] | None) -> NDArray[np.int64]:
    if isinstance(codes, bytes):
        array = read_npy(codes, MOST_CODES, "codes_invalid")
    else:
        try:
            array = np.asarray(codes)
        except ValueError:
            raise InputRejected("codes_invalid", "the codes of a value are a list of integers, or lists of equal length of them") from None
    if array.size and array.dtype.kind not in "iu":
        raise InputRejected("codes_invalid", f"codes are integers, these are {array.dtype}")
    wide = array.astype(np.int64)
    if shape is None or wide.shape == shape:
        return wide
    if wide.ndim == 1 and wide.size == prod(shape):
        return wide.reshape(shape)
    raise InputRejected("codes_invalid", f"this tokenizer's codes are a grid of {shape}, got {wide.shape}")
