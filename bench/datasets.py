"""Artifacts to measure on, made up on the spot: token datasets, raw pictures, an untrained tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldloom.stages import disk, stream_image
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.commit import Commits
from worldloom.stages.dataset import TokenStream
from worldloom.stages.dataset_writer import RawShard, TokenShard, write_dataset_json
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import ImageStream, StageSettings
from worldloom.stages.worker import Worker

Codes = Callable[[str, int], NDArray[Any]]


class Nothing(StageSettings):
    """A stage without settings."""


def make_artifact(root: Path, name: str, produces: str, write: Callable[[Path], None]) -> Artifact:
    """An artifact that holds whatever `write` puts into its folder."""
    kind = StageKind("bench", Nothing, lambda settings, inputs, out, worker: write(out), lambda *_: {}, produces, 1, "shards")
    return execute(kind, name, Nothing(run="bench"), {}, root / "artifacts" / name / "f0", Worker())


def make_tokens(root: Path, name: str, streams: Mapping[str, TokenStream], codes: Codes, shards: int, samples: int) -> Artifact:
    """A token dataset with one split; `codes` gives those of a stream's sample, `samples` is for each shard."""

    def write(out: Path) -> None:
        commits = Commits.of(out)
        for number in range(shards):
            keys = [f"{number:06d}-{row:06d}" for row in range(samples)]
            with commits.attempt(f"train/shard-{number:06d}") as attempt:
                for stream, about in streams.items():
                    with TokenShard(attempt, "train", stream, f"shard-{number:06d}", about.codebook_size) as shard:
                        for row, key in enumerate(keys):
                            shard.add(key, codes(stream, number * samples + row))
                attempt.commit(keys, (), {})
        commits.finish([f"train/shard-{number:06d}" for number in range(shards)])
        split = {"shards": [{"name": f"shard-{number:06d}", "samples": samples} for number in range(shards)], "samples": shards * samples}
        described = {stream: about._asdict() for stream, about in streams.items()}
        about = {"format": 1, "streams": described, "splits": {"train": split}}
        disk.write_file(out / "tokens" / "dataset.json", disk.canonical_json(about))

    return make_artifact(root, name, "tokens", write)


def make_pictures(root: Path, name: str, size: int, shards: int, samples: int) -> Artifact:
    """A raw dataset of smooth coloured pictures with a few edges, in one split."""
    streams = {"frame": ImageStream(kind="image", size=size)}

    def write(out: Path) -> None:
        commits = Commits.of(out)
        for number in range(shards):
            with commits.attempt(f"train/shard-{number:06d}") as attempt:
                with RawShard(attempt, "train", f"shard-{number:06d}", streams) as raw:
                    for row in range(samples):
                        raw.add(
                            f"{number:06d}-{row:06d}",
                            {"frame": stream_image.encode(picture(size, number * samples + row), streams["frame"])},
                        )
                attempt.commit(raw.keys, (), raw.counts)
        commits.finish([f"train/shard-{number:06d}" for number in range(shards)])
        write_dataset_json(out, streams, {"train": [(f"shard-{number:06d}", samples) for number in range(shards)]})

    return make_artifact(root, name, "dataset", write)


def picture(size: int, seed: int) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]: a gradient with noise, and a rectangle on it."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    shade = (x * generator.random() + y * generator.random())[..., None] * generator.integers(80, 256, 3)
    left, top = generator.integers(size // 2, size=2)
    shade[top : top + size // 3, left : left + size // 3] = generator.integers(256, size=3)
    noisy: NDArray[np.uint8] = (shade + generator.integers(8, size=shade.shape)).clip(0, 255).astype(np.uint8)
    return noisy
