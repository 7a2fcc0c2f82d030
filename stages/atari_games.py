"""What is known of single games: where the field lies on the screen, what bytes of the console's memory mean, how to play by them.

Addresses as in AtariARI (arXiv:1906.08226), checked against the pictures by tests.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Memory = Sequence[int]  # the console's 128 bytes


class Known(NamedTuple):
    """One game."""

    field: tuple[int, int, int, int]  # top, left, height, width of what is played on, in pixels of the screen
    describe: Callable[[Memory, Memory], str]  # at a frame, and one step later
    aim: Callable[[Memory], str]  # the action that follows the ball
    aims: tuple[str, ...]  # those that it may be


class Pong:
    """In pixels of the field: paddle (16 high) and ball (2 x 4) begin TOP rows above what their bytes say; no ball where its row is 0."""

    BALL_X, BALL_Y, PADDLE, THEIRS, OURS = 49, 54, 51, 13, 14
    HIGHEST, LOWEST = 38, 203  # of the paddle
    TOP, LEFT, FIELD_WIDTH = 48, 49, 160
    LEVEL = 3  # rows that a ball may rise or fall in a step and still go level
    NEAR = 6  # rows from the ball's middle within which the paddle need not move


class Breakout:
    """The ball is at the column of its byte - 49; 0 in its row: none."""

    BALL_X, BALL_Y, PADDLE, LIVES, HUNDREDS, TENS = 99, 101, 72, 57, 76, 77
    LEFTMOST, RIGHTMOST = 55, 191  # of the paddle
    LEFT, FIELD_WIDTH = 49, 160
    NEAR = 4


def third(value: float, low: float, high: float, names: tuple[str, str, str]) -> str:
    """The name of the third of low .. high that a value lies in."""
    return names[min(2, max(0, int(3 * (value - low) / (high - low))))]


def describe_pong(now: Memory, then: Memory) -> str:
    """As in: 3 to 1; the paddle is low, the ball on the left, going right and up."""
    paddle = third(now[Pong.PADDLE], Pong.HIGHEST, Pong.LOWEST, ("high", "in the middle", "low"))
    ball = "there is no ball"
    if now[Pong.BALL_Y] and then[Pong.BALL_Y]:
        side = third(now[Pong.BALL_X] - Pong.LEFT, 0, Pong.FIELD_WIDTH, ("on the left", "in the middle", "on the right"))
        across = "right" if then[Pong.BALL_X] >= now[Pong.BALL_X] else "left"
        fall = then[Pong.BALL_Y] - now[Pong.BALL_Y]
        ball = f"the ball {side}, going {across}" + ("" if abs(fall) <= Pong.LEVEL else " and down" if fall > 0 else " and up")
    return f"{now[Pong.THEIRS]} to {now[Pong.OURS]}; the paddle is {paddle}, {ball}"


def describe_breakout(now: Memory, then: Memory) -> str:
    """As in: 12 points, 3 lives; the paddle is on the left, the ball in the middle, going left and down."""
    points = 100 * _decimal(now[Breakout.HUNDREDS]) + _decimal(now[Breakout.TENS])
    places = ("on the left", "in the middle", "on the right")
    paddle = third(now[Breakout.PADDLE], Breakout.LEFTMOST, Breakout.RIGHTMOST, places)
    ball = "there is no ball"
    if now[Breakout.BALL_Y] and then[Breakout.BALL_Y]:
        across = "right" if then[Breakout.BALL_X] >= now[Breakout.BALL_X] else "left"
        down = "down" if then[Breakout.BALL_Y] >= now[Breakout.BALL_Y] else "up"
        side = third(now[Breakout.BALL_X] - Breakout.LEFT, 0, Breakout.FIELD_WIDTH, places)
        ball = f"the ball {side}, going {across} and {down}"
    return f"{points} points, {now[Breakout.LIVES]} lives; the paddle is {paddle}, {ball}"


def aim_in_pong(now: Memory) -> str:
    """Up is right, down is left."""
    below = (now[Pong.BALL_Y] + 1) - (now[Pong.PADDLE] + 8)
    if not now[Pong.BALL_Y] or abs(below) <= Pong.NEAR:
        return "noop"
    return "left" if below > 0 else "right"


def aim_in_breakout(now: Memory) -> str:
    """A new ball comes by fire."""
    if not now[Breakout.BALL_Y]:
        return "fire"
    beside = now[Breakout.BALL_X] - now[Breakout.PADDLE]
    return "noop" if abs(beside) <= Breakout.NEAR else "right" if beside > 0 else "left"


def _decimal(byte: int) -> int:
    """Two decimal digits in one byte."""
    return 10 * (byte >> 4) + (byte & 15)


KNOWN: dict[str, Known] = {
    "pong": Known((34, 0, 160, 160), describe_pong, aim_in_pong, ("noop", "right", "left")),
    "breakout": Known((32, 8, 160, 144), describe_breakout, aim_in_breakout, ("noop", "fire", "right", "left")),
}
