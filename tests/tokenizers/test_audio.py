"""The tokenizer of sounds: shapes, the same in any batch, the same from its folder, trimmed to its length."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from worldloom.stages.code_figures import bits
from worldloom.tokenizers.audio import AudioTokenizer
from worldloom.tokenizers.audio_settings import Codec
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.quantizers.settings import Ema, Fsq, Residual

SMALL = {"downsample": 16, "patch": 4, "width": 4, "blocks": 1}
SETTINGS = [
    Codec(codebook_size=11, quantizer=Residual(levels=3, code_width=3), **SMALL),
    Codec(codebook_size=11, quantizer=Ema(code_width=3), **SMALL),
    Codec(codebook_size=15, quantizer=Fsq(levels=(5, 3)), **SMALL),
]
FORM = {"channels": 2, "samples": 150, "sample_rate": 8_000}


def tokenizer(settings: Codec = SETTINGS[0]) -> AudioTokenizer:
    made = AudioTokenizer.build(settings, FORM, seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in made.autoencoder.state_dict().values():
            if value.is_floating_point():
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return made


def sounds(count: int) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(count, 2, 150)) * 0.2).clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.quantizer.type)
def test_codes_and_sounds_have_the_shapes_that_are_promised(settings: Codec) -> None:
    audio = tokenizer(settings)
    codes = audio.encode(sounds(3))
    assert codes.shape == (3, *audio.shape) and audio.shape[0] == 10  # 150 samples make 10 frames of 16
    assert audio.shape[1:] == ((3,) if audio.levels == 3 else ())
    back = audio.decode(codes)
    assert back.shape == (3, 2, 150) and back.dtype == np.float32 and np.abs(back).max() <= 1
    assert len(np.unique(codes)) > 2 and audio.encode(sounds(0)).shape == (0, *audio.shape)


def test_codes_do_not_depend_on_the_batch() -> None:
    audio, x = tokenizer(), sounds(19)
    together = audio.encode(x)
    assert all(np.array_equal(audio.encode(x[i : i + 1])[0], together[i]) for i in range(19))


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.quantizer.type)
def test_it_is_the_same_from_its_folder(tmp_path: Path, settings: Codec) -> None:
    audio = tokenizer(settings)
    audio.measured = "| a | table |"
    audio.save_pretrained(tmp_path)
    back = load_tokenizer(tmp_path)
    assert back.fingerprint == audio.fingerprint and np.array_equal(back.encode(sounds(2)), audio.encode(sounds(2)))
    assert "| a | table |" in (tmp_path / "README.md").read_text()


def test_a_late_sample_changes_no_early_code() -> None:
    audio, x = tokenizer(), sounds(1)
    other = x.copy()
    other[..., 100:] = 0.9
    before, after = audio.encode(x)[0], audio.encode(other)[0]
    assert np.array_equal(before[:6], after[:6]) and not np.array_equal(before, after)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"downsample": 48}, "downsample must be a power of two"),
        ({"crop": 16, "downsample": 16, "patch": 4}, r"crop\n  Input should be greater than or equal to 32"),
        ({"crop": 100}, r"crop \(100\) must be a multiple of downsample \(256\)"),
        ({"patch": 32, "downsample": 16}, "must not be above downsample"),
        ({"quantizer": Fsq(levels=(5, 3))}, "makes 15 codes, codebook_size is 512"),
    ],
)
def test_settings_that_make_no_codec_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Codec(**wrong)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reads sounds \[B, 2, 150\] of torch.float32, got torch.float32 \(1, 1, 150\)"):
        tokenizer().encode(np.zeros((1, 1, 150), np.float32))


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 150, 160])
def test_frames_are_the_hops_begun_and_what_comes_back_is_as_long_as_what_went_in(samples: int) -> None:
    audio = AudioTokenizer.build(SETTINGS[0], {**FORM, "samples": samples}, seed=0)
    codes = audio.encode(sounds(2)[..., :1].repeat(samples, axis=-1))
    assert codes.shape == (2, -(-samples // 16), 3) and audio.decode(codes).shape == (2, 2, samples)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    x = sounds(2)
    x[1, 0, 149] = value
    with pytest.raises(ValueError, match="hold NaN or infinite values"):
        tokenizer().encode(x)


def test_bits_a_second_are_levels_times_bits_of_a_code_times_frames_a_second() -> None:
    audio = AudioTokenizer.build(SETTINGS[0].model_copy(update={"codebook_size": 16}), {**FORM, "samples": 16 * 25}, seed=0)
    seconds = audio.samples / audio.sample_rate
    assert bits(audio) / seconds == pytest.approx(3 * 4 * 8_000 / 16)


def test_channels_are_coded_together_and_each_comes_back() -> None:
    audio, x = tokenizer(), sounds(1)
    swapped = x[:, ::-1].copy()
    assert not np.array_equal(audio.encode(x), audio.encode(swapped))
    back = audio.decode(audio.encode(x))[0]
    assert not np.array_equal(back[0], back[1])
