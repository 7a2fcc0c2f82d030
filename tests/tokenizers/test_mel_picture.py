"""Sounds by their spectrograms: shapes, the same in any batch and from the folder, tones that keep their pitch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from worldloom.tokenizers.audio_settings import Mel
from worldloom.tokenizers.griffin_lim import amplitudes_of, griffin_lim
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.mel_picture import MelTokenizer
from worldloom.tokenizers.quantizers.settings import Ema, Residual

SMALL = {"bins": 32, "window": 256, "hop": 64, "downsample": 8, "patch": 4, "width": 4, "blocks": 1, "rounds": 8}
FORM = {"channels": 1, "samples": 3_000, "sample_rate": 8_000}


def tokenizer(settings: Mel | None = None) -> MelTokenizer:
    made = MelTokenizer.build(settings or Mel(codebook_size=11, quantizer=Ema(code_width=3), **SMALL), FORM, seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in made.autoencoder.state_dict().values():
            if value.is_floating_point():
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return made


def sounds(count: int) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(count, 1, 3_000)) * 0.1).clip(-1, 1).astype(np.float32)


def tone(hertz: float) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(3_000) / 8_000)[None, None]


def test_codes_and_sounds_have_the_shapes_that_are_promised(tmp_path: Path) -> None:
    audio = tokenizer()
    codes = audio.encode(sounds(3))
    assert audio.shape == (6, 4) and codes.shape == (3, 6, 4)  # 47 frames are filled up to 48
    back = audio.decode(codes)
    assert back.shape == (3, 1, 3_000) and back.dtype == np.float32 and np.abs(back).max() <= 1
    assert np.array_equal(back, audio.decode(codes))
    audio.save_pretrained(tmp_path)
    assert np.array_equal(load_tokenizer(tmp_path).encode(sounds(3)), codes)
    assert tokenizer(Mel(codebook_size=11, quantizer=Residual(levels=2, code_width=3), **SMALL)).shape == (6, 4, 2)


def test_codes_do_not_depend_on_the_batch() -> None:
    audio, x = tokenizer(), sounds(18)
    together = audio.encode(x)
    assert all(np.array_equal(audio.encode(x[i : i + 1])[0], together[i]) for i in range(18))


@pytest.mark.parametrize("hertz", [400.0, 900.0, 2_000.0])
def test_a_tone_keeps_its_pitch_and_loudness_through_the_picture(hertz: float) -> None:
    audio = tokenizer(Mel(bins=64, window=512, hop=128, downsample=16, patch=4, width=4))
    picture = audio.to_network(tone(hertz))
    assert picture.shape == (1, 1, 32, 64) and float(picture.min()) >= -1 and float(picture.max()) <= 1.1
    back = audio.to_values(picture)[0, 0].numpy()
    spectrum = np.abs(np.fft.rfft(back * np.hanning(3_000)))
    assert abs(spectrum.argmax() * 8_000 / 3_000 - hertz) < 0.05 * hertz
    assert 0.2 < np.abs(back[500:2_500]).max() < 1.0


def test_a_learned_decoder_changes_sounds_and_no_code_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    settings = Mel(codebook_size=11, quantizer=Ema(code_width=3), **SMALL)
    plain = MelTokenizer.build(settings, FORM, seed=3)
    learned = MelTokenizer.build(settings.model_copy(update={"decoder": "learned", "vocoder_width": 8, "vocoder_blocks": 1}), FORM, seed=3)
    codes = learned.encode(sounds(2))
    assert np.array_equal(codes, plain.encode(sounds(2)))
    np.testing.assert_allclose(learned.decode(codes), plain.decode(codes), atol=1e-5)  # untrained it adds nothing
    assert learned.vocoder is not None
    torch.nn.init.normal_(learned.vocoder.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    assert np.abs(learned.decode(codes) - plain.decode(codes)).max() > 1e-3
    np.testing.assert_array_equal(learned.decode_plainly(codes), plain.decode(codes))
    assert np.array_equal(learned.decode(codes), learned.decode(codes)) and np.array_equal(
        learned.decode(codes)[:1], learned.decode(codes[:1])
    )
    learned.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == learned.fingerprint != plain.fingerprint
    assert np.array_equal(loaded.decode(codes), learned.decode(codes))


def test_silence_stays_silent() -> None:
    audio = tokenizer()
    assert float(audio.to_values(audio.to_network(torch.zeros(1, 1, 3_000))).abs().max()) < 1e-6


def test_rounds_of_griffin_lim_bring_the_amplitudes_nearer() -> None:
    wanted = torch.stft(tone(700.0)[0] + tone(1_900.0)[0], 256, 64, window=torch.hann_window(256), return_complex=True).abs()

    def error(rounds: int) -> float:
        made = griffin_lim(wanted, 256, 64, rounds)
        return float((torch.stft(made, 256, 64, window=torch.hann_window(256), return_complex=True).abs() - wanted).norm() / wanted.norm())

    assert error(50) < 0.6 * error(2)


def test_amplitudes_have_the_mels_that_they_were_made_from() -> None:
    from worldloom.tokenizers.mel import log_mel, mel_filters

    mels = log_mel(torch.from_numpy(sounds(1))[0], 8_000, 256, 16)
    again = torch.from_numpy(mel_filters(8_000, 256, 16)).T @ (amplitudes_of(mels, 8_000, 256) * (4 / 256))
    assert float((again - mels.exp()).abs().max()) < 0.05 * float(mels.exp().max())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"downsample": 24}, "downsample must be a power of two"),
        ({"bins": 24}, "must be a multiple of downsample"),
        ({"hop": 256}, "at most a quarter of window"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Mel(**wrong)


def test_stereo_is_refused() -> None:
    with pytest.raises(ValueError, match="reads mono sounds, this stream has 2 channels"):
        MelTokenizer.build(Mel(), {**FORM, "channels": 2}, seed=0)


def test_silence_has_one_code_where_codes_see_their_cells_alone() -> None:
    audio = tokenizer(Mel(codebook_size=11, receptive_field="cell", quantizer=Ema(code_width=3), **SMALL))
    begun = sounds(2)
    begun[..., 1_000:] = 0
    assert len(np.unique(audio.encode(np.zeros_like(begun)))) == 1
    # Windows reach one or two cells beyond the sound.
    assert len(np.unique(audio.encode(begun)[:, 4:])) == 1 < len(np.unique(audio.encode(begun)))
