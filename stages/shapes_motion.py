"""Shapes that move: a thing at rest is pushed, step by step, bounces off walls and sounds as it does; and an oracle that reads both back.

A step lies between two frames. Its push changes the velocity, in shares of the picture's side a step; the velocity moves the centre, which
walls keep between LOW and HIGH. Everything follows from where the thing lies at first and from the pushes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages import shapes
from worldloom.stages.settings import AudioStream
from worldloom.stages.shapes import Thing

PUSHES = ("none", "left", "right", "up", "down")
PUSH = 0.1  # change of the velocity along one axis
FASTEST = 0.2  # velocity along one axis
LOW, HIGH = 0.2, 0.8
KEEP = 0.5  # how often the last push is repeated
GRAZE = 0.012  # from a wall, nearer to which nobody can see whether it was touched
APART = 0.03  # between the places where two pushes lead, for them to be told apart
TRIES = 60  # motions drawn until one bounces

PITCHES = {"circle": 400.0, "square": 600.0, "triangle": 900.0, "cross": 1350.0}  # Hz
FADE = 0.06  # seconds until a tone has fallen to 1/e
LOUD = 0.5
QUIET = 0.004  # root mean square below which the oracle hears nothing
NEAR = 0.08  # share of a pitch that a spectrum's peak may lie beside it
CLEAR = 0.4  # share of the energy that must lie near the pitches

_AXES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], np.float64)


class Motion(NamedTuple):
    """T frames."""

    places: NDArray[np.float64]  # [T, 2]: x and y of the centre
    pushes: NDArray[np.int64]  # [T - 1]: numbers of PUSHES
    bounces: tuple[float, ...]  # frames since the beginning


class State(NamedTuple):
    place: NDArray[np.float64]  # x, y
    velocity: NDArray[np.float64]


def step(state: State, push: int) -> tuple[State, tuple[float, ...]]:
    """The state behind one step, and the shares of the step after which it bounced."""
    velocity = np.clip(state.velocity + PUSH * _AXES[push], -FASTEST, FASTEST)
    place = state.place + velocity
    bounces = []
    for axis in range(2):
        wall = LOW if place[axis] < LOW else HIGH if place[axis] > HIGH else None
        if wall is not None:
            bounces.append(float((wall - state.place[axis]) / velocity[axis]))
            place[axis] = 2 * wall - place[axis]
            velocity[axis] = -velocity[axis]
    return State(place, velocity), tuple(bounces)


def move(thing: Thing, frames: int, generator: np.random.Generator) -> Motion:
    """Draws motions until one bounces, TRIES at most; a push repeats the last or is another, and shows in where it leads."""
    motion = None
    for _ in range(TRIES):
        found = _try(thing, frames, generator)
        motion = found if found is not None else motion
        if found is not None and found.bounces:
            break
    rest = np.tile([thing.x, thing.y], (frames, 1))
    return motion if motion is not None else Motion(rest, np.zeros(frames - 1, np.int64), ())


def _try(thing: Thing, frames: int, generator: np.random.Generator) -> Motion | None:
    """None where it came to a place from which no push can be told from the others."""
    state, push = State(np.array([thing.x, thing.y]), np.zeros(2)), 0
    places, pushes, bounces = [state.place], [], list[float]()
    for number in range(frames - 1):
        allowed = _telling(state)
        if not allowed:
            return None
        push = push if push in allowed and generator.random() < KEEP else int(generator.choice(allowed))
        state, hits = step(state, push)
        places.append(state.place)
        pushes.append(push)
        bounces += [number + share for share in hits]
    return Motion(np.stack(places), np.array(pushes, np.int64), tuple(bounces))


def _telling(state: State) -> list[int]:
    """The pushes that can be told from all others by where they lead: not mirrored onto each other, not just before or behind a wall."""
    after = [step(state, push)[0] for push in range(len(PUSHES))]
    places = np.stack([each.place for each in after])
    apart = (np.abs(places[:, None] - places[None]).sum(-1) + np.eye(len(PUSHES))).min(axis=1) > APART
    moving = np.stack([np.abs(each.velocity) > 0 for each in after])
    grazing = (moving & (np.minimum(places - LOW, HIGH - places) < GRAZE)).any(axis=1)
    return np.flatnonzero(apart & ~grazing).tolist()


def draw_clip(thing: Thing, motion: Motion, side: int) -> NDArray[np.uint8]:
    """uint8 [T, S, S, 3]."""
    return np.stack([shapes.draw(thing._replace(x=float(x), y=float(y)), side) for x, y in motion.places])


def sound_of(shape: str, motion: Motion, frame_rate: float, stream: AudioStream) -> NDArray[np.float32]:
    """float32 [channels, samples]: a fading tone of the shape's pitch at each bounce."""
    time = np.arange(stream.samples) / stream.sample_rate
    wave = np.zeros(stream.samples)
    for bounce in motion.bounces:
        since = np.maximum(time - bounce / frame_rate, 0)
        tone = np.sin(2 * np.pi * PITCHES[shape] * since) * np.exp(-since / FADE)
        wave += LOUD * np.where(time >= bounce / frame_rate, tone, 0)
    return np.repeat(np.clip(wave, -1, 1)[None], stream.channels, axis=0).astype(np.float32)


def read_clip(clip: NDArray[np.uint8]) -> shapes.Reading | None:
    """What the first frame of a clip [T, S, S, 3] shows."""
    return shapes.read_picture(clip[0])


def read_sound(sound: NDArray[np.float32], sample_rate: int) -> tuple[str] | None:
    """The shape whose pitch a sound [channels, samples] has; None where it is too quiet or of no pitch."""
    wave = np.asarray(sound, np.float64).mean(axis=0)
    if np.sqrt((wave**2).mean()) < QUIET:
        return None
    energy = np.abs(np.fft.rfft(wave)) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / sample_rate)
    near = {shape: float(energy[np.abs(hertz / pitch - 1) < NEAR].sum()) for shape, pitch in PITCHES.items()}
    best = max(near, key=lambda shape: near[shape])
    heard = energy[hertz > min(PITCHES.values()) / 2].sum()
    return (best,) if near[best] > CLEAR * heard else None


def read_pushes(clip: NDArray[np.uint8]) -> tuple[str, ...] | None:
    """The pushes between the frames of a clip: at each step that which explains best where the thing went."""
    found = shapes.find(clip[0])
    if found is None:
        return None
    # The middle of a triangle's mass is not its centre, but moves as it does.
    middles = np.stack([_middle(frame, found.reading.colour) for frame in clip])
    places = (middles - middles[0] + (found.x, found.y)).clip(LOW, HIGH)
    state, pushes = State(places[0], np.zeros(2)), []
    for place in places[1:]:
        after = [step(state, push)[0] for push in range(len(PUSHES))]
        best = int(np.argmin([np.abs(each.place - place).sum() for each in after]))
        pushes.append(PUSHES[best])
        state = State(place, after[best].velocity)  # where it is seen, so that errors do not add up
    return tuple(pushes)


def _middle(frame: NDArray[np.uint8], colour: str) -> NDArray[np.float64]:
    """x and y of the middle of the mass that has the colour; of the picture where nothing has."""
    ink = np.asarray(shapes.COLOURS[colour], np.float64) - shapes.GROUND
    cover = np.clip((frame.astype(np.float64) - shapes.GROUND) @ ink / (ink @ ink), 0, 1)
    cover = np.where(cover > 0.3, cover, 0)
    mass, centres = cover.sum(), (np.arange(len(frame)) + 0.5) / len(frame)
    if mass < 1:
        return np.array([0.5, 0.5])
    middle: NDArray[np.float64] = np.array([cover.sum(axis=0) @ centres, cover.sum(axis=1) @ centres]) / mass
    return middle
