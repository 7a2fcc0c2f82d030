"""What several test files share: a whole run as a folder, made in seconds, whose image tokenizer and world model never learnt anything; and
two ranks that find each other.
"""

import importlib.util
import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from worldloom.stages.artifact import Artifact
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, StageSettings, TokensRef
from worldloom.stages.worker import Worker

if TYPE_CHECKING:
    from torch import Tensor


class Untrained(StageSettings):
    run: Literal["untrained"]


class UntrainedTokenizer(Untrained):
    data: DatasetRef
    size: int


class UntrainedSound(Untrained):
    data: DatasetRef


class UntrainedWorld(Untrained):
    tokens: TokensRef


def _tokenizer(settings: UntrainedTokenizer, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
    from worldloom.tokenizers.image_settings import VqVae
    from worldloom.tokenizers.quantizers.settings import Ema

    parts = VqVae(codebook_size=17, downsample=8, width=4, blocks=1, quantizer=Ema(code_width=3))
    ImageTokenizer(build_autoencoder(parts, seed=1).eval(), parts, settings.size, settings.size).save_pretrained(out / "tokenizer")


def _sound(settings: UntrainedSound, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    from worldloom.tokenizers.audio import AudioTokenizer
    from worldloom.tokenizers.audio_settings import Codec
    from worldloom.tokenizers.quantizers.settings import Residual

    parts = Codec(codebook_size=13, downsample=256, width=4, blocks=1, quantizer=Residual(levels=2))
    tokenizer = AudioTokenizer.build(parts, {"channels": 1, "samples": 2560, "sample_rate": 4000}, seed=1)
    tokenizer.autoencoder.eval()
    tokenizer.save_pretrained(out / "tokenizer")


def _world(settings: UntrainedWorld, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    import torch

    from worldloom.world_model.grammar import Grammar
    from worldloom.world_model.load import save_pretrained
    from worldloom.world_model.transformer import Shape, WorldModel
    from worldloom.world_model.vocabulary import Vocabulary

    about = json.loads(inputs["tokens"].content("tokens/dataset.json"))
    vocabulary = Vocabulary.of(about["streams"], about.get("clock"))
    shape = Shape(vocabulary.size, width=16, depth=1, heads=2, kv_heads=1, ff=24, head_width=8)
    save_pretrained(out / "world", WorldModel(shape, torch.Generator().manual_seed(2)), Grammar(vocabulary))


def _nothing(settings: Any, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    return {}


TOKENIZER = StageKind("untrained", UntrainedTokenizer, _tokenizer, _nothing, "tokenizer", 1, "shards")
SOUND = StageKind("untrained", UntrainedSound, _sound, _nothing, "tokenizer", 1, "shards")
WORLD = StageKind("untrained", UntrainedWorld, _world, _nothing, "world_model", 1, "gang")


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder with finished artifacts data, words_codes, view_codes, tokens and world, and the run that `runs/latest` leads to.

    The dataset has 12 pictures of 16 pixels (stream view) with captions (stream words): shapes, so that its oracle can read them.
    """
    from worldloom.stages import train_text_tokenizer
    from worldloom.stages.settings import ImageStream, TextStream
    from worldloom.stages.train_text_tokenizer import TrainTextTokenizer

    streams = {"words": TextStream(kind="text"), "view": ImageStream(kind="image", size=16)}
    text = TrainTextTokenizer(run="train_text_tokenizer", data="data", stream="words", vocab_size=300)
    view = UntrainedTokenizer(run="untrained", data="data", size=16)
    return _run(tmp_path_factory.mktemp("tiny"), streams, {"words": (train_text_tokenizer.STAGE, text), "view": (TOKENIZER, view)})


@pytest.fixture(scope="session")
def clocked_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_root`, with the streams words, and clip, push and sound on a clock of five steps; its world never learnt anything."""
    from worldloom.stages import train_action_tokenizer, train_text_tokenizer
    from worldloom.stages.settings import ActionStream, AudioStream, TextStream, VideoStream
    from worldloom.stages.train_action_tokenizer import TrainActionTokenizer
    from worldloom.stages.train_text_tokenizer import TrainTextTokenizer

    streams = {
        "words": TextStream(kind="text"),
        "clip": VideoStream(kind="video", size=16, frames=5, frame_rate=8.0, clock="step"),
        "push": ActionStream(kind="action", steps=4, choices=5, clock="step"),
        "sound": AudioStream(kind="audio", sample_rate=4000, seconds=0.64, clock="step"),
    }
    text = TrainTextTokenizer(run="train_text_tokenizer", data="data", stream="words", vocab_size=300)
    push = TrainActionTokenizer(run="train_action_tokenizer", data="data", stream="push")
    tokenizers = {
        "words": (train_text_tokenizer.STAGE, text),
        "clip": (TOKENIZER, UntrainedTokenizer(run="untrained", data="data", size=16)),
        "push": (train_action_tokenizer.STAGE, push),
        "sound": (SOUND, UntrainedSound(run="untrained", data="data")),
    }
    return _run(tmp_path_factory.mktemp("clocked"), streams, tokenizers)


@pytest.fixture(scope="session")
def studio_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_root`, with streams of all five kinds: words, view, and clip, push and sound on a clock of five steps."""
    from worldloom.stages import train_action_tokenizer, train_text_tokenizer
    from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, TextStream, VideoStream
    from worldloom.stages.train_action_tokenizer import TrainActionTokenizer
    from worldloom.stages.train_text_tokenizer import TrainTextTokenizer

    streams = {
        "words": TextStream(kind="text"),
        "view": ImageStream(kind="image", size=24),
        "clip": VideoStream(kind="video", size=16, frames=5, frame_rate=8.0, clock="step"),
        "push": ActionStream(kind="action", steps=4, choices=5, clock="step"),
        "sound": AudioStream(kind="audio", sample_rate=4000, seconds=0.64, clock="step"),
    }
    tokenizers = {
        "words": (train_text_tokenizer.STAGE, TrainTextTokenizer(run="train_text_tokenizer", data="data", stream="words", vocab_size=300)),
        "view": (TOKENIZER, UntrainedTokenizer(run="untrained", data="data", size=24)),
        "clip": (TOKENIZER, UntrainedTokenizer(run="untrained", data="data", size=16)),
        "push": (train_action_tokenizer.STAGE, TrainActionTokenizer(run="train_action_tokenizer", data="data", stream="push")),
        "sound": (SOUND, UntrainedSound(run="untrained", data="data")),
    }
    return _run(tmp_path_factory.mktemp("studio"), streams, tokenizers)


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Makes a run as `tiny_root` is one, of (root folder, streams, kind and settings of each stream's tokenizer)."""
    return _run


def _run(root: Path, streams: dict[str, Any], tokenizers: dict[str, tuple[StageKind, StageSettings]]) -> Path:
    from worldloom.stages import encode_dataset, make_shapes
    from worldloom.stages.artifact import execute
    from worldloom.stages.encode_dataset import EncodeDataset
    from worldloom.stages.make_shapes import MakeShapes

    made: dict[str, Artifact] = {}

    def make(name: str, kind: StageKind, settings: StageSettings, **inputs: str) -> None:
        given = {field.replace("__", "."): made[stage] for field, stage in inputs.items()}
        made[name] = execute(kind, name, settings, given, root / "artifacts" / name / "0123456789abcdef", Worker())

    shapes = MakeShapes(run="make_shapes", streams=streams, samples=12, validation=7, held_out=5, seed=1, shard_size=8)
    make("data", make_shapes.STAGE, shapes)
    for name, (kind, settings) in tokenizers.items():
        make(f"{name}_codes", kind, settings, data="data")
    encode = EncodeDataset(run="encode_dataset", data="data", tokenizers={name: f"{name}_codes" for name in tokenizers})
    make("tokens", encode_dataset.STAGE, encode, data="data", **{f"tokenizers__{name}": f"{name}_codes" for name in tokenizers})
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


@pytest.fixture(scope="session")
def clocked_world(clocked_root: Path) -> Artifact:
    """The untrained world model of `clocked_root`."""
    return Artifact.open(clocked_root / "artifacts" / "world" / "0123456789abcdef")


@pytest.fixture(scope="session")
def gang() -> Callable[..., None]:
    """Runs a Python file with some arguments as ranks 0 and 1 of one group; both must end with the code `expected`, 0 by default."""

    def run(file: str | Path, *arguments: str, expected: int = 0) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-W", "error", str(file), *arguments], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            )
            for rank in range(2)
        ]
        try:
            assert [rank.wait(timeout=1_800) for rank in ranks] == [expected, expected]
        finally:
            for rank in ranks:
                rank.kill()

    return run


@pytest.fixture
def of_two_ranks(gang: Callable[..., None], tmp_path: Path) -> Callable[..., list[dict[str, "Tensor"]]]:
    """What a test file's function (rank, ranks) -> tensors by name gives in each of two ranks."""

    def called(function: Callable[[int, int], Mapping[str, "Tensor"]]) -> list[dict[str, "Tensor"]]:
        from safetensors.torch import load_file

        gang(__file__, str(inspect.getsourcefile(function)), function.__name__, str(tmp_path))
        return [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]

    return called


def _as_a_rank(file: str, name: str, folder: str) -> None:
    """The other end of `of_two_ranks`."""
    import torch.distributed as dist
    from safetensors.torch import save_file

    spec = importlib.util.spec_from_file_location("in_ranks", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dist.init_process_group("gloo")
    made = getattr(module, name)(dist.get_rank(), dist.get_world_size())
    save_file({name: value.detach().clone().contiguous() for name, value in made.items()}, Path(folder) / f"{dist.get_rank()}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    _as_a_rank(*sys.argv[1:])
