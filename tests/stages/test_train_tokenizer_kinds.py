"""Tokenizers of clips and sounds through the stage: figures, cards, exact resume, and refusals of what does not go together."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from worldloom.stages import encode_dataset, make_shapes, train_tokenizer
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.encode_dataset import EncodeDataset
from worldloom.stages.make_shapes import MakeShapes
from worldloom.stages.settings import AudioStream, ImageStream, TextStream, VideoStream
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import Values
from worldloom.stages.video_figures import strips, temporal_error
from worldloom.stages.worker import Interrupted, Worker
from worldloom.tokenizers.audio_measures import log_mel_l1
from worldloom.tokenizers.load import load_tokenizer

EMA = {"type": "ema", "code_width": 3, "place_after": 2}
SMALL = {"codebook_size": 9, "width": 4, "blocks": 1}
MEL = {"bins": 16, "window": 128, "hop": 32, "downsample": 16, "rounds": 4, "quantizer": EMA}
PICTURES = {**SMALL, "downsample": 8, "quantizer": EMA}
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip over time": ("clip", {"type": "vqgan", **PICTURES, "time_stride": 2, "discriminator_width": 4, "adversarial_from": 0.5}),
    "clip by frames": ("clip", {"type": "vqvae", **PICTURES}),
    "dvae of clips": ("clip", {"type": "dvae", **SMALL, "downsample": 8, "code_width": 3, "time_stride": 4}),
    "codec": (
        "sound",
        {"type": "codec", **SMALL, "downsample": 64, "quantizer": {**EMA, "type": "residual", "levels": 2}},
    ),
    "codec, judged": (
        "sound",
        {
            **{"type": "codec", **SMALL, "downsample": 64, "quantizer": EMA},
            **{"adversarial_weight": 3.0, "adversarial_from": 0.5, "discriminator_width": 3},
        },
    ),
    "mel, learned": (
        "sound",
        {"type": "mel", **SMALL, **MEL, "decoder": "learned", "vocoder_width": 5, "vocoder_blocks": 1},
    ),
    "mel": ("sound", {"type": "mel", **SMALL, **MEL}),
}
SHAPES = {
    "clip over time": (3, 2, 2),
    "clip by frames": (5, 2, 2),
    "dvae of clips": (2, 2, 2),
    "codec": (40, 2),
    "codec, judged": (40,),
    "mel, learned": (5, 1),
    "mel": (5, 1),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    streams = {
        "caption": TextStream(kind="text"),
        "view": ImageStream(kind="image", size=16),
        "clip": VideoStream(kind="video", size=16, frames=5, frame_rate=8.0),
        "sound": AudioStream(kind="audio", sample_rate=4_000, seconds=0.625),
    }
    settings = MakeShapes(run="make_shapes", streams=streams, samples=12, validation=3, held_out=5, shard_size=8)
    return execute(make_shapes.STAGE, "data", settings, {}, tmp_path_factory.mktemp("kinds") / "data" / "f0", Worker())


def settings_of(kind: str, **changes: Any) -> TrainTokenizer:
    stream, tokenizer = TYPES[kind]
    base = {"run": "train_tokenizer", "data": "data", "stream": stream, "steps": 6, "warmup": 2, "batch_size": 4, "log_every": 2}
    return TrainTokenizer.model_validate_json(json.dumps({**base, "tokenizer": tokenizer, **changes}))


def make(folder: Path, data: Artifact, settings: TrainTokenizer, worker: Worker | None = None) -> Artifact:
    return execute(train_tokenizer.STAGE, "codes", settings, {"data": data}, folder / "codes" / "f1", worker or Worker())


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_leaves_a_tokenizer_with_figures_and_a_card(tmp_path: Path, data: Artifact, kind: str) -> None:
    stream = TYPES[kind][0]
    made = make(tmp_path, data, settings_of(kind))
    tokenizer = load_tokenizer(made.folder / "tokenizer")
    assert tokenizer.shape == SHAPES[kind]
    assert made.counts == {"codebook_size": 9, "codes_per_sample": int(np.prod(SHAPES[kind]))}
    figures = json.loads(made.content("figures.json"))
    values = Values(Dataset(data), "held_out", stream)
    real = values[np.arange(len(values))]
    back = tokenizer.decode(tokenizer.encode(real))
    if stream == "clip":
        errors = np.square(real.astype(float) - back).reshape(len(real) * 5, -1).mean(1)
        assert figures["clip.psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-3)
        assert figures["clip.temporal_error"] == pytest.approx(temporal_error(real, back), abs=1e-3)
        assert figures["clip.bits_per_pixel"] == pytest.approx(np.prod(SHAPES[kind]) * np.log2(9) / (5 * 16 * 16), abs=1e-4)
    else:
        expected = log_mel_l1(torch.from_numpy(real), torch.from_numpy(back), 4_000).mean()
        assert figures["sound.log_mel_l1"] == pytest.approx(float(expected), abs=1e-3)
        assert figures["sound.bits_per_second"] == pytest.approx(np.prod(SHAPES[kind]) * np.log2(9) / 0.625, rel=1e-4)
    assert "| --- |" in (made.folder / "tokenizer" / "README.md").read_text()
    blocks = json.loads(made.content("card.json"))["blocks"]
    kinds = [block["type"] for block in blocks]
    drawn = {series for block in blocks if block["type"] == "curves" for series in block["series"]}
    logged = (made.folder / "logs" / "metrics.jsonl").read_text()
    assert {name for name in json.loads(logged.splitlines()[-1]) if name.startswith("loss/")} <= drawn
    assert kinds[0] == "picture" and {"table", "bars", "curves"} <= set(kinds) and ("sound" in kinds) == (stream == "sound")


def test_the_learned_decoder_trains_beside_the_codes_and_the_card_compares_it(tmp_path: Path, data: Artifact) -> None:
    plain, learned = (make(tmp_path / kind, data, settings_of(kind)) for kind in ("mel", "mel, learned"))
    tokenizers = [load_tokenizer(made.folder / "tokenizer") for made in (plain, learned)]
    values = Values(Dataset(data), "held_out", "sound")[np.arange(4)]
    assert np.array_equal(*(tokenizer.encode(values) for tokenizer in tokenizers))
    sounds = [tokenizer.decode(tokenizer.encode(values)) for tokenizer in tokenizers]
    assert not np.array_equal(*sounds)
    table = next(block for block in json.loads(learned.content("card.json"))["blocks"] if block["type"] == "table")
    assert [row[0] for row in table["rows"]] == ["mel, learned decoder", "the same codes, Griffin-Lim alone", "mu-law, 2 bits a sample"]
    assert table["rows"][1][2] == json.loads(plain.content("card.json"))["blocks"][5]["rows"][0][2]
    figures = json.loads(learned.content("figures.json"))
    assert figures["sound.log_mel_l1_of_mu_laws"] == pytest.approx(
        figures["sound.log_mel_l1"] / figures["sound.log_mel_l1_mu_law"], abs=1e-3
    )


def test_the_learned_decoder_is_averaged_with_all_other_weights(tmp_path: Path, data: Artifact) -> None:
    made = [make(tmp_path / str(ema), data, settings_of("mel, learned", ema=ema)) for ema in (None, 0.9)]
    last, averaged = (load_file(each.folder / "tokenizer" / "model.safetensors") for each in made)
    assert any(name.startswith("vocoder.") for name in last)
    for part in ("autoencoder.encoder.", "vocoder."):
        assert any(name.startswith(part) and not torch.equal(last[name], averaged[name]) for name in last)


@pytest.mark.parametrize("kind", ["clip over time", "codec", "codec, judged", "mel, learned"])
def test_stopped_and_started_again_it_leaves_the_same_bytes(tmp_path: Path, data: Artifact, kind: str) -> None:
    settings = settings_of(kind)
    whole = make(tmp_path / "whole", data, settings)
    steps: list[int] = []
    stopping = replace(Worker(), report=lambda done, *rest: steps.append(done), stopping=lambda: steps[-1:] == [4])
    with pytest.raises(Interrupted):
        make(tmp_path / "twice", data, settings, stopping)
    assert make(tmp_path / "twice", data, settings).manifest == whole.manifest


@pytest.mark.parametrize(
    ("kind", "stream", "message"),
    [
        ("codec", "clip", r"'codec' does not learn 'clip', which is of kind video; set it to vqgan or vqvae or dvae"),
        ("clip by frames", "sound", r"'vqvae' does not learn 'sound', which is of kind audio; set it to codec or mel"),
        ("clip over time", "view", r"tokenizer\.time_stride \(2\) is for clips, and 'view' is of pictures; leave it out"),
        ("codec", "caption", r"'caption' is no stream of this dataset that train_tokenizer can learn"),
    ],
)
def test_a_tokenizer_for_another_kind_of_stream_is_refused(tmp_path: Path, data: Artifact, kind: str, stream: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, data, settings_of(kind, stream=stream))


def test_sounds_of_another_rate_are_not_encoded_though_they_are_as_many_samples(tmp_path: Path, data: Artifact) -> None:
    codes = make(tmp_path, data, settings_of("mel", steps=4))
    streams = {"caption": TextStream(kind="text"), "sound": AudioStream(kind="audio", sample_rate=8_000, seconds=0.3125)}
    faster = MakeShapes(run="make_shapes", streams=streams, samples=3, validation=0, held_out=2, shard_size=8)
    other = execute(make_shapes.STAGE, "other", faster, {}, tmp_path / "other" / "f0", Worker())
    settings = EncodeDataset(run="encode_dataset", data="other", tokenizers={"sound": "codes"})
    with pytest.raises(ValueError, match=r"tokenizers\.sound: the tokenizer hears 4000 samples a second, the stream has 8000"):
        execute(encode_dataset.STAGE, "tokens", settings, {"data": other, "tokenizers.sound": codes}, tmp_path / "t" / "f2", Worker())


def test_clips_of_another_rate_are_not_encoded_though_they_are_as_many_frames(tmp_path: Path, data: Artifact) -> None:
    codes = make(tmp_path, data, settings_of("clip by frames", steps=4))
    streams = {"clip": VideoStream(kind="video", size=16, frames=5, frame_rate=10.0)}
    faster = MakeShapes(run="make_shapes", streams=streams, samples=3, validation=0, held_out=2, shard_size=8)
    other = execute(make_shapes.STAGE, "other", faster, {}, tmp_path / "other" / "f0", Worker())
    settings = EncodeDataset(run="encode_dataset", data="other", tokenizers={"clip": "codes"})
    with pytest.raises(ValueError, match=r"tokenizers\.clip: the tokenizer sees 8 frames a second, the stream has 10; set frame_rate"):
        execute(encode_dataset.STAGE, "tokens", settings, {"data": other, "tokenizers.clip": codes}, tmp_path / "t" / "f2", Worker())


def test_what_changes_between_frames_is_compared_in_units_of_itself() -> None:
    real = np.zeros((1, 3, 2, 2, 3), np.uint8)
    real[:, 1:] = 100
    assert temporal_error(real, real) == 0.0 and temporal_error(real, np.zeros_like(real)) == 1.0
    assert temporal_error(real[:, :1], real[:, :1]) == 0.0
    assert strips(real, real).shape[1] == 3 * (2 * 24 + 2)
