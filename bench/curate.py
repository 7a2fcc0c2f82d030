"""Curation: of planted exact and near duplicates (jpeg, crop, mirrored, all three) how many are found, how many others are lost, and what
memory it takes. `PICTURES=folder make bench ONLY=curate` takes the folder's pictures as well, such as hand-drawn characters.

Scenes are of several shapes. With one shape alone, a picture's crop is another picture that could have been drawn: nobody can tell.
"""

import io
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.datasets import make_artifact
from bench.figure import Figure, at_least, at_most
from worldloom.stages import curate, embed_dataset, pretrain_encoder, shapes, stream_image
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.commit import Commits
from worldloom.stages.dataset import Dataset
from worldloom.stages.dataset_writer import RawShard, write_dataset_json
from worldloom.stages.settings import ImageStream
from worldloom.stages.worker import Worker

SIDE = 64  # pixels
PICTURES, PLANTED = 10_000, 1_000  # all, and of exact and of near duplicates each
SHARD = 1_000  # samples
STREAMS = {"view": ImageStream(kind="image", size=SIDE)}
KINDS = ("jpeg", "crop", "mirrored", "all")
SEED = 11
STEPS = int(os.environ.get("STEPS", 400))  # of the encoder's training
FEW, MANY = 1_000, 8_000  # pictures of the two corpora whose memory is compared

Draw = Callable[[int], NDArray[np.uint8]]


class Planted(NamedTuple):
    """What is in a corpus: pictures in the order of their keys."""

    source: NDArray[np.int64]  # which original each picture shows
    kind: list[str]  # "original", "exact" or one of KINDS


def figures() -> Iterator[Figure]:
    """Scenes of shapes; the pictures of a folder, where one is given."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _found(Path(folder), "scenes", scene, PICTURES - 2 * PLANTED)
        yield from _memory(Path(folder))
    if given := os.environ.get("PICTURES"):
        files = sorted(path for path in Path(given).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        with tempfile.TemporaryDirectory() as folder:
            yield from _found(Path(folder), Path(given).name, lambda i: _read(files[i]), min(len(files), PICTURES - 2 * PLANTED))


def scene(i: int) -> NDArray[np.uint8]:
    """Three to six shapes, anywhere, over each other."""
    generator = np.random.default_rng((SEED, i))
    picture = np.zeros((SIDE, SIDE, 1)) + np.asarray(shapes.GROUND)
    for _ in range(generator.integers(3, 7)):
        x, y, radius = (np.float64(generator.uniform(low, high)) for low, high in ((0.15, 0.85), (0.15, 0.85), (0.08, 0.24)))
        cover = shapes.coverage(shapes.SHAPES[generator.integers(len(shapes.SHAPES))], x, y, radius, SIDE)[..., None]
        picture = picture * (1 - cover) + np.asarray(list(shapes.COLOURS.values())[generator.integers(len(shapes.COLOURS))]) * cover
    return np.rint(picture).astype(np.uint8)


def _read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def spoilt(picture: NDArray[np.uint8], kind: str, generator: np.random.Generator) -> NDArray[np.uint8]:
    """A near duplicate: 60 to 95 % of the area at an aspect up to 6 : 5, mirrored, as JPEG of quality 40 to 90."""
    if kind in ("crop", "all"):
        area, aspect = generator.uniform(0.6, 0.95), np.exp(generator.uniform(-1, 1) * np.log(1.2) / 2)
        width, height = min(1.0, area**0.5 * aspect), min(1.0, area**0.5 / aspect)
        left, top = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
        box = (left * SIDE, top * SIDE, (left + width) * SIDE, (top + height) * SIDE)
        picture = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))
    if kind in ("mirrored", "all"):
        picture = np.ascontiguousarray(picture[:, ::-1])
    if kind in ("jpeg", "all"):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=int(generator.integers(40, 91)))
        picture = np.asarray(Image.open(buffer))
    return picture


def plant(root: Path, name: str, draw: Draw, originals: int, planted: int) -> tuple[Artifact, Planted]:
    """A dataset of `originals` pictures and as many exact and near duplicates of some of them as said, all shuffled."""
    generator = np.random.default_rng(SEED)
    chosen = generator.permutation(originals)[: 2 * planted]
    source = np.concatenate([np.arange(originals), chosen])
    kinds = ["original"] * originals + ["exact"] * planted + [KINDS[i % len(KINDS)] for i in range(len(chosen) - planted)]
    order = generator.permutation(len(source))
    corpus = Planted(source[order], [kinds[i] for i in order])

    def write(out: Path) -> None:
        commits, shards = Commits.of(out), []
        for start in range(0, len(source), SHARD):
            shard = f"shard-{start // SHARD:06d}"
            rows = range(start, min(start + SHARD, len(source)))
            with commits.attempt(f"train/{shard}") as attempt:
                with RawShard(attempt, "train", shard, STREAMS) as raw:
                    for row in rows:
                        picture = spoilt(draw(int(corpus.source[row])), corpus.kind[row], np.random.default_rng((SEED, row)))
                        raw.add(f"{row:08d}", {"view": stream_image.encode(picture, STREAMS["view"])})
                attempt.commit(raw.keys, (), raw.counts)
            shards.append((shard, len(rows)))
        commits.finish([f"train/{shard}" for shard, _ in shards])
        write_dataset_json(out, STREAMS, {"train": shards})

    return make_artifact(root, name, "dataset", write), corpus


def train(root: Path, data: Artifact) -> Artifact:
    """DINO on the corpus itself."""
    settings = pretrain_encoder.PretrainEncoder.model_validate(
        {
            **{"run": "pretrain_encoder", "data": data.name, "stream": "view", "steps": STEPS, "save_every": STEPS},
            "encoder": {"type": "vit", "patch": 8, "width": 96, "depth": 4, "heads": 3},
            "objective": {"type": "dino", "prototypes": 512, "hidden": 256, "bottleneck": 64, "local_views": 2, "local_size": 32},
        }
    )
    return execute(pretrain_encoder.STAGE, "eye", settings, {"data": data}, root / "artifacts" / "eye" / "f0", Worker(threads=2))


def clean(root: Path, data: Artifact, eye: Artifact) -> Artifact:
    """Embedded and curated."""
    inputs = {"data": data, "encoder": eye}
    settings = embed_dataset.EmbedDataset(run="embed_dataset", data=data.name, encoder="eye", stream="view")
    seen = execute(embed_dataset.STAGE, "seen", settings, inputs, root / "artifacts" / f"seen-{data.name}" / "f0", Worker())
    about = curate.Curate(run="curate", data=data.name, features="seen")
    out = root / "artifacts" / f"clean-{data.name}" / "f0"
    return execute(curate.STAGE, "clean", about, {"data": data, "features": seen}, out, Worker())


def _found(root: Path, name: str, draw: Draw, originals: int) -> Iterator[Figure]:
    data, corpus = plant(root, name, draw, originals, PLANTED)
    eye = train(root, data)
    left = set(Dataset(clean(root, data, eye)).keys("train"))
    stays = np.array([f"{row:08d}" in left for row in range(len(corpus.source))])
    survivors = np.zeros(originals, np.int64)
    np.add.at(survivors, corpus.source[stays], 1)
    first = {int(source): row for row, source in enumerate(corpus.source) if corpus.kind[row] == "original"}
    for what, kinds, goal in (("exact", ("exact",), 0.99), *((kind, (kind,), 0.95) for kind in KINDS), ("near", KINDS, 0.95)):
        rows = [row for row, kind in enumerate(corpus.kind) if kind in kinds]
        gone = [not (stays[row] and stays[first[int(corpus.source[row])]]) for row in rows]
        yield at_least(f"curate.{name}.{what}", sum(gone), "duplicates found", "planted", len(rows), goal)
    yield at_most(f"curate.{name}.lost", int((survivors == 0).sum()), "pictures lost", "unique pictures", originals, 0.005)


def _memory(root: Path) -> Iterator[Figure]:
    """Embedding and curating in a process of their own: the most memory that is not mapped from files, for a corpus and a part of it, and
    how much of it each further picture takes."""
    eye = Artifact.open(root / "artifacts" / "eye" / "f0")
    for name, count in (("few", FEW), ("many", MANY)):
        plant(root, name, scene, count - 2 * (count // 10), count // 10)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        few, many = pool.starmap(_peak, [(root, name, eye.folder) for name in ("few", "many")], chunksize=1)
    yield at_most("curate.memory", many / 2**20, f"MiB for {MANY:,} pictures", f"for {FEW:,}", few / 2**20, 1.1)
    each = max(many - few, 0) / (MANY - FEW)
    yield at_most("curate.memory_each", each, "bytes for each further picture", "bytes of its pixels", 3 * SIDE * SIDE, 0.05)


def _peak(root: Path, name: str, eye: Path) -> int:
    """Bytes, looked at every 20 ms."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
            most = max(most, int(line.split()[1]) << 10)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        clean(root, Artifact.open(root / "artifacts" / name / "f0"), Artifact.open(eye))
    finally:
        done.set()
        watching.join()
    return most
