"""An oracle for Pong: reads paddle and ball from pictures of the field, and from captions.

Pictures show the field, 160 x 160 pixels of the screen, at any size. Places are shares of its side.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.atari_games import Pong, third
from worldloom.stages.settings import ActionStream

FIELD = 160  # pixels of the screen, along both sides
GROUND = (144, 72, 17)
OURS = (92, 186, 92)  # the colour of the right paddle
PADDLE_COLUMNS = (136 / FIELD, 148 / FIELD)  # between which it stands, with some room
PADDLE_HEIGHT = 16 / FIELD
BALL_BLUE = (110, 236)  # paddles and ground are less blue; the ball is as blue as that
CLEAR = 0.35  # of a colour's cover above which a pixel counts
FEWEST = 0.2  # share of the paddle that must be seen, which at the field's ends is hidden for the most part
FEWEST_BALL = 0.5
BALL_AREA = 2 * 4 / FIELD**2
STILL = 2.0 / FIELD  # of a step, below which the paddle is not said to have moved
ACTIONS = ("noop", "fire", "right", "left", "rightfire", "leftfire")  # of the game, where a stream does not name its own
MOVES = {"right": "up", "rightfire": "up", "left": "down", "leftfire": "down"}
NO_MOVE = "still"

_NO_BALL = ("no ball", "no ball", "no ball")
_CAPTION = re.compile(
    r"\d+ to \d+; the paddle is (?P<paddle>high|in the middle|low), "
    r"(?:there is no ball|the ball (?P<side>on the left|in the middle|on the right), going (?P<across>left|right)(?: and (?P<up>up|down))?)"
)


class Reading(NamedTuple):
    """What a moment of play shows."""

    paddle: str
    side: str  # of the field that the ball is on
    across: str  # where it goes
    up: str  # up, down or level


def read_caption(caption: str) -> Reading | None:
    """None where a caption is none of Pong."""
    found = _CAPTION.fullmatch(caption.strip())
    if found is None:
        return None
    ball = _NO_BALL if found["side"] is None else (found["side"], found["across"], found["up"] or "level")
    return Reading(found["paddle"], *ball)


def read_clip(clip: NDArray[np.uint8]) -> Reading | None:
    """What the first two frames of a clip [T, height, width, 3] show; None where there is no paddle."""
    paddle = paddle_at(clip[0])
    if paddle is None:
        return None
    span = (Pong.LOWEST - Pong.HIGHEST) / FIELD
    highest = (Pong.HIGHEST - Pong.TOP + 8) / FIELD  # of the paddle's middle
    place = third(paddle, highest, highest + span, ("high", "in the middle", "low"))
    now, then = ball_at(clip[0]), ball_at(clip[min(1, len(clip) - 1)])
    if now is None or then is None:
        return Reading(place, *_NO_BALL)
    fall = (then[1] - now[1]) * FIELD
    return Reading(
        place,
        third(now[0], 0, 1, ("on the left", "in the middle", "on the right")),
        "right" if then[0] >= now[0] else "left",
        "level" if abs(fall) <= Pong.LEVEL else "down" if fall > 0 else "up",
    )


def read_moves(clip: NDArray[np.uint8]) -> tuple[str, ...]:
    """Where the paddle goes at each step: up, down or still; "gone" where it is not seen."""
    places = [paddle_at(frame) for frame in clip]
    return tuple(_move(before, after) for before, after in pairwise(places))


def read_actions(actions: NDArray[np.float32], stream: ActionStream) -> tuple[str, ...]:
    """Where the actions [T, 1] send the paddle; still where they leave it alone."""
    names: Sequence[str] = stream.names or ACTIONS
    return tuple(MOVES.get(names[int(number)], NO_MOVE) for number in actions[:, 0])


def paddle_at(frame: NDArray[np.uint8]) -> float | None:
    """The middle of the right paddle, as a share of the height from the top; None where it is not seen."""
    height, width = frame.shape[:2]
    first, last = (round(share * width) for share in PADDLE_COLUMNS)
    ink = np.subtract(OURS, GROUND).astype(np.float64)
    cover = np.clip((frame[:, first:last].astype(np.float64) - GROUND) @ ink / (ink @ ink), 0, 1)
    rows = np.where(cover > CLEAR, cover, 0).max(axis=1)
    if rows.sum() < FEWEST * PADDLE_HEIGHT * height:
        return None
    return float(rows @ (np.arange(height) + 0.5) / rows.sum() / height)


def ball_at(frame: NDArray[np.uint8]) -> tuple[float, float] | None:
    """x and y of the ball's middle, as shares of the field's sides; None where it is not seen."""
    height, width = frame.shape[:2]
    dark, bright = BALL_BLUE
    cover = np.clip((frame[..., 2].astype(np.float64) - dark) / (bright - dark), 0, 1)
    if cover.sum() < FEWEST_BALL * BALL_AREA * height * width:
        return None
    y, x = cover.sum(axis=1) @ (np.arange(height) + 0.5), cover.sum(axis=0) @ (np.arange(width) + 0.5)
    return float(x / cover.sum() / width), float(y / cover.sum() / height)


def _move(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "gone"
    return NO_MOVE if abs(after - before) < STILL else "down" if after > before else "up"
