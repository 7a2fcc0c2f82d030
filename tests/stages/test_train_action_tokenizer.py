"""Actions from a dataset to tokens: bins fitted by the stage, a span for every dimension, and back."""

import json
from pathlib import Path

import numpy as np
import pytest

from worldloom.stages import encode_dataset, train_action_tokenizer
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.commit import Commits
from worldloom.stages.dataset import Tokens
from worldloom.stages.dataset_writer import RawShard, write_dataset_json
from worldloom.stages.encode_dataset import EncodeDataset
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import ActionStream, StageSettings
from worldloom.stages.streams import kind_of
from worldloom.stages.train_action_tokenizer import TrainActionTokenizer
from worldloom.stages.worker import Worker
from worldloom.tokenizers.action_settings import Uniform
from worldloom.tokenizers.load import load_tokenizer
from worldloom.world_model.vocabulary import Vocabulary

STREAMS = {
    "arm": ActionStream(kind="action", steps=4, dimensions=2),
    "reward": ActionStream(kind="action", steps=4),
    "done": ActionStream(kind="action", steps=4, choices=2),
}
COUNTS = {"train": 40, "validation": 6}


class Nothing(StageSettings):
    pass


def value(name: str, split: str, i: int) -> np.ndarray:
    generator = np.random.default_rng((list(STREAMS).index(name), list(COUNTS).index(split), i))
    stream = STREAMS[name]
    if stream.choices:
        return generator.integers(0, stream.choices, (4, 1)).astype(np.float32)
    return (generator.normal(size=(4, stream.dimensions)) * [1.0, 50.0][: stream.dimensions]).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    def run(settings, inputs, out, worker):
        for split, count in COUNTS.items():
            with Commits.of(out).attempt(f"{split}/shard-000000") as attempt:
                with RawShard(attempt, split, "shard-000000", STREAMS) as raw:
                    for i in range(count):
                        contents = {name: kind_of("action").encode(value(name, split, i), about) for name, about in STREAMS.items()}
                        raw.add(f"{i:03d}", contents)
                attempt.commit(raw.keys, (), raw.counts)

    def finish(settings, inputs, out):
        Commits.of(out).finish([f"{split}/shard-000000" for split in COUNTS])
        write_dataset_json(out, STREAMS, {split: [("shard-000000", count)] for split, count in COUNTS.items()})
        return {}

    kind = StageKind("make_something", Nothing, run, finish, "dataset", 1, "shards")
    return execute(kind, "data", Nothing(run="make_something"), {}, tmp_path_factory.mktemp("a") / "data" / "f0", Worker())


def fit(data: Artifact, folder: Path, stream: str) -> Artifact:
    settings = TrainActionTokenizer(run="train_action_tokenizer", data="data", stream=stream, bins=Uniform(bins=32, cut=0.0))
    return execute(train_action_tokenizer.STAGE, stream, settings, {"data": data}, folder / stream / "f1", Worker())


def test_all_three_kinds_of_numbers_become_tokens_and_come_back(data: Artifact, tmp_path: Path) -> None:
    fitted = {name: fit(data, tmp_path, name) for name in STREAMS}
    settings = EncodeDataset(run="encode_dataset", data="data", tokenizers={name: name for name in STREAMS}, batch_size=7)
    inputs = {"data": data, **{f"tokenizers.{name}": artifact for name, artifact in fitted.items()}}
    tokens = Tokens(execute(encode_dataset.STAGE, "tokens", settings, inputs, tmp_path / "tokens" / "f2", Worker()))
    described = {name: (stream.levels, stream.shape, stream.codebook_size) for name, stream in tokens.streams.items()}
    assert described == {"arm": (2, (4, 2), 32), "reward": (1, (4,), 32), "done": (1, (4,), 2)}
    ids = Vocabulary.of({name: stream._asdict() for name, stream in tokens.streams.items()})
    assert len(ids.span(ids.index("arm"))) == 64
    for name, artifact in fitted.items():
        tokenizer = load_tokenizer(artifact.folder / "tokenizer")
        codes = tokens.codes("validation", name, 3).reshape(1, *(tokenizer.shape or ()))
        assert np.array_equal(codes, tokenizer.encode(value(name, "validation", 3)[None]))
    assert np.array_equal(load_tokenizer(fitted["done"].folder / "tokenizer").decode(codes)[0], value("done", "validation", 3))


def test_its_figures_are_of_samples_that_the_bins_have_not_seen(data: Artifact, tmp_path: Path) -> None:
    artifact = fit(data, tmp_path, "arm")
    figures = json.loads((artifact.folder / "figures.json").read_bytes())
    tokenizer = load_tokenizer(artifact.folder / "tokenizer")
    unseen = np.stack([value("arm", "validation", i) for i in range(COUNTS["validation"])])
    assert figures["arm.error"] == pytest.approx(np.abs(tokenizer.decode(tokenizer.encode(unseen)) - unseen).mean(), abs=1e-5)
    assert figures["arm.bits_per_sample"] == 40 and 0 < figures["arm.codebook_use"] <= 1
    assert "| dimension | smallest |" in (artifact.folder / "tokenizer" / "README.md").read_text()
    assert artifact.counts == {"codebook_size": 32, "codes_per_sample": 8}


def test_a_stream_of_another_kind_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    pictures = Artifact.open(tiny_root / "artifacts" / "data" / "0123456789abcdef")
    with pytest.raises(ValueError, match=r"'view' is no stream of actions of this dataset, which has view \(image\), words \(text\)"):
        fit(pictures, tmp_path, "view")
