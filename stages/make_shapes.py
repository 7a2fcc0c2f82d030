"""Draws the shapes world (shapes.py) into raw shards: as many captioned pictures as asked, every one a function of the seed and its number.

Streams of kinds video, action and audio show the same thing moving (shapes_motion.py): the picture is the first frame of the clip, action t
leads from frame t to frame t + 1, and each bounce sounds. A share of the samples moves; the others lack these streams.

Three splits: `train` and `validation` show combinations of shape, colour and place that training sees, `held_out` those it never sees.
The captions of `validation` and `held_out` are in wordings that training never sees either.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from worldloom.stages.artifact import Artifact
from worldloom.stages.estimate import Estimate, member_bytes
from worldloom.stages.kind import StageKind
from worldloom.stages.made_dataset import Shard, content_bytes, finish_shards, plan_shards, write_shards
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, StageSettings, Stream, TextStream, VideoStream
from worldloom.stages.worker import Worker

if TYPE_CHECKING:
    from worldloom.stages.card import Block
    from worldloom.stages.shapes import Thing
    from worldloom.stages.shapes_motion import Motion

SPLITS = ("train", "validation", "held_out")
SHOWN, SHOWN_SIDE = 12, 64  # pictures on the card, and their side in pixels
MOVING_SHOWN = 4
PUSHES = 5  # none, left, right, up, down
LOWEST_RATE = 3_000  # Hz: twice the highest pitch, and what the oracle looks at beside it
FRAMES, FRAME_RATE = 9, 8.0  # of a motion, where no stream says otherwise


class MakeShapes(StageSettings):
    """Coloured shapes with captions; every text stream gets a caption, every image stream a picture of the same thing, and so on."""

    run: Literal["make_shapes"]
    streams: Annotated[dict[str, Stream], Field(min_length=1)]
    samples: PositiveInt = Field(8_000, description="samples to train on")
    validation: NonNegativeInt = Field(400, description="samples of combinations that training sees, drawn anew")
    held_out: NonNegativeInt = Field(400, description="samples of combinations that training never sees")
    moving: Annotated[float, Field(ge=0, le=1, description="share of the samples with clips, actions and sounds")] = 1.0
    seed: NonNegativeInt = 0
    shard_size: Annotated[PositiveInt, Field(le=100_000, description="samples a shard")] = 2_000

    @model_validator(mode="after")
    def _streams_fit_together(self) -> Self:
        """Pictures are square, clips are of one length and rate, and actions stand between their frames."""
        clips = {name: stream for name, stream in self.streams.items() if isinstance(stream, VideoStream)}
        for name, stream in self.streams.items():
            if isinstance(stream, ImageStream | VideoStream) and stream.height != stream.width:
                raise ValueError(f"streams.{name}: shapes are drawn on squares, not on {stream.height} x {stream.width} pixels")
        if len({(clip.frames, clip.frame_rate) for clip in clips.values()}) > 1:
            raise ValueError(f"streams {', '.join(clips)} show the same motion, so they must have the same frames and frame_rate")
        frames = frames_of(self.streams)
        for name, stream in self.streams.items():
            if isinstance(stream, VideoStream) and stream.frames < 2:
                raise ValueError(
                    f"streams.{name}: a motion has 2 frames or more, not {stream.frames}; set frames higher, or take an image stream"
                )
            if isinstance(stream, AudioStream):
                self._sounds_are_heard(name, stream, (frames - 1) / rate_of(self.streams))
            if isinstance(stream, ActionStream) and (stream.steps, stream.dimensions) != (frames - 1, 1):
                raise ValueError(
                    f"streams.{name}: between {frames} frames are {frames - 1} steps of one push, not {stream.steps} of {stream.dimensions}"
                )
            if isinstance(stream, ActionStream) and (stream.choices is None or stream.choices < PUSHES):
                raise ValueError(f"streams.{name}: there are {PUSHES} pushes, so choices must be at least that, got {stream.choices}")
        return self

    def _sounds_are_heard(self, name: str, stream: AudioStream, seconds: float) -> None:
        """ValueError where bounces would come after the sound's end, or with pitches that its rate cannot hold."""
        if stream.seconds < seconds - 1e-9:
            raise ValueError(
                f"streams.{name}: the motion lasts {seconds:g} s, the sound {stream.seconds:g} s, and later bounces would not be heard; "
                f"set seconds to {seconds:g} or more, or give clips and actions fewer frames"
            )
        if stream.sample_rate < LOWEST_RATE:
            raise ValueError(
                f"streams.{name}: the highest pitch needs a sample_rate of {LOWEST_RATE} or more, got {stream.sample_rate}; set it higher"
            )


def frames_of(streams: Mapping[str, Stream]) -> int:
    """Frames of a motion: those of the clips, or one more than steps of an action stream, or as many as sounds last, or FRAMES."""
    for stream in streams.values():
        if isinstance(stream, VideoStream):
            return stream.frames
    for stream in streams.values():
        if isinstance(stream, ActionStream):
            return stream.steps + 1
    heard = [stream.seconds for stream in streams.values() if isinstance(stream, AudioStream)]
    return max(2, 1 + int(min(heard) * FRAME_RATE + 1e-9)) if heard else FRAMES


def rate_of(streams: Mapping[str, Stream]) -> float:
    """Frames a second of a motion: those of the clips, or FRAME_RATE."""
    return next((stream.frame_rate for stream in streams.values() if isinstance(stream, VideoStream)), FRAME_RATE)


def plan(settings: MakeShapes) -> tuple[Shard, ...]:
    """All shards, in order; the plan follows from the settings alone."""
    return plan_shards(dict(zip(SPLITS, (settings.samples, settings.validation, settings.held_out), strict=True)), settings.shard_size)


def run(settings: MakeShapes, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Draws this worker's shards that are not there yet."""
    write_shards(plan(settings), settings.streams, partial(_samples, settings), out, worker)


def finish(settings: MakeShapes, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Names the shards, describes the dataset and shows some of it."""
    from worldloom.stages.card import Card, write_card

    totals = finish_shards(plan(settings), settings.streams, out, oracle="shapes")
    write_card(out, Card(title=f"{totals.n_out:,} shapes drawn", blocks=tuple(_shown(settings, out))))
    return {"samples": totals.n_out}


def _samples(settings: MakeShapes, shard: Shard) -> Iterator[dict[str, Any]]:
    """The values of the shard's samples."""
    rate = rate_of(settings.streams)
    for imagined in _imagined(settings, shard):
        values = {name: _value(stream, imagined, rate) for name, stream in settings.streams.items()}
        yield {name: value for name, value in values.items() if value is not None}


class Imagined(NamedTuple):
    """One sample, before it is drawn."""

    thing: "Thing"
    caption: str
    motion: "Motion | None"  # None: it lies still


def _value(stream: Stream, imagined: Imagined, frame_rate: float) -> Any:
    """What a stream shows of a sample; None where the sample lacks it."""
    from worldloom.stages import shapes, shapes_motion

    thing, caption, motion = imagined
    if isinstance(stream, TextStream):
        return caption
    if isinstance(stream, ImageStream):
        return shapes.draw(thing, stream.height)
    if motion is None:
        return None
    if isinstance(stream, VideoStream):
        return shapes_motion.draw_clip(thing, motion, stream.height)
    if isinstance(stream, AudioStream):
        return shapes_motion.sound_of(thing.shape, motion, frame_rate, stream)
    return motion.pushes[:, None].astype("float32")


def _imagined(settings: MakeShapes, shard: Shard) -> Iterator[Imagined]:
    """The shard's things, captions and motions: number i of a split is a function of the seed, the split and i."""
    import numpy as np

    from worldloom.stages import shapes, shapes_motion

    number = SPLITS.index(shard.split)
    combinations = [one for one in shapes.COMBINATIONS if shapes.is_held_out(one) == (shard.split == "held_out")]
    wordings = shapes.KNOWN_WORDINGS if shard.split == "train" else shapes.NEW_WORDINGS
    moves = any(isinstance(stream, VideoStream | AudioStream | ActionStream) for stream in settings.streams.values())
    frames = frames_of(settings.streams)
    for i in range(shard.start, shard.stop):
        generator = np.random.default_rng((settings.seed, number, i))
        thing = shapes.imagine(combinations[generator.integers(len(combinations))], generator)
        caption = shapes.describe(thing, wordings[generator.integers(len(wordings))])
        motion = None
        if moves and generator.random() < settings.moving:
            motion = shapes_motion.move(thing, frames, generator)
        # Without a bounce there is nothing to hear: such a thing stays a picture.
        yield Imagined(thing, caption, motion if motion is not None and motion.bounces else None)


def _shown(settings: MakeShapes, out: Path) -> Iterator["Block"]:
    """Pictures of the first samples, and clips and sounds of the first that move."""
    from worldloom.stages import shapes, shapes_motion
    from worldloom.stages.card import Gallery, Item, write_clip, write_picture, write_sound

    first = list(_imagined(settings, Shard("train", "shown", 0, min(40 * SHOWN, settings.samples))))
    items = tuple(
        Item(file=write_picture(out, f"shown-{number:02d}", shapes.draw(one.thing, SHOWN_SIDE)), caption=one.caption)
        for number, one in enumerate(first[:SHOWN])
    )
    yield Gallery(items=items, title=f"The first {len(items)} of {settings.samples:,} samples to train on")
    rate, heard = rate_of(settings.streams), [stream for stream in settings.streams.values() if isinstance(stream, AudioStream)]
    moving = []
    for number, (thing, caption, motion) in enumerate([one for one in first if one.motion is not None][:MOVING_SHOWN]):
        assert motion is not None
        file = write_clip(out, f"moving-{number:02d}", shapes_motion.draw_clip(thing, motion, SHOWN_SIDE), rate)
        pushes = ", ".join(shapes_motion.PUSHES[push] for push in motion.pushes.tolist())
        sound = None
        if heard:
            wave = shapes_motion.sound_of(thing.shape, motion, rate, heard[0])
            sound = write_sound(out, f"sound-{number:02d}", wave, heard[0].sample_rate, caption).file
        moving.append(Item(file=file, caption=caption, detail=f"pushed {pushes}", sound=sound))
    if moving:
        yield Gallery(items=tuple(moving), title="Some of those that move")


def estimate(settings: MakeShapes, inputs: Mapping[str, Estimate]) -> Estimate:
    """Pictures of one shape compress to about a quarter of a byte a pixel beyond 150 bytes, captions are short."""
    samples = settings.samples + settings.validation + settings.held_out
    bytes_each = sum(
        member_bytes(content_bytes(stream, words=50)) * (1.0 if isinstance(stream, TextStream | ImageStream) else settings.moving)
        for stream in settings.streams.values()
    )
    return Estimate(samples, bytes=round(samples * bytes_each), streams=settings.streams)


STAGE = StageKind(
    name="make_shapes",
    settings=MakeShapes,
    run=run,
    finish=finish,
    produces="dataset",
    version=3,
    placement="shards",
    parallelism=lambda settings, inputs: len(plan(settings)),
    estimate=estimate,
)
