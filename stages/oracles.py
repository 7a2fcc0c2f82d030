"""Who can check what a sample shows: for a dataset that names an oracle, "did the model draw what the caption says" is a number."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from worldloom.stages import pong, shapes, shapes_motion
from worldloom.stages.settings import Stream

Reading = tuple[str, ...] | None
Read = Callable[[Any, Any], Reading]  # a value, its stream's settings -> what it shows


class View(NamedTuple):
    """What values of several kinds have in common; None where a value shows nothing that the oracle knows."""

    properties: tuple[str, ...]  # of a reading; of readings that are longer, the last one counts on
    read: Mapping[str, Read]  # by kind of stream
    silent: frozenset[str] = frozenset()  # what a property may be without telling anything, as of a thing that stands still

    def names(self, length: int) -> tuple[str, ...]:
        """Names of a reading's properties: push_1, push_2 ... where there are more of them than `properties`."""
        if length <= len(self.properties):
            return self.properties
        *fixed, last = self.properties
        return (*fixed, *(f"{last}_{number + 1}" for number in range(length - len(fixed))))


class Oracle(NamedTuple):
    """Compares values of two kinds by the first view that reads both."""

    views: tuple[View, ...]
    splits: Mapping[str, str] | None = None  # what is to be said of each, where it is more than whether training saw it

    def between(self, kind: str, other: str) -> View | None:
        """None where the two have nothing in common."""
        return next((view for view in self.views if kind in view.read and other in view.read), None)

    @property
    def reads_actions(self) -> View | None:
        """The view that reads what was done, step by step, from clips; None where there is none."""
        return self.between("video", "action")

    def say(self, reading: Reading) -> str:
        """A reading in words."""
        return "nothing that the oracle knows" if reading is None else ", ".join(reading)


def _whole(read: Callable[[Any], shapes.Reading | None]) -> Read:
    return lambda value, stream: read(value)


def _shape_of(read: Callable[[Any], shapes.Reading | None]) -> Read:
    def only_shape(value: Any, stream: Stream) -> Reading:
        found = read(value)
        return None if found is None else (found.shape,)

    return only_shape


_LOOK: dict[str, Callable[[Any], shapes.Reading | None]] = {
    "text": shapes.read_caption,
    "image": shapes.read_picture,
    "video": shapes_motion.read_clip,
}

ORACLES = {
    "shapes": Oracle(
        (
            View(shapes.Reading._fields, {kind: _whole(read) for kind, read in _LOOK.items()}),
            View(
                ("shape",),
                {
                    "audio": lambda value, stream: shapes_motion.read_sound(value, stream.sample_rate),
                    **{kind: _shape_of(read) for kind, read in _LOOK.items()},
                },
            ),
            View(
                ("push",),
                {
                    "video": lambda value, stream: shapes_motion.read_pushes(value),
                    "action": lambda value, stream: tuple(shapes_motion.PUSHES[int(push)] for push in value[:, 0]),
                },
            ),
        ),
        {
            "validation": "combinations seen in training, drawn anew",
            "held_out": "combinations that training never saw",
            "train": "training",
        },
    ),
    "pong": Oracle(
        (
            View(
                pong.Reading._fields,
                {"text": lambda value, stream: pong.read_caption(value), "video": lambda value, stream: pong.read_clip(value)},
            ),
            View(
                ("move",),
                {"video": lambda value, stream: pong.read_moves(value), "action": pong.read_actions},
                silent=frozenset({pong.NO_MOVE}),
            ),
        )
    ),
}

ACTION_NAMES = {"shapes": shapes_motion.PUSHES, "pong": pong.ACTIONS}  # of actions by number, where their stream does not name them


def oracle_of(name: str | None) -> Oracle | None:
    """The oracle that a dataset names, None where it names none; ValueError lists the known ones."""
    if name is None:
        return None
    if name not in ORACLES:
        raise ValueError(f"there is no oracle called {name!r}; there are {', '.join(sorted(ORACLES))}")
    return ORACLES[name]
