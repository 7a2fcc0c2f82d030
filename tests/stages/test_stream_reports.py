"""Several streams that share one tokenizer: learnt together, measured apart, encoded by the same codes."""

import io
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from worldloom.stages import encode_dataset, import_folder, make_shapes, train_tokenizer
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.encode_dataset import EncodeDataset
from worldloom.stages.estimate import Estimate
from worldloom.stages.import_folder import ImportFolder
from worldloom.stages.make_shapes import MakeShapes
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.settings import AudioStream, ImageStream, Stream, VideoStream
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import ValueBatches, Values
from worldloom.stages.worker import Interrupted, Worker

STREAMS: dict[str, Stream] = {
    "rgb": ImageStream(kind="image", size=(16, 16)),
    "depth": ImageStream(kind="image", size=16),  # the same form, said otherwise
    "mask": ImageStream(kind="image", size=16, resample="nearest"),
    "wide": ImageStream(kind="image", size=(16, 24)),
    "empty": ImageStream(kind="image", size=16),
    "sound": AudioStream(kind="audio", sample_rate=8_000, seconds=0.05),
}
TOKENIZER = {
    **{"type": "vqvae", "codebook_size": 9, "downsample": 4, "width": 4, "blocks": 1},
    "quantizer": {"type": "ema", "code_width": 3, "place_after": 2},
}


def png(seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "in").mkdir()
    for number in range(9):
        (folder / "in" / f"{number}.png").write_bytes(png(number))
        (folder / "in" / f"{number}.depth.png").write_bytes(png(100 + number))
        (folder / "in" / f"{number}.wide.png").write_bytes(png(300 + number))
        if number % 2:
            (folder / "in" / f"{number}.mask.png").write_bytes(png(200 + number))
    settings = ImportFolder(run="import_folder", path=str(folder / "in"), streams=STREAMS, validation_share=0.0, held_out="[78].png")
    return execute(import_folder.STAGE, "data", settings, {}, folder / "artifacts" / "data" / "f0", Worker())


def settings_of(**changes: Any) -> TrainTokenizer:
    base = {"run": "train_tokenizer", "data": "data", "stream": "rgb", "also": ["depth", "mask"]}
    times = {"steps": 6, "warmup": 2, "batch_size": 4, "log_every": 2}
    return TrainTokenizer.model_validate_json(json.dumps({**base, **times, "tokenizer": TOKENIZER, **changes}))


def make(folder: Path, data: Artifact, settings: TrainTokenizer, worker: Worker | None = None) -> Artifact:
    return execute(train_tokenizer.STAGE, "codes", settings, {"data": data}, folder / "artifacts" / "codes" / "f0", worker or Worker())


@pytest.fixture(scope="module")
def codes(data: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make(tmp_path_factory.mktemp("codes"), data, settings_of())


def test_an_epoch_holds_every_value_of_every_stream_once(data: Artifact) -> None:
    dataset, streams = Dataset(data), ("rgb", "depth", "mask")
    batches = ValueBatches(dataset, "train", streams, batch_size=2, seed=3, worker=Worker())
    everything = [value.tobytes() for stream in streams for value in dataset.values("train", stream)]
    assert len(everything) == 7 + 7 + 3 == len(batches.values)
    seen = [value.tobytes() for batch, _ in islice(batches.after(None), 17) for value in batch]
    assert sorted(seen[:17]) == sorted(seen[17:]) == sorted(everything) and seen[:17] != seen[17:]
    assert np.array_equal(batches.values[np.array([14, 0, 7])][2], Values(dataset, "train", "depth")[np.array([0])][0])


def test_each_stream_is_measured_apart_on_one_card(codes: Artifact, data: Artifact) -> None:
    figures = json.loads(codes.content("figures.json"))
    tokenizer = open_tokenizer(codes.folder / "tokenizer")
    for stream in ("rgb", "depth", "mask"):
        real = np.stack(list(Dataset(data).values("held_out", stream)))
        errors = np.square(real.astype(float) - tokenizer.decode(tokenizer.encode(real))).reshape(len(real), -1).mean(1)
        assert figures[f"{stream}.psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-3)
    card = json.loads(codes.content("card.json"))
    shown = [block["file"] for block in card["blocks"] if block["type"] == "picture"]
    assert shown == ["pictures/reconstructions.png", *(f"streams/{name}/pictures/reconstructions.png" for name in ("depth", "mask"))]
    assert set(shown) <= set(codes.files()) and "depth.psnr" in card["headline"]
    assert [file for file in codes.files() if file.startswith("streams/")] == sorted(shown[1:])
    assert "## mask\n" in (codes.folder / "tokenizer" / "README.md").read_text()
    assert (codes.folder / "logs" / "rates-mask.json").is_file()


def test_stopped_and_started_again_it_leaves_the_same_bytes(tmp_path: Path, data: Artifact, codes: Artifact) -> None:
    steps: list[int] = []
    stopping = replace(Worker(), report=lambda done, *rest: steps.append(done), stopping=lambda: steps[-1:] == [4])
    with pytest.raises(Interrupted):
        make(tmp_path, data, settings_of(), stopping)
    assert make(tmp_path, data, settings_of()).manifest == codes.manifest


def test_one_tokenizer_encodes_them_all(tmp_path: Path, data: Artifact, codes: Artifact) -> None:
    streams = ("rgb", "depth", "mask")
    settings = EncodeDataset(run="encode_dataset", data="data", tokenizers=dict.fromkeys(streams, "codes"))
    inputs = {"data": data, **{f"tokenizers.{stream}": codes for stream in streams}}
    tokens = Tokens(execute(encode_dataset.STAGE, "tokens", settings, inputs, tmp_path / "tokens" / "f0", Worker()))
    tokenizer = open_tokenizer(codes.folder / "tokenizer")
    for stream in streams:
        values = list(Dataset(data).values("train", stream))
        expected = tokenizer.encode(np.stack(values)).reshape(-1)
        assert np.array_equal(tokens.gather("train", stream, np.arange(tokens.samples("train"))).values, expected)
        assert tokens.streams[stream].tokenizer == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (["wide"], r"'wide' \(image 16 x 24 x 3\) cannot share the tokenizer of 'rgb' \(image 16 x 16 x 3\)"),
        (["sound"], r"'sound' \(audio 1 x 400 at 8000 Hz\) cannot share"),
        (["empty"], "no sample of the split 'train' has the stream 'empty'"),
        (["colour"], "the dataset has no stream 'colour'"),
    ],
)
def test_a_stream_that_cannot_share_is_refused(tmp_path: Path, data: Artifact, also: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, data, settings_of(also=also))


def test_streams_that_cannot_share_are_refused_before_anything_runs(data: Artifact) -> None:
    inputs = {"data": Estimate(streams=Dataset(data).streams)}
    assert train_tokenizer.STAGE.estimate is not None
    assert train_tokenizer.STAGE.estimate(settings_of(also=["depth"]), inputs).codes
    with pytest.raises(ValueError, match=r"'wide' \(image 16 x 24 x 3\) cannot share the tokenizer"):
        train_tokenizer.STAGE.estimate(settings_of(also=["wide"]), inputs)


@pytest.mark.parametrize("also", [["rgb"], ["depth", "depth"]])
def test_a_stream_is_named_once(also: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"is named twice, stream itself included"):
        settings_of(also=also)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    streams: dict[str, Stream] = {
        "rgb": ImageStream(kind="image", size=16),
        "clip": VideoStream(kind="video", size=16, frames=3, frame_rate=8.0),
        "large": VideoStream(kind="video", size=24, frames=3, frame_rate=8.0),
    }
    settings = MakeShapes(run="make_shapes", streams=streams, samples=7, validation=0, held_out=5, moving=0.7, shard_size=4)
    return execute(make_shapes.STAGE, "data", settings, {}, tmp_path_factory.mktemp("moving") / "data" / "f0", Worker())


def test_a_tokenizer_of_pictures_learns_the_frames_of_clips_too_and_is_measured_on_them(tmp_path: Path, moving: Artifact) -> None:
    dataset = Dataset(moving)
    clips = np.stack([clip for clip in dataset.values("train", "clip") if clip is not None])
    batches = ValueBatches(dataset, "train", ("rgb", "clip"), batch_size=4, seed=3, worker=Worker())
    assert len(batches.values) == 7 + 3 * len(clips) > 10
    assert np.array_equal(batches.values[np.array([7 + 4, 7 + 2])], [clips[1, 1], clips[0, 2]])
    codes = make(tmp_path, moving, settings_of(also=["clip"]))
    tokenizer = open_tokenizer(codes.folder / "tokenizer")
    frames = np.concatenate([clip for clip in dataset.values("held_out", "clip") if clip is not None])
    errors = np.square(frames.astype(float) - tokenizer.decode(tokenizer.encode(frames))).reshape(len(frames), -1).mean(1)
    found = json.loads(codes.content("figures.json"))["clip.psnr"]
    assert found == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-3)


def test_clips_of_another_size_do_not_go_with_pictures_nor_pictures_with_clips(tmp_path: Path, moving: Artifact) -> None:
    with pytest.raises(
        ValueError, match=r"'large' \(video 3 x 24 x 24 x 3 at 8 Hz\) cannot share the tokenizer of 'rgb' \(image 16 x 16 x 3\)"
    ):
        make(tmp_path, moving, settings_of(also=["large"]))
    with pytest.raises(ValueError, match=r"'rgb' .* cannot share the tokenizer of 'clip'"):
        make(tmp_path, moving, settings_of(stream="clip", also=["rgb"]))
