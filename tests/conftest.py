"""What several test files share: a whole run as a folder, made in seconds, whose image tokenizer and world model never learnt anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from worldloom.stages.artifact import Artifact
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, StageSettings, TokensRef
from worldloom.stages.worker import Worker


class Untrained(StageSettings):
    run: Literal["untrained"]


class UntrainedTokenizer(Untrained):
    data: DatasetRef
    size: int


class UntrainedWorld(Untrained):
    tokens: TokensRef


def _tokenizer(settings: UntrainedTokenizer, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
    from worldloom.tokenizers.image_settings import VqVae
    from worldloom.tokenizers.quantizers.settings import Ema

    parts = VqVae(codebook_size=17, downsample=8, width=4, blocks=1, quantizer=Ema(code_width=3))
    ImageTokenizer(build_autoencoder(parts, seed=1).eval(), parts, settings.size, settings.size).save_pretrained(out / "tokenizer")


def _world(settings: UntrainedWorld, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    import torch

    from worldloom.world_model.grammar import Grammar
    from worldloom.world_model.load import save_pretrained
    from worldloom.world_model.transformer import Shape, WorldModel
    from worldloom.world_model.vocabulary import Vocabulary

    vocabulary = Vocabulary.of(json.loads(inputs["tokens"].content("tokens/dataset.json"))["streams"])
    shape = Shape(vocabulary.size, width=16, depth=1, heads=2, kv_heads=1, ff=24, head_width=8)
    save_pretrained(out / "world", WorldModel(shape, torch.Generator().manual_seed(2)), Grammar(vocabulary))


def _nothing(settings: Any, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    return {}


TOKENIZER = StageKind("untrained", UntrainedTokenizer, _tokenizer, _nothing, "tokenizer", 1, "shards")
WORLD = StageKind("untrained", UntrainedWorld, _world, _nothing, "world_model", 1, "gang")


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with finished artifacts data, words_codes, view_codes, tokens and world, and the run that `runs/latest` leads to.

    The dataset has 12 pictures of 16 pixels (stream view) with captions (stream words): shapes, so that its oracle can read them.
    """
    from worldloom.stages import encode_dataset, make_shapes, train_text_tokenizer
    from worldloom.stages.artifact import execute
    from worldloom.stages.encode_dataset import EncodeDataset
    from worldloom.stages.make_shapes import MakeShapes
    from worldloom.stages.settings import ImageStream, TextStream
    from worldloom.stages.train_text_tokenizer import TrainTextTokenizer

    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Artifact] = {}

    def make(name: str, kind: StageKind, settings: StageSettings, **inputs: str) -> None:
        given = {field.replace("__", "."): made[stage] for field, stage in inputs.items()}
        made[name] = execute(kind, name, settings, given, root / "artifacts" / name / "0123456789abcdef", Worker())

    streams = {"words": TextStream(kind="text"), "view": ImageStream(kind="image", size=16)}
    shapes = MakeShapes(run="make_shapes", streams=streams, samples=12, validation=7, held_out=5, seed=1, shard_size=8)
    make("data", make_shapes.STAGE, shapes)
    text = TrainTextTokenizer(run="train_text_tokenizer", data="data", stream="words", vocab_size=300)
    make("words_codes", train_text_tokenizer.STAGE, text, data="data")
    make("view_codes", TOKENIZER, UntrainedTokenizer(run="untrained", data="data", size=16), data="data")
    encode = EncodeDataset(run="encode_dataset", data="data", tokenizers={"words": "words_codes", "view": "view_codes"})
    make("tokens", encode_dataset.STAGE, encode, data="data", tokenizers__words="words_codes", tokenizers__view="view_codes")
    make("world", WORLD, UntrainedWorld(run="untrained", tokens="tokens"), tokens="tokens")
    run = root / "runs" / "first"
    run.mkdir(parents=True)
    (run / "artifacts.json").write_text(json.dumps({name: artifact.folder.relative_to(root).as_posix() for name, artifact in made.items()}))
    (root / "runs" / "latest").symlink_to("first")
    return root


@pytest.fixture(scope="session")
def tiny_world(tiny_root: Path) -> Artifact:
    """The untrained world model of `tiny_root`."""
    return Artifact.open(tiny_root / "artifacts" / "world" / "0123456789abcdef")
