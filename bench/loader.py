"""Reading token shards for training: shuffled, through the index, beside webdataset and beside the bare gather of numpy."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset

from bench.datasets import make_tokens
from bench.figure import Figure, at_least, at_most, seconds_of
from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Tokens, TokenStream
from worldloom.stages.order import order

ROUNDS = 5
SHARDS, SAMPLES = 8, 1_024
BATCH, WINDOW = 512, 8_192  # samples read at once, and whose order is computed at once
ROW = 256

ONE = {"frame": TokenStream("image", 8_192, (16, 16), "uint16", "", ROW)}
JOINED = {
    "caption": TokenStream("text", 8_192, None, "uint16", "", 40),
    "frame": TokenStream("image", 8_192, (16, 16), "uint16", "", ROW),
    "sound": TokenStream("audio", 4_096, (40,), "uint16", "", 40),
}


def figures() -> Iterator[Figure]:
    """Rows of one stream, three streams joined, both against webdataset and numpy; then how the first batch grows with the shards."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        yield from _one_stream(make_tokens(root, "one", ONE, _codes, SHARDS, SAMPLES))
        yield from _joined(make_tokens(root, "joined", JOINED, _codes, SHARDS, SAMPLES))
        few, many = (make_tokens(root, f"of-{shards}", ONE, _codes, shards, 4) for shards in (10, 1_000))
        taken = seconds_of({"many": lambda: _fresh_process(many), "few": lambda: _fresh_process(few)}, ROUNDS)
        yield at_most("loader.first_batch_of_1000_shards", taken["many"], "s from process start", "of 10 shards", taken["few"], goal=2)


def _one_stream(artifact: Artifact) -> Iterator[Figure]:
    tokens = Tokens(artifact)
    n = tokens.samples("train")
    memory = tokens.rows("train", "frame", np.arange(n))
    taken = seconds_of(
        {
            "index": lambda: [tokens.rows("train", "frame", indices) for indices in _shuffled(n)],
            "gather": lambda: [memory[indices] for indices in _shuffled(n)],
            "webdataset": lambda: [sample["npy"] for sample in _webdataset(artifact, "frame")],
        },
        ROUNDS,
    )
    rate = {name: n * ROW / seconds for name, seconds in taken.items()}
    yield at_least("loader.rows", rate["index"], "tokens/s", "webdataset.decode", rate["webdataset"], goal=100)
    yield at_least("loader.rows_of_gather", rate["index"], "tokens/s", "numpy gather in memory", rate["gather"], goal=0.3)


def _joined(artifact: Artifact) -> Iterator[Figure]:
    tokens = Tokens(artifact)
    n = tokens.samples("train")
    total = sum(int(tokens.lengths("train", stream).sum()) for stream in JOINED)
    memory = {stream: tokens.gather("train", stream, np.arange(n)).rows() for stream in JOINED}
    taken = seconds_of(
        {
            "index": lambda: [join(tokens, indices) for indices in _shuffled(n)],
            "gather": lambda: [
                [np.concatenate([memory[stream][i] for stream in JOINED]) for i in indices.tolist()] for indices in _shuffled(n)
            ],
            "webdataset": lambda: [
                np.concatenate([sample["npy"].ravel() for sample in samples])
                for samples in zip(*(_webdataset(artifact, stream) for stream in JOINED), strict=True)
            ],
        },
        ROUNDS,
    )
    rate = {name: total / seconds for name, seconds in taken.items()}
    yield at_least("loader.joined", rate["index"], "tokens/s", "webdataset.decode", rate["webdataset"], goal=30)
    yield at_least("loader.joined_of_memory", rate["index"], "tokens/s", "numpy arrays in memory, sample by sample", rate["gather"], goal=1)


def join(tokens: Tokens, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples' streams one behind the other: codes [total] and where each sample begins."""
    parts = [tokens.gather("train", stream, indices) for stream in JOINED]
    lengths = np.stack([np.diff(part.offsets) for part in parts], axis=1)  # [samples, streams]
    starts = (lengths.ravel().cumsum() - lengths.ravel()).reshape(lengths.shape)
    joined = np.empty(int(lengths.sum()), np.uint16)
    for number, part in enumerate(parts):
        shift = starts[:, number] - part.offsets[:-1]
        joined[np.repeat(shift, lengths[:, number]) + np.arange(len(part.values))] = part.values
    return joined, starts[:, 0]


def _codes(stream: str, i: int) -> np.ndarray:
    about = {**ONE, **JOINED}[stream]
    return np.random.default_rng(i).integers(about.codebook_size, size=about.shape or 10 + i % 31)


def _shuffled(n: int) -> Iterator[np.ndarray]:
    for first in range(0, n, WINDOW):
        window = order(0, 0, np.arange(first, min(first + WINDOW, n)), n)
        yield from (window[start : start + BATCH] for start in range(0, len(window), BATCH))


def _webdataset(artifact: Artifact, stream: str) -> webdataset.WebDataset:
    urls = [
        str(artifact.folder / name) for name in artifact.files() if name.startswith(f"tokens/train/{stream}/") and name.endswith(".tar")
    ]
    return webdataset.WebDataset(urls, shardshuffle=False).decode()


def _fresh_process(artifact: Artifact) -> None:
    """Starts Python, opens the dataset and reads a shuffled batch of 32 rows."""
    program = (
        "import sys; from pathlib import Path; import numpy as np; from worldloom.stages.artifact import Artifact; "
        "from worldloom.stages.dataset import Tokens; from worldloom.stages.order import order; "
        "tokens = Tokens(Artifact.open(Path(sys.argv[1]))); "
        "tokens.rows('train', 'frame', order(0, 0, np.arange(32), tokens.samples('train')))"
    )
    subprocess.run([sys.executable, "-c", program, str(artifact.folder)], check=True)
