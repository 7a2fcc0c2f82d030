"""preprocessor_config.json: what transformers makes of it is what our networks read; a changed one is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldloom.tokenizers.audio import AudioTokenizer
from worldloom.tokenizers.audio_settings import Codec, Mel
from worldloom.tokenizers.encodec_settings import Encodec
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import Dvae, VqGan
from worldloom.tokenizers.learned import LearnedTokenizer
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.mel_picture import MelTokenizer
from worldloom.tokenizers.quantizers.settings import Ema
from worldloom.tokenizers.video import VideoTokenizer

SMALL: dict[str, Any] = {"codebook_size": 11, "downsample": 8, "width": 4}
PICTURES = {"vqgan": VqGan(**SMALL, quantizer=Ema(code_width=3)), "dvae": Dvae(**SMALL, code_width=3)}


def image(name: str, resample: str = "lanczos") -> ImageTokenizer:
    return ImageTokenizer.build(PICTURES[name], {"height": 16, "width": 24, "resample": resample}, seed=0)


@pytest.mark.parametrize("name", PICTURES)
def test_transformers_processor_gives_the_networks_input(tmp_path: Path, name: str) -> None:
    from transformers import ViTImageProcessorPil

    tokenizer = image(name)
    tokenizer.save_pretrained(tmp_path)
    theirs = ViTImageProcessorPil.from_pretrained(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    found = theirs(images=picture, return_tensors="np")["pixel_values"][0]
    ours = tokenizer.to_network(torch.from_numpy(picture)[None])[0].numpy()
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PICTURES)
def test_rescaling_and_normalising_by_the_file_is_the_networks_input(name: str) -> None:
    tokenizer = image(name)
    about = tokenizer.preprocessing
    picture = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    expected = (picture.astype(np.float64) * about["rescale_factor"] - about["image_mean"]) / about["image_std"]
    ours = tokenizer.to_network(torch.from_numpy(picture)[None])[0].numpy()
    np.testing.assert_allclose(expected.transpose(2, 0, 1), ours, rtol=0, atol=1e-6)


def sounds() -> list[LearnedTokenizer]:
    form = {"channels": 1, "samples": 400, "sample_rate": 4_000}
    about: dict[str, Any] = {"codebook_size": 11, "width": 4, "quantizer": Ema(code_width=3)}
    mel = MelTokenizer.build(Mel(**about, bins=16, window=128, hop=32, downsample=16), form, seed=0)
    return [mel, AudioTokenizer.build(Codec(**about, downsample=64), form, seed=0)]


def test_sounds_and_clips_say_rates_and_lengths() -> None:
    for tokenizer in sounds():
        about = tokenizer.preprocessing
        assert (about["sampling_rate"], about["num_samples"], about["num_channels"]) == (4_000, 400, 1)
    assert sounds()[0].preprocessing["hop_length"] == 32
    clips = VideoTokenizer.build(PICTURES["vqgan"], {"height": 16, "width": 24, "frames": 3, "frame_rate": 5.0}, seed=0)
    assert (clips.preprocessing["num_frames"], clips.preprocessing["fps"]) == (3, 5.0)


@pytest.mark.parametrize("loudness", [None, 0.2])
def test_rescaling_sounds_by_the_file_is_the_codecs_input(loudness: float | None) -> None:
    small: dict[str, Any] = {"codebook_size": 11, "downsample": 64, "width": 4, "quantizer": Ema(code_width=3)}
    form = {"channels": 2, "samples": 100, "sample_rate": 4_000}
    public = Encodec(codebook_size=11, levels=2, code_width=3, width=4, strides=(2, 3))
    x = torch.randn(1, 2, 100, generator=torch.Generator().manual_seed(0))
    for settings in (Codec(**small, loudness=loudness), public):
        tokenizer = AudioTokenizer.build(settings, form, seed=0)
        torch.testing.assert_close(tokenizer.to_network(x)[..., :100], x * tokenizer.preprocessing["rescale_factor"])


def test_how_pictures_are_resampled_is_part_of_the_fingerprint_and_comes_back(tmp_path: Path) -> None:
    nearest = image("vqgan", "nearest")
    assert nearest.fingerprint != image("vqgan").fingerprint
    nearest.save_pretrained(tmp_path)
    back = load_tokenizer(tmp_path)
    assert isinstance(back, ImageTokenizer) and back.resample == "nearest" and back.preprocessing["resample"] == 0
    assert back.fingerprint == nearest.fingerprint


def test_a_file_that_says_other_than_what_was_trained_is_refused(tmp_path: Path) -> None:
    image("vqgan").save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "image_mean": [0.4, 0.4, 0.4]}))
    with pytest.raises(ValueError, match=r"says image_mean = \[0\.4, 0\.4, 0\.4\], the weights were trained with \[0\.5, 0\.5, 0\.5\]"):
        load_tokenizer(tmp_path)
    file.write_text(json.dumps({**about, "size": {"height": 32, "width": 24}}))
    with pytest.raises(ValueError, match="says size = "):
        load_tokenizer(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        load_tokenizer(tmp_path)
