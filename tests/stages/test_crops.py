"""Crops of samples: drawn from the key alone, the same part of every stream, samples of their own behind the whole ones."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from worldloom.stages import encode_dataset, import_folder
from worldloom.stages.artifact import Artifact, begin, complete, execute
from worldloom.stages.crops import Crop, apply_crop, crop_key, draw_crop
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.encode_dataset import EncodeDataset, plan
from worldloom.stages.import_folder import ImportFolder
from worldloom.stages.keys import fits_ustar, is_key
from worldloom.stages.kind import StageKind
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ImageStream, StageSettings, Stream, TextStream, VideoStream
from worldloom.stages.worker import Interrupted, Worker
from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.image_settings import VqVae
from worldloom.tokenizers.quantizers.settings import Ema
from worldloom.tokenizers.text import train_text

STREAMS: dict[str, Stream] = {
    "rgb": ImageStream(kind="image", size=16),
    "mask": ImageStream(kind="image", size=16, resample="nearest"),
    "words": TextStream(kind="text"),
}
CROPS = {"streams": ["rgb", "mask"], "count": 2, "scale": [0.25, 0.75], "flip": True, "seed": 5}


def png(picture: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return content.getvalue()


class Nothing(StageSettings):
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crops")
    (root / "in").mkdir()
    # "a" beside "a-b": with a suffix, keys of crops would not rise
    for number, name in enumerate(("a", "a-b", "c", "d", "e", "f", "g", "v")):
        picture = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (root / "in" / f"{name}.png").write_bytes(png(picture))
        (root / "in" / f"{name}.txt").write_text(f"picture {name}")
        if name != "e":
            (root / "in" / f"{name}.mask.png").write_bytes(png(picture // 128 * 255))
    settings = ImportFolder(
        run="import_folder", path=str(root / "in"), streams=STREAMS, validation_share=0.0, held_out="v.png", shard_size=4, parent=1
    )
    execute(import_folder.STAGE, "data", settings, {}, root / "artifacts" / "data" / "f0", Worker())
    about = VqVae(codebook_size=300, downsample=4, width=4, blocks=1, quantizer=Ema(code_width=3, place_after=-1))
    pictures, texts = ImageTokenizer(build_autoencoder(about, 0), about, 16, 16), train_text(["picture"] * 40, vocab_size=300)
    for name, tokenizer in (("pictures", pictures), ("texts", texts)):
        kind = StageKind(f"make_{name}", Nothing, lambda s, i, out, w, t=tokenizer: t.save_pretrained(out / "tokenizer"), lambda *_: {},
                         "tokenizer", 1, "shards")  # fmt: skip
        execute(kind, name, Nothing(run=kind.name), {}, root / "artifacts" / name / "f0", Worker())
    return root


def settings_of(batch_size: int = 3, **changes: Any) -> EncodeDataset:
    tokenizers = {"rgb": "pictures", "mask": "pictures", "words": "texts"}
    base = {"run": "encode_dataset", "data": "data", "tokenizers": tokenizers, "batch_size": batch_size, "crops": CROPS}
    return EncodeDataset.model_validate_json(json.dumps({**base, **changes}))


def inputs_of(root: Path) -> dict[str, Artifact]:
    names = {"data": "data", "tokenizers.rgb": "pictures", "tokenizers.mask": "pictures", "tokenizers.words": "texts"}
    return {field: Artifact.open(root / "artifacts" / name / "f0") for field, name in names.items()}


def encoded(root: Path, name: str, settings: EncodeDataset, worker: Worker | None = None) -> Artifact:
    return execute(encode_dataset.STAGE, name, settings, inputs_of(root), root / "artifacts" / name / "f0", worker or Worker())


@pytest.fixture(scope="module")
def tokens(root: Path) -> Artifact:
    return encoded(root, "tokens", settings_of())


def test_crops_stand_behind_the_whole_samples_with_the_codes_of_the_same_part_of_each_stream(root: Path, tokens: Artifact) -> None:
    data, made = Dataset(inputs_of(root)["data"]), Tokens(tokens)
    keys = data.keys("train")
    assert len(keys) == 7 and made.keys("train") == keys + [crop_key(key, crop) for crop in range(2) for key in keys]
    assert made.shards("train") == tuple(f"shard-{number:06d}" for number in range(6))
    pictures, texts = (open_tokenizer(root / "artifacts" / name / "f0" / "tokenizer") for name in ("pictures", "texts"))
    for i, key in enumerate(keys):
        assert np.array_equal(made.codes("train", "rgb", i), pictures.encode(data.batch("train", "rgb", [i]))[0].ravel())
        for crop in range(2):
            row, box = 7 * (1 + crop) + i, draw_crop(5, key, crop, (0.25, 0.75), True)
            for stream in ("rgb", "mask"):
                value = data.value("train", stream, i)
                expected = [] if value is None else pictures.encode(apply_crop(value, box, STREAMS[stream])[None])[0].ravel()  # type: ignore[arg-type]
                assert np.array_equal(made.codes("train", stream, row), expected)
            assert np.array_equal(made.codes("train", "words", row), texts.encode([data.value("train", "words", i)])[0])


def test_only_training_samples_are_cropped(root: Path, tokens: Artifact) -> None:
    made = Tokens(tokens)
    assert made.keys("held_out") == Dataset(inputs_of(root)["data"]).keys("held_out") and made.samples("held_out") == 1


def test_whole_samples_are_byte_for_byte_those_of_an_encoding_without_crops(root: Path, tokens: Artifact) -> None:
    plain = encoded(root, "plain", settings_of(crops=None))
    shards = [name for name in plain.files() if name.startswith("tokens/") and "shard-" in name]
    assert shards and all(plain.manifest[name] == tokens.manifest[name] for name in shards)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_neither_batches_nor_workers_change_a_byte(root: Path, tokens: Artifact, batch_size: int) -> None:
    settings, out = settings_of(batch_size), root / "artifacts" / f"many-{batch_size}" / "f0"
    begin(out, encode_dataset.STAGE, "tokens", settings, inputs_of(root), "f0")
    for rank in (2, 0, 1):
        encode_dataset.STAGE.run(settings, inputs_of(root), out, Worker(rank, 3, threads=rank + 1))
    complete(out, encode_dataset.STAGE.finish(settings, inputs_of(root), out))
    assert (out / "DONE.json").read_bytes() == (tokens.folder / "DONE.json").read_bytes()


@pytest.mark.parametrize("asked", [0, 3, 7])
def test_going_on_after_a_stop_changes_no_byte(root: Path, tokens: Artifact, asked: int) -> None:
    answers = iter([False] * asked + [True])
    with pytest.raises(Interrupted):
        encoded(root, f"stopped-{asked}", settings_of(), replace(Worker(), stopping=lambda: next(answers)))
    assert encoded(root, f"stopped-{asked}", settings_of()).manifest == tokens.manifest


def test_the_plan_counts_crops(root: Path) -> None:
    tasks = plan(settings_of(), Dataset(inputs_of(root)["data"]))
    assert [(task.source, task.crop) for task in tasks if task.crop is not None] == [
        (f"train/shard-{number:06d}", crop) for crop in range(2) for number in range(2)
    ]
    assert len({task.shard for task in tasks}) == len(tasks) == 2 + 1 + 4


def test_boxes_follow_from_seed_key_and_number_and_keep_to_their_scale() -> None:
    boxes = {
        (seed, key, number): draw_crop(seed, key, number, (0.25, 0.75), True)
        for seed in (0, 1)
        for key in ("a", "b/c")
        for number in (0, 1)
    }
    assert len(set(boxes.values())) == 8 and all(draw_crop(*at, (0.25, 0.75), True) == box for at, box in boxes.items())
    many = [draw_crop(0, str(number), 0, (0.25, 0.75), True) for number in range(2_000)]
    areas = np.array([box.side**2 for box in many])
    assert 0.25 <= areas.min() < 0.26 and 0.74 < areas.max() <= 0.75 and abs(areas.mean() - 0.5) < 0.02
    assert all(0 <= place <= 1 - box.side for box in many for place in (box.left, box.top))
    assert 900 < sum(box.flipped for box in many) < 1_100
    assert not any(draw_crop(0, str(number), 0, (0.25, 0.75), False).flipped for number in range(50))


@pytest.mark.parametrize(
    ("key", "message"), [("a/" * 98 + "a", "is no sample key"), ("a" * 154 + "/" + "b" * 39, "is too long for a tar: shorten the names")]
)
def test_a_key_that_a_crop_would_make_too_long_is_refused(key: str, message: str) -> None:
    assert is_key(key) and fits_ustar(f"{key}.npy")
    with pytest.raises(InputRejected, match=f"key_invalid: .*{message}"):
        crop_key(key, 0)
    assert crop_key(key[-40:].strip("/"), 12).startswith("crop12/")


def test_a_crop_of_everything_is_everything_and_turns_left_to_right() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    for resample in ("lanczos", "nearest"):
        stream = ImageStream(kind="image", size=(8, 12), resample=resample)  # type: ignore[arg-type]
        assert np.array_equal(apply_crop(picture, Crop(0.0, 0.0, 1.0, False), stream), picture)
        assert np.array_equal(apply_crop(picture, Crop(0.0, 0.0, 1.0, True), stream), picture[:, ::-1])


def test_nearest_keeps_the_labels_of_a_mask_and_frames_are_cut_alike() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (8, 12, 1), dtype=np.uint8).repeat(3, axis=2) * 90
    stream = ImageStream(kind="image", size=(8, 12), resample="nearest")
    quarter = apply_crop(mask, Crop(0.5, 0.25, 0.5, False), stream)
    assert np.array_equal(quarter, mask[2:6, 6:12].repeat(2, axis=0).repeat(2, axis=1))
    clip = np.stack([mask, mask[::-1]])
    video = VideoStream(kind="video", size=(8, 12), frames=2, frame_rate=4.0)
    cut = apply_crop(clip, Crop(0.1, 0.2, 0.6, True), video)
    still = ImageStream(kind="image", size=(8, 12))
    assert all(np.array_equal(cut[t], apply_crop(clip[t], Crop(0.1, 0.2, 0.6, True), still)) for t in range(2))


def test_one_box_shows_one_place_at_every_size() -> None:
    scene = np.zeros((64, 64, 3), np.uint8)
    scene[24:40, 32:48] = 255
    small = scene[::4, ::4]
    box = Crop(0.3, 0.2, 0.6, False)
    large, little = (apply_crop(x, box, ImageStream(kind="image", size=len(x))) for x in (scene, small))
    for one, other in zip(centre(large), centre(little), strict=True):
        assert abs(one - other) < 0.01


def centre(picture: np.ndarray) -> tuple[float, float]:
    """Of brightness, in shares of height and width."""
    light = picture[..., 0].astype(float)
    down, across = (light.sum(axis) / light.sum() @ (np.arange(light.shape[1 - axis]) + 0.5) / light.shape[1 - axis] for axis in (1, 0))
    return float(down), float(across)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"streams": ["depth"]}, r"crops\.streams: depth has no tokenizer here"),
        ({"scale": [0.8, 0.4]}, "scale goes from the smallest to the largest share"),
        ({"scale": [0.0, 0.4]}, "greater than 0"),
        ({"streams": []}, "at least 1 item"),
    ],
)
def test_crops_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings_of(crops={**CROPS, **wrong})
