"""Sounds as pictures: the pitch stands at its height, the time at its place, silence is dark."""

import numpy as np

from worldloom.stages.spectrogram import spectrogram


def tone(frequency: float, samples: int = 8_000) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(samples) / 8_000).astype(np.float32)[None]


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(int).sum(axis=2)


def test_a_tone_is_a_line_at_the_height_of_its_pitch() -> None:
    for frequency in (500.0, 1_000.0, 3_000.0):
        picture = brightness(spectrogram(tone(frequency), height=81))
        assert picture.shape == (81, 160)
        rows = picture[:, 20:-20].argmax(axis=0)
        assert abs(rows - 80 * (1 - frequency / 4_000)).max() <= 1.5


def test_a_click_stands_where_it_sounds() -> None:
    sound = np.zeros((1, 8_000), np.float32)
    sound[0, 6_000] = 1.0
    loud = brightness(spectrogram(sound)).mean(axis=0)
    assert abs(int(loud.argmax()) - 160 * 0.75) <= 2


def test_silence_is_dark_and_stereo_is_mixed() -> None:
    silent = spectrogram(np.zeros((1, 500), np.float32))
    assert (silent == silent[0, 0]).all() and silent.sum() < silent.size * 20
    assert (spectrogram(np.repeat(tone(700.0), 2, axis=0)) == spectrogram(tone(700.0))).all()
