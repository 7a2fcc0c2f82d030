"""Log-mels: the filters of transformers, the transform by its definition, tones in their bins."""

import numpy as np
import pytest
import torch

from worldloom.tokenizers.mel import FLOOR, log_mel, mel_filters


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_the_filters_are_those_of_transformers(scale: str) -> None:
    from transformers.audio_utils import mel_filter_bank

    for rate, window, bins in ((8_000, 512, 24), (16_000, 1_024, 64)):
        expected = mel_filter_bank(window // 2 + 1, bins, 0.0, rate / 2, rate, norm=None, mel_scale=scale)
        assert np.abs(mel_filters(rate, window, bins, scale) - expected).max() < 1e-6  # type: ignore[arg-type]


def test_a_frame_is_the_transform_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    sound = torch.randn(1, 300, generator=generator) * 0.1
    window, hop, bins = 64, 16, 8
    found = log_mel(sound, 8_000, window, bins, hop)
    assert found.shape == (1, bins, 300 // hop + 1)
    at = 7 * hop  # the eighth frame is centred here
    frame = sound[0, at - window // 2 : at + window // 2].double().numpy()
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    k = np.arange(window // 2 + 1)[:, None]
    amplitude = np.abs((frame * hann * np.exp(-2j * np.pi * k * np.arange(window) / window)).sum(1)) * 4 / window
    expected = np.log(np.maximum(mel_filters(8_000, window, bins).T @ amplitude, FLOOR))
    assert found[0, :, 7].numpy() == pytest.approx(expected, abs=1e-4)


def test_a_tone_is_loudest_in_its_bin_and_an_octave_higher_further_up() -> None:
    time = torch.arange(4_000) / 8_000
    centres = np.array([mel_filters(8_000, 512, 40)[:, m].argmax() * 8_000 / 512 for m in range(40)])
    for hertz in (400.0, 800.0, 1_600.0):
        loud = log_mel(torch.sin(2 * torch.pi * hertz * time), 8_000, 512, 40).mean(-1)
        assert abs(centres[int(loud.argmax())] - hertz) < 60
        assert float(loud.max()) == pytest.approx(0.0, abs=0.5)  # a tone of amplitude 1
