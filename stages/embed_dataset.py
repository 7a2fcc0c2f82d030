"""Embeds the pictures of a dataset by a trained encoder: raw shards in, features out, one task per shard (files: features.py).

A batch never spans two shards and the last one is filled up to full size, so that a picture's features depend neither on the number of
workers nor on where a run was stopped.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, EncoderRef, StageSettings, StreamName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from worldloom.stages.artifact import Artifact
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.eye import Eye, Keep
    from worldloom.stages.worker import Worker


UNSCORED = ("without_caption", "caption_too_long")  # why a picture has no cosine with a caption


class EmbedDataset(StageSettings):
    """Pictures to features."""

    run: Literal["embed_dataset"]
    data: DatasetRef
    encoder: EncoderRef
    stream: Annotated[str, StreamName(("image",))] = Field(description="the pictures; brought to the side that the encoder learnt on")
    keep: Literal["pooled", "tokens", "joint"] = Field(
        default="pooled",
        description="pooled: one vector for a picture, to compare pictures by; tokens: one for each part of it, to read it by; "
        "joint: the vector that a CoCa compares with texts",
    )
    captions: Annotated[str, StreamName(("text",))] | None = Field(
        default=None,
        description="texts that each picture's vector is compared with, by the encoder's text side; needs keep: joint. null: none",
    )
    batch_size: PositiveInt = Field(default=64, description="pictures that go through the encoder together")

    @model_validator(mode="after")
    def _captions_need_the_joint_space(self) -> Self:
        if self.captions is not None and self.keep != "joint":
            raise ValueError(f"captions ({self.captions}) are compared with joint vectors, and keep is {self.keep}; set it to joint")
        return self


def run(settings: EmbedDataset, inputs: Mapping[str, "Artifact"], out: Path, worker: "Worker") -> None:
    """Embeds this worker's shards that are not committed yet."""
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.deterministic import deterministic
    from worldloom.stages.eye import open_eye

    data, commits = Dataset(inputs["data"]), Commits.of(out)
    shards = plan(data)
    if all(commits.find(shard) is not None for shard in shards):
        return
    eye = open_eye(inputs["encoder"])
    done, total = 0, sum(data.shard_samples(*shard.split("/")) for shard in shards)
    with deterministic(threads=1):
        for shard in worker.share(shards):
            if commits.find(shard) is None:
                _embed(settings, data, shard, eye, commits, worker)
            done += data.shard_samples(*shard.split("/"))
            worker.report(done, total, "samples", {})
            worker.check()


def finish(settings: EmbedDataset, inputs: Mapping[str, "Artifact"], out: Path) -> dict[str, Any]:
    """Names the files, describes them and writes the card."""
    from worldloom.stages.card import Card, Table, write_card, write_figures
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.features import describe_features

    data = Dataset(inputs["data"])
    totals = Commits.of(out).finish(plan(data))
    pictures = {shard: commit.counts["pictures"] for shard, commit in totals.shards.items()}
    if not sum(pictures.values()):
        raise ValueError(f"no sample of {settings.data} has the stream {settings.stream!r}; there is nothing to embed")
    width, tokens = (max(commit.counts[what] for commit in totals.shards.values()) for what in ("width", "tokens"))
    splits = {split: [(shard, pictures[f"{split}/{shard}"]) for shard in data.shards(split)] for split in data.splits}
    scored = settings.captions is not None
    describe_features(out, settings.stream, settings.keep, width, tokens if settings.keep == "tokens" else None, scored, splits)
    rows = tuple((split, sum(count for _, count in shards)) for split, shards in splits.items())
    table = Table(
        columns=("split", "pictures"), rows=rows, title=f"Features of {width} numbers" + (f", {tokens} a picture" if tokens else "")
    )
    unscored = {why: sum(commit.counts[why] for commit in totals.shards.values()) for why in (UNSCORED if scored else ())}
    write_figures(out, {f"{settings.stream}.{what}": count for what, count in {"embedded": sum(pictures.values()), **unscored}.items()})
    write_card(out, Card(title=f"{settings.stream} as seen by {settings.encoder}", blocks=(table,)))
    return {"pictures": sum(pictures.values()), "width": width}


def plan(data: "Dataset") -> list[str]:
    """Every shard, as split/name."""
    return [f"{split}/{shard}" for split in data.splits for shard in data.shards(split)]


def _embed(settings: EmbedDataset, data: "Dataset", shard: str, eye: "Eye", commits: "Commits", worker: "Worker") -> None:
    """Embeds and commits one shard."""
    import numpy as np

    from worldloom.stages.eye import shrink
    from worldloom.stages.features import DIGEST_BYTES, THUMB, ShardFeatures, digest_of, write_features
    from worldloom.stages.streams import kind_of

    split, name = shard.split("/")
    reader, about = data.reader(split, name, settings.stream), data.streams[settings.stream]
    samples = np.flatnonzero(reader.present).astype(np.int64)
    form = eye.form(settings.keep)
    rows = np.empty((len(samples), *form), np.float16 if settings.keep == "tokens" else np.float32)
    digests, scores = np.empty((len(samples), DIGEST_BYTES), np.uint8), np.full(len(samples), np.nan, np.float32)
    thumbs = np.empty((len(samples), THUMB, THUMB, 3), np.uint8)
    unscored = Counter(dict.fromkeys(UNSCORED if settings.captions is not None else (), 0))
    for first in range(0, len(samples), settings.batch_size):
        part = slice(first, first + settings.batch_size)
        contents = [content for row in samples[part].tolist() if (content := reader.content(row)) is not None]
        pictures = np.stack([kind_of(about.kind).decode(content, about) for content in contents])
        digests[part] = [digest_of(picture) for picture in pictures]
        thumbs[part] = shrink(pictures, THUMB)
        rows[part] = embedded(eye, pictures, settings.batch_size, settings.keep)
        strange = ~np.isfinite(rows[part]).reshape(len(pictures), -1).all(1)
        if strange.any():
            half = settings.keep == "tokens"
            raise ValueError(
                f"{settings.encoder} sees numbers that are not finite{', or too large for half precision,' if half else ''} in "
                f"{split}/{reader.key(int(samples[part][strange][0]))}; train it anew{', or set keep to pooled' if half else ''}"
            )
        if settings.captions is not None:
            scores[part], found = _scores(settings, data, shard, eye, samples[part], rows[part])
            unscored.update(found)
        worker.check()
    with commits.attempt(shard) as attempt:
        write_features(
            attempt, split, name, ShardFeatures(rows, samples, digests, thumbs, scores if settings.captions is not None else None)
        )
        counts = {"pictures": len(samples), "width": form[-1], "tokens": form[0] if settings.keep == "tokens" else 0, **unscored}
        attempt.commit([reader.key(row) for row in samples.tolist()], (), counts)


def embedded(eye: "Eye", pictures: "NDArray[np.uint8]", batch_size: int, keep: "Keep") -> "NDArray[np.float32]":
    """[B, D], or [B, T, D], of up to `batch_size` pictures, which are filled up to that number: others have other last digits."""
    import numpy as np

    filled = np.concatenate([pictures, np.repeat(pictures[-1:], batch_size - len(pictures), axis=0)])
    found: NDArray[np.float32] = eye.see(filled, keep)[: len(pictures)].float().cpu().numpy()
    return found


def _scores(
    settings: EmbedDataset, data: "Dataset", shard: str, eye: "Eye", samples: "NDArray[np.int64]", rows: "NDArray[np.float32]"
) -> "tuple[NDArray[np.float32], dict[str, int]]":
    """[B]: cosine of each picture with its caption, NaN where it has none that the text decoder has room for; and how many these are."""
    import numpy as np

    split, name = shard.split("/")
    assert settings.captions is not None
    reader = data.reader(split, name, settings.captions)
    scores, counts = np.full(len(samples), np.nan, np.float32), dict.fromkeys(UNSCORED, 0)
    for place, row in enumerate(samples.tolist()):  # one by one: how wide a batch of texts is follows from its longest
        content = reader.content(row)
        text = None if content is None else bytes(content).decode("utf-8")
        if text is None:
            counts["without_caption"] += 1
        elif not eye.reads_texts.has_room_for(text):
            counts["caption_too_long"] += 1
        else:
            said = eye.reads_texts.texts([text])[0].cpu().numpy()
            scores[place] = rows[place] @ said / max(float(np.linalg.norm(rows[place]) * np.linalg.norm(said)), 1e-12)
    return scores, counts


def parallelism(settings: EmbedDataset, inputs: Mapping[str, "Artifact"]) -> int:
    from worldloom.stages.dataset import Dataset

    return len(plan(Dataset(inputs["data"])))


def estimate(settings: EmbedDataset, inputs: Mapping[str, Estimate]) -> Estimate:
    """As many as the dataset has; how wide, the encoder says."""
    return Estimate(inputs["data"].samples)


STAGE = StageKind(
    name="embed_dataset",
    settings=EmbedDataset,
    run=run,
    finish=finish,
    produces="features",
    version=3,
    placement="shards",
    parallelism=parallelism,
    estimate=estimate,
)
