import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.image_settings import Dvae, VqGan, VqVae
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.quantizers.settings import Ema, Fsq, Gradient

SIZE = 24
SETTINGS = [
    VqGan(codebook_size=11, downsample=8, width=4, blocks=1, quantizer=Ema(code_width=3)),
    VqVae(codebook_size=11, downsample=4, width=4, blocks=1, quantizer=Gradient(code_width=3)),
    VqVae(codebook_size=15, downsample=4, width=4, blocks=1, quantizer=Fsq(levels=(5, 3))),
    VqGan(
        codebook_size=11, downsample=4, width=4, blocks=1, mixing=1, quantizer=Ema(code_width=3, restart_at="crowds", entropy_weight=0.1)
    ),
    Dvae(codebook_size=11, downsample=8, patch=4, width=4, blocks=1, code_width=5),
]


def tokenizer(settings: VqGan | VqVae | Dvae = SETTINGS[0], seed: int = 3) -> ImageTokenizer:
    """Untrained, but with weights and codes that tell pictures apart."""
    autoencoder = build_autoencoder(settings, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in autoencoder.state_dict().values():
            if value.is_floating_point():
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return ImageTokenizer(autoencoder, settings, SIZE, SIZE)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.type)
def test_codes_and_pictures_have_the_shapes_that_are_promised(settings: VqGan | VqVae | Dvae) -> None:
    image = tokenizer(settings)
    codes = image.encode(pictures(5))
    assert codes.shape == (5, *image.shape) and codes.dtype == np.int64
    assert codes.min() >= 0 and codes.max() < image.codebook_size and len(np.unique(codes)) > 1
    back = image.decode(codes)
    assert back.shape == (5, SIZE, SIZE, 3) and back.dtype == np.uint8
    assert image.encode(pictures(0)).shape == (0, *image.shape) and image.decode(codes[:0]).shape == (0, SIZE, SIZE, 3)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.type)
def test_a_saved_tokenizer_gives_the_same_codes(tmp_path: Path, settings: VqGan | VqVae | Dvae) -> None:
    image = tokenizer(settings)
    image.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert isinstance(loaded, ImageTokenizer)
    assert np.array_equal(loaded.encode(pictures(4)), image.encode(pictures(4)))
    codes = np.random.default_rng(1).integers(0, 11, (3, *image.shape))
    assert np.array_equal(loaded.decode(codes), image.decode(codes))
    assert loaded.fingerprint == image.fingerprint and loaded.shape == image.shape and loaded.kind == "image"


def test_codes_do_not_depend_on_the_batch() -> None:
    image, many = tokenizer(), pictures(37)
    together = image.encode(many)
    assert np.array_equal(together, np.concatenate([image.encode(one[None]) for one in many]))
    assert np.array_equal(image.decode(together)[20:23], image.decode(together[20:23]))


def test_the_fingerprint_changes_with_one_weight_and_with_settings() -> None:
    image = tokenizer()
    first = image.fingerprint
    assert first == tokenizer().fingerprint
    with torch.no_grad():
        next(image.autoencoder.parameters()).view(-1)[0] += 1e-6
    assert image.fingerprint != first
    other = ImageTokenizer(tokenizer().autoencoder, SETTINGS[0].model_copy(update={"adversarial_weight": 0.3}), SIZE, SIZE)
    assert other.fingerprint != first


def test_building_leaves_the_global_generator_alone_and_follows_the_seed() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (build_autoencoder(SETTINGS[0], seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("wrong", [pictures(2).astype(np.float32), pictures(2)[:, :-8], pictures(2)[0]], ids=["type", "size", "rank"])
def test_other_arrays_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="reads pictures"):
        tokenizer().encode(wrong)


def test_codes_that_no_picture_has_are_refused() -> None:
    image = tokenizer()
    with pytest.raises(ValueError, match=r"0 \.\. 10, got 0 \.\. 11"):
        image.decode(np.array([[[0, 1, 2], [3, 4, 5], [6, 7, 11]]]))
    with pytest.raises(ValueError, match=r"grids of \(3, 3\) codes"):
        image.decode(np.zeros((1, 9), np.int64))


def test_unsigned_codes_from_a_shard_are_read() -> None:
    image = tokenizer()
    codes = image.encode(pictures(2))
    assert np.array_equal(image.decode(codes.astype(np.uint16)), image.decode(codes))


def test_a_picture_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="pictures of 20 x 20 pixels cannot be divided into cells of 8"):
        ImageTokenizer(build_autoencoder(SETTINGS[0], 0), SETTINGS[0], 20, 20)


def test_files_of_another_run_are_refused(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name].reshape(-1)[:1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit config\.json"):
        ImageTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [({"format": 9}, "has format 9"), ({"tokenizer": {"type": "vqgan", "colour": 1}}, "does not describe"), ({"kind": "x"}, "of kind 'x'")],
)
def test_a_config_that_is_not_ours_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"downsample": 6}, "downsample must be a power of two"),
        ({"patch": 8, "downsample": 4}, "must not be above"),
        (
            {"mixing": 1, "time_stride": 2},
            r"mixing \(1\) is for pictures and clips coded frame by frame; leave out it or time_stride \(2\)",
        ),
        ({"receptive_field": "cell", "mixing": 1}, r"keeps cells apart and mixing \(1\) joins them"),
        ({"receptive_field": "cell", "time_stride": 2}, r"keeps cells apart and time_stride \(2\) joins them"),
        ({"receptive_field": "cell", "backbone": {"type": "vit"}}, "receptive_field shapes the conv backbone"),
    ],
)
def test_settings_that_make_no_network_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VqGan(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"type": "fsq"}, "levels"),
        ({"type": "fsq", "levels": (2, 256)}, "greater than or equal to 3"),
        ({"type": "ema", "levels": (8, 8, 8)}, "Extra inputs are not permitted"),
        ({"type": "fsq", "levels": (5, 3)}, "makes 15 codes, codebook_size is 512"),
        ({"type": "fsq", "levels": (8, 8, 8), "decay": 0.9}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_fsq_would_ignore_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VqVae.model_validate({"quantizer": wrong})


def test_what_stays_as_it_is_keeps_its_code_where_codes_see_their_cells_alone() -> None:
    image = tokenizer(VqGan(codebook_size=11, downsample=8, width=4, receptive_field="cell", quantizer=Ema(code_width=3)))
    changed = pictures(4)
    changed[:, :8, 8:16] = 255 - changed[:, :8, 8:16]
    before, after = image.encode(pictures(4)), image.encode(changed)
    elsewhere = np.ones(image.shape, bool)
    elsewhere[0, 1] = False
    np.testing.assert_array_equal(before[:, elsewhere], after[:, elsewhere])
    assert (before[:, 0, 1] != after[:, 0, 1]).any()
