"""Encoding end to end, tar in and token shards out, beside the tokenizer's own rate on pictures that lie decoded in memory; and what
running it on Ray adds."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bench.datasets import make_artifact, make_pictures
from bench.figure import Figure, at_least, at_most, seconds_of
from bench.timed_encode import TIMED
from worldloom.pipeline.executor import Job
from worldloom.pipeline.ray_executor import RayExecutor
from worldloom.pipeline.stage import Stage
from worldloom.stages import encode_dataset
from worldloom.stages.artifact import Artifact, begin, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.deterministic import deterministic
from worldloom.stages.worker import Worker
from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.image_settings import VqGan

ROUNDS = 3
SIZE = 64  # pixels
SHARDS, SAMPLES = 4, 1024  # a stage that is long beside its start and its last files
MINUTE = 60.0  # seconds: a short stage


def figures() -> Iterator[Figure]:
    """The default VQ-GAN, untrained: what its codes are does not change what they cost."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer = ImageTokenizer(build_autoencoder(VqGan(), seed=0), VqGan(), SIZE, SIZE)
        inputs = {
            "data": make_pictures(root, "data", SIZE, SHARDS, SAMPLES),
            "tokenizers.frame": make_artifact(root, "codes", "tokenizer", lambda out: tokenizer.save_pretrained(out / "tokenizer")),
        }
        settings = encode_dataset.EncodeDataset(run="encode_dataset", data="data", tokenizers={"frame": "codes"})
        yield _end_to_end(root, settings, inputs, tokenizer)
        yield _ray(root, settings, inputs)


def _end_to_end(root: Path, settings: encode_dataset.EncodeDataset, inputs: Mapping[str, Artifact], tokenizer: ImageTokenizer) -> Figure:
    pictures = Dataset(inputs["data"]).batch("train", "frame", np.arange(SHARDS * SAMPLES))
    out = root / "artifacts" / "tokens" / "f0"

    def end_to_end() -> None:
        shutil.rmtree(out, ignore_errors=True)
        execute(encode_dataset.STAGE, "tokens", settings, inputs, out, Worker())

    def alone() -> None:
        with deterministic(threads=1):
            for first in range(0, len(pictures), settings.batch_size):
                tokenizer.encode(pictures[first : first + settings.batch_size])

    taken = seconds_of({"alone": alone, "end to end": end_to_end}, ROUNDS)
    rate = {name: len(pictures) / seconds for name, seconds in taken.items()}
    return at_least("encode.end_to_end", rate["end to end"], "images/s", "tokenizer.encode alone", rate["alone"], goal=0.92)


def _ray(root: Path, settings: encode_dataset.EncodeDataset, inputs: Mapping[str, Artifact]) -> Figure:
    """The executor's time less that of its busiest worker: actors started, a task sent, an answer waited for. It does not grow with
    the stage, so it is set beside a minute of work."""
    executor = RayExecutor(workers=1)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    executor.start([])
    try:
        added = []
        for turn in range(4):
            out = root / "artifacts" / "ray" / f"f{turn}"
            stage = Stage("ray", TIMED, settings, {}, out.name, out)
            begin(out, TIMED, "ray", settings, inputs, out.name)
            start = time.perf_counter()
            executor.run(Job(stage, inputs, out / "staging" / "stop-run"))
            wall = time.perf_counter() - start
            added.append(wall - max(float(path.read_text()) for path in (out / "logs").glob("worker-*.txt")))
    finally:
        executor.close()
    return at_most("encode.ray", sorted(added[1:])[1], "s that Ray adds to a stage", "a minute of encoding", MINUTE, goal=0.02)
