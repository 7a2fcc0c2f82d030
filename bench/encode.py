"""Encoding end to end, tar in and token shards out, beside the tokenizer's own rate on pictures that lie decoded in memory."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.datasets import make_artifact, make_pictures
from bench.figure import Figure, at_least, seconds_of
from worldloom.stages import encode_dataset
from worldloom.stages.artifact import execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.deterministic import deterministic
from worldloom.stages.worker import Worker
from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.image_settings import VqGan

ROUNDS = 3
SIZE = 64  # pixels
SHARDS, SAMPLES = 2, 512


def figures() -> Iterator[Figure]:
    """The default VQ-GAN, untrained: what its codes are does not change what they cost."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_pictures(root, "data", SIZE, SHARDS, SAMPLES)
        tokenizer = ImageTokenizer(build_autoencoder(VqGan(), seed=0), VqGan(), SIZE)
        codes = make_artifact(root, "codes", "tokenizer", lambda out: tokenizer.save_pretrained(out / "tokenizer"))
        settings = encode_dataset.EncodeDataset(run="encode_dataset", data="data", tokenizers={"frame": "codes"})
        pictures = Dataset(data).batch("train", "frame", np.arange(SHARDS * SAMPLES))
        out = root / "artifacts" / "tokens" / "f0"

        def end_to_end() -> None:
            shutil.rmtree(out, ignore_errors=True)
            execute(encode_dataset.STAGE, "tokens", settings, {"data": data, "tokenizers.frame": codes}, out, Worker())

        def alone() -> None:
            with deterministic(threads=1):
                for first in range(0, len(pictures), settings.batch_size):
                    tokenizer.encode(pictures[first : first + settings.batch_size])

        taken = seconds_of({"alone": alone, "end to end": end_to_end}, ROUNDS)
        rate = {name: len(pictures) / seconds for name, seconds in taken.items()}
        yield at_least("encode.end_to_end", rate["end to end"], "images/s", "tokenizer.encode alone", rate["alone"], goal=0.9)
