"""What a stage will leave, as far as its settings tell before anything has run."""

from collections.abc import Mapping
from typing import NamedTuple

from worldloom.stages.settings import Stream

TAR_BLOCK = 512  # bytes that a tar rounds headers and contents up to


class Estimate(NamedTuple):
    """None where only a run can tell."""

    samples: int | None = None
    codes: int | None = None  # codes of a sample, for a tokenizer; of all samples, for tokens
    bytes: int | None = None  # on disk, roughly
    streams: Mapping[str, Stream] | None = None  # of a dataset


def member_bytes(content: int) -> int:
    """What a member of so many bytes takes in a tar."""
    return TAR_BLOCK * (1 + -(-content // TAR_BLOCK))
