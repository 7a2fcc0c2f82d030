"""Draws the shapes world (shapes.py) into raw shards: as many captioned pictures as asked, every one a function of the seed and its number.

Three splits: `train` and `validation` show combinations of shape, colour and place that training sees, `held_out` those it never sees.
The captions of `validation` and `held_out` are in wordings that training never sees either.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt

from worldloom.stages.artifact import Artifact
from worldloom.stages.estimate import Estimate, member_bytes
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import ImageStream, StageSettings, Stream
from worldloom.stages.worker import Worker

if TYPE_CHECKING:
    from worldloom.stages.shapes import Thing

SPLITS = ("train", "validation", "held_out")
SHOWN, SHOWN_SIDE = 12, 64  # pictures on the card, and their side in pixels


class MakeShapes(StageSettings):
    """Coloured shapes with captions; every text stream gets a caption, every image stream a picture of the same thing."""

    run: Literal["make_shapes"]
    streams: dict[str, Stream]
    samples: PositiveInt = Field(8_000, description="samples to train on")
    validation: NonNegativeInt = Field(400, description="samples of combinations that training sees, drawn anew")
    held_out: NonNegativeInt = Field(400, description="samples of combinations that training never sees")
    seed: NonNegativeInt = 0
    shard_size: Annotated[PositiveInt, Field(le=100_000, description="samples a shard")] = 2_000


class Shard(NamedTuple):
    """Samples `start` .. `stop` of a split."""

    split: str
    name: str
    start: int
    stop: int


def plan(settings: MakeShapes) -> tuple[Shard, ...]:
    """All shards, in order; the plan follows from the settings alone."""
    counts = dict(zip(SPLITS, (settings.samples, settings.validation, settings.held_out), strict=True))
    return tuple(
        Shard(split, f"shard-{start // settings.shard_size:06d}", start, min(start + settings.shard_size, count))
        for split, count in counts.items()
        for start in range(0, count, settings.shard_size)
    )


def run(settings: MakeShapes, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Draws this worker's shards that are not there yet."""
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset_writer import RawShard

    commits = Commits.of(out)
    shards = plan(settings)
    for number, shard in enumerate(worker.share(shards)):
        worker.check()
        name = f"{shard.split}/{shard.name}"
        if commits.find(name) is None:
            with commits.attempt(name) as attempt:
                with RawShard(attempt, shard.split, shard.name, settings.streams) as raw:
                    for key, values in _samples(settings, shard):
                        raw.add(key, values)
                attempt.commit(raw.keys, (), raw.counts)
        worker.report(number + 1, len(shards), "shards", {})


def finish(settings: MakeShapes, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Names the shards, describes the dataset and shows some of it."""
    from worldloom.stages import shapes
    from worldloom.stages.card import Card, Gallery, Item, write_card, write_picture
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset_writer import write_dataset_json

    shards = plan(settings)
    totals = Commits.of(out).finish([f"{shard.split}/{shard.name}" for shard in shards])
    splits = {shard.split: [(other.name, other.stop - other.start) for other in shards if other.split == shard.split] for shard in shards}
    write_dataset_json(out, settings.streams, splits, oracle="shapes")
    items = tuple(
        Item(file=write_picture(out, f"shown-{number:02d}", shapes.draw(thing, SHOWN_SIDE)), caption=caption)
        for number, (thing, caption) in enumerate(_imagined(settings, Shard("train", "shown", 0, min(SHOWN, settings.samples))))
    )
    card = Card(title="Shapes drawn", blocks=(Gallery(items=items, title=f"The first {len(items)} of {totals.n_out:,} samples"),))
    write_card(out, card)
    return {"samples": totals.n_out}


def _samples(settings: MakeShapes, shard: Shard) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The shard's keys and contents."""
    from worldloom.stages import shapes
    from worldloom.stages.streams import kind_of

    for i, (thing, caption) in enumerate(_imagined(settings, shard), start=shard.start):
        values = {
            name: kind_of("image").encode(shapes.draw(thing, stream.height), stream)
            if isinstance(stream, ImageStream)
            else caption.encode()
            for name, stream in settings.streams.items()
        }
        yield f"{shard.split}-{i:09d}", values


def _imagined(settings: MakeShapes, shard: Shard) -> Iterator[tuple["Thing", str]]:
    """The shard's things and captions: number i of a split is a function of the seed, the split and i."""
    import numpy as np

    from worldloom.stages import shapes

    number = SPLITS.index(shard.split)
    combinations = [one for one in shapes.COMBINATIONS if shapes.is_held_out(one) == (shard.split == "held_out")]
    wordings = shapes.KNOWN_WORDINGS if shard.split == "train" else shapes.NEW_WORDINGS
    for i in range(shard.start, shard.stop):
        generator = np.random.default_rng((settings.seed, number, i))
        thing = shapes.imagine(combinations[generator.integers(len(combinations))], generator)
        yield thing, shapes.describe(thing, wordings[generator.integers(len(wordings))])


def estimate(settings: MakeShapes, inputs: Mapping[str, Estimate]) -> Estimate:
    """Pictures of one shape compress to about a quarter of a byte a pixel beyond 150 bytes, captions are short."""
    samples = settings.samples + settings.validation + settings.held_out
    contents = [150 + stream.height * stream.width // 4 if isinstance(stream, ImageStream) else 50 for stream in settings.streams.values()]
    return Estimate(samples, bytes=samples * sum(map(member_bytes, contents)), streams=settings.streams)


STAGE = StageKind(
    name="make_shapes",
    settings=MakeShapes,
    run=run,
    finish=finish,
    produces="dataset",
    version=1,
    placement="shards",
    parallelism=lambda settings, inputs: len(plan(settings)),
    estimate=estimate,
)
