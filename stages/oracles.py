"""Who can check what a sample shows: for a dataset that names an oracle, "did the model draw what the caption says" is a number."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from worldloom.stages import shapes


class Oracle(NamedTuple):
    """Reads the same properties from values of several kinds of streams; None where a value shows nothing that it knows."""

    properties: tuple[str, ...]
    read: Mapping[str, Callable[[Any], tuple[str, ...] | None]]  # by kind of stream

    def say(self, reading: tuple[str, ...] | None) -> str:
        """A reading in words."""
        return "nothing that the oracle knows" if reading is None else ", ".join(reading)


ORACLES = {"shapes": Oracle(shapes.Reading._fields, {"text": shapes.read_caption, "image": shapes.read_picture})}


def oracle_of(name: str | None) -> Oracle | None:
    """The oracle that a dataset names, None where it names none; ValueError lists the known ones."""
    if name is None:
        return None
    if name not in ORACLES:
        raise ValueError(f"there is no oracle called {name!r}; there are {', '.join(sorted(ORACLES))}")
    return ORACLES[name]
