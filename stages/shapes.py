"""The shapes world: coloured shapes on a plain ground, with captions, and an oracle that reads both back.

A picture holds one thing. Nine places divide it, three by three; a thing's centre lies near the middle of its place. All lengths are
shares of the picture's side, so that any size of picture shows the same world.

S side of the picture in pixels.
"""

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 60),
    "blue": (45, 85, 220),
    "yellow": (245, 205, 40),
    "purple": (150, 60, 190),
    "black": (35, 35, 40),
}
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
SIZES = {"small": (0.155, 0.175), "medium": (0.185, 0.205), "large": (0.215, 0.235)}  # radius, from and to

GROUND = (238, 236, 230)
MIDDLES = (0.25, 0.5, 0.75)  # of the three columns, and of the three rows
WANDER = 0.05  # how far a centre may lie from the middle of its place, along each axis
BORDERS = (0.375, 0.625)  # between the columns, and between the rows
MIN_OVERLAP = 0.75  # of a picture with the best template, below which the oracle sees nothing

_OPENINGS = ("", "this is ", "here is ", "there is ", "a picture of ", "look: ")
_NOUNS = ("a {size} {colour} {shape}", "a {colour} {shape}", "one {colour} {shape}", "a {colour} {shape}, {size}")
_PLACES = ("at the {place}", "near the {place}", "{place}")
_ORDERS = ("{noun} {where}", "{where}, {noun}", "{noun}, {where}")
WORDINGS = tuple(
    opening + order.format(noun=noun, where=where) for opening in _OPENINGS for noun in _NOUNS for where in _PLACES for order in _ORDERS
)
# Every seventh wording is kept for evaluation: its words are known from the others, its order is not.
NEW_WORDINGS = WORDINGS[3::7]
KNOWN_WORDINGS = tuple(wording for wording in WORDINGS if wording not in NEW_WORDINGS)


class Thing(NamedTuple):
    """One coloured shape; x and y of its centre and its radius are shares of the picture's side."""

    shape: str
    colour: str
    place: str
    size: str
    x: float
    y: float
    radius: float


class Reading(NamedTuple):
    """What a picture or a caption says."""

    shape: str
    colour: str
    place: str


COMBINATIONS = tuple(Reading(shape, colour, place) for shape in SHAPES for colour in COLOURS for place in PLACES)


def is_held_out(combination: Reading) -> bool:
    """True for one place in nine of each shape and colour: 24 of 216 combinations, while every pair of properties stays seen."""
    colour = list(COLOURS).index(combination.colour)
    return (2 * colour + SHAPES.index(combination.shape)) % len(PLACES) == PLACES.index(combination.place)


def imagine(combination: Reading, generator: np.random.Generator) -> Thing:
    """Draws a size, and a centre within the place."""
    size = tuple(SIZES)[generator.integers(len(SIZES))]
    row, column = divmod(PLACES.index(combination.place), 3)
    x, y = (middle + generator.uniform(-WANDER, WANDER) for middle in (MIDDLES[column], MIDDLES[row]))
    return Thing(*combination, size, float(x), float(y), float(generator.uniform(*SIZES[size])))


def describe(thing: Thing, wording: str) -> str:
    """The caption of a thing; `wording` is one of WORDINGS."""
    return wording.format(size=thing.size, colour=thing.colour, shape=thing.shape, place=thing.place)


def draw(thing: Thing, side: int) -> NDArray[np.uint8]:
    """The picture of a thing, [S, S, 3], with smooth edges."""
    cover = coverage(thing.shape, np.float64(thing.x), np.float64(thing.y), np.float64(thing.radius), side)[..., None]
    picture = np.asarray(GROUND) * (1 - cover) + np.asarray(COLOURS[thing.colour]) * cover
    return np.rint(picture).astype(np.uint8)


def coverage(
    shape: str,
    x: NDArray[np.float64] | np.float64,
    y: NDArray[np.float64] | np.float64,
    radius: NDArray[np.float64] | np.float64,
    side: int,
) -> NDArray[np.float64]:
    """How much of each pixel a shape covers, [..., S, S] in [0, 1]; x, y and radius may be arrays of candidates."""
    centres = (np.arange(side) + 0.5) / side
    dx = centres - np.asarray(x)[..., None, None]
    dy = centres[:, None] - np.asarray(y)[..., None, None]
    distance = _DISTANCES[shape](dx, dy, np.asarray(radius)[..., None, None])
    return np.clip(0.5 - distance * side, 0.0, 1.0)


def _circle(dx: NDArray[np.float64], dy: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hypot(dx, dy) - radius


def _square(dx: NDArray[np.float64], dy: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * radius


def _triangle(dx: NDArray[np.float64], dy: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    # Apex at the top; the two sides fall by 2 for every 1 outwards.
    return np.maximum((2 * np.abs(dx) - dy - radius) / 5**0.5, dy - radius)


def _cross(dx: NDArray[np.float64], dy: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    across, down = np.abs(dx), np.abs(dy)
    arm = 0.32 * radius
    return np.minimum(np.maximum(across - radius, down - arm), np.maximum(across - arm, down - radius))


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}


class Found(NamedTuple):
    """What a picture shows, and where its middle lies, in shares of the side."""

    reading: Reading
    x: float
    y: float


def read_picture(picture: NDArray[np.uint8]) -> Reading | None:
    """What a square picture [S, S, 3] shows; None where nothing of this world fits it."""
    found = find(picture)
    return None if found is None else found.reading


def find(picture: NDArray[np.uint8]) -> Found | None:
    """The thing in a square picture [S, S, 3]; None where nothing of this world fits it.

    The colour is the one nearest to the pixels that differ most from the ground. Every shape is then drawn at the place and of the size
    that the picture's mass suggests, and the one that overlaps best is taken, if it overlaps by MIN_OVERLAP.
    """
    side = picture.shape[0]
    away = picture.astype(np.float64) - GROUND
    strength = np.linalg.norm(away, axis=-1)
    seen = strength > 60
    if seen.sum() < 0.01 * side * side:
        return None
    mean = np.median(picture[strength >= np.quantile(strength[seen], 0.5)], axis=0)
    colour = min(COLOURS, key=lambda name: float(np.linalg.norm(mean - COLOURS[name])))
    ink = np.asarray(COLOURS[colour], dtype=np.float64) - GROUND
    cover = np.clip(away @ ink / (ink @ ink), 0, 1)
    # What is not between the ground and the colour is no part of the thing, and counts against it.
    strange = np.linalg.norm(away - cover[..., None] * ink, axis=-1) > 90
    best = max((_fit(shape, _firm(cover), strange) for shape in SHAPES), key=lambda fit: fit.overlap)
    if best.overlap < MIN_OVERLAP:
        return None
    column, row = (int(np.searchsorted(BORDERS, at)) for at in (best.x, best.y))
    return Found(Reading(best.shape, colour, PLACES[3 * row + column]), best.x, best.y)


def _firm(cover: NDArray[np.float64]) -> NDArray[np.float64]:
    # Noise on the ground is small but everywhere: without this it would weigh as much as a small thing.
    return np.clip((cover - 0.25) / 0.5, 0, 1)


class _Fit(NamedTuple):
    shape: str
    x: float
    y: float
    overlap: float


def _fit(shape: str, cover: NDArray[np.float64], strange: NDArray[np.bool_]) -> _Fit:
    """The best drawing of `shape` over the coverage [S, S]: overlap is intersection over union."""
    side = cover.shape[0]
    mass = cover.sum() + 1e-9
    centres = (np.arange(side) + 0.5) / side
    x, y = (cover.sum(axis=0) @ centres) / mass, (cover.sum(axis=1) @ centres) / mass
    unit = coverage(shape, np.float64(0.5), np.float64(0.5), np.float64(0.25), 64)
    radius = 0.25 * (mass / side**2 / unit.mean()) ** 0.5
    drop = (unit.sum(axis=1) @ ((np.arange(64) + 0.5) / 64) / unit.sum() - 0.5) / 0.25  # from centre to centre of mass, in radii
    steps = np.array([-0.02, 0.0, 0.02])
    xs, ys, radii = (grid.ravel() for grid in np.meshgrid(x + steps, y - drop * radius + steps, radius * np.linspace(0.85, 1.15, 5)))
    drawn = _firm(coverage(shape, xs, ys, radii, side))
    overlap = np.minimum(drawn, cover).sum(axis=(1, 2)) / (np.maximum(drawn, cover).sum(axis=(1, 2)) + strange.sum())
    best = int(overlap.argmax())
    return _Fit(shape, float(xs[best]), float(ys[best]), float(overlap[best]))


_PLACE_WORDS = re.compile(rf"\b(?:{'|'.join(sorted(PLACES, key=len, reverse=True))})\b")


def read_caption(text: str) -> Reading | None:
    """What a caption says; None where it does not name exactly one shape, one colour and one place."""
    words = re.findall(r"[a-z]+", text.lower())
    shapes = [word for word in words if word in SHAPES]
    colours = [word for word in words if word in COLOURS]
    places = _PLACE_WORDS.findall(" ".join(words))
    if not len(shapes) == len(colours) == len(places) == 1:
        return None
    return Reading(shapes[0], colours[0], places[0])
