"""A sound as a picture: time to the right, pitch upwards, louder is brighter."""

import numpy as np
from numpy.typing import NDArray

FLOOR = 70.0  # dB below the loudest that is still drawn
# Colours from silence to the loudest, in equal steps: dark blue, violet, red, orange, light yellow.
_COLOURS = np.array([[8, 10, 30], [70, 24, 110], [170, 40, 100], [240, 120, 50], [252, 246, 190]], np.float64)


def spectrogram(sound: NDArray[np.float32], window: int = 256, columns: int = 160, height: int = 80) -> NDArray[np.uint8]:
    """uint8 [height, columns, 3] of the mean of the channels of float32 [channels, samples]; `window` samples a column, Hann."""
    wave = np.asarray(sound, np.float64).mean(axis=0)
    padded = np.pad(wave, (window // 2, window // 2 + window))
    starts = np.linspace(0, len(wave), columns, endpoint=False).astype(np.int64)
    frames = np.stack([padded[start : start + window] for start in starts]) * np.hanning(window)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    loud = 10 * np.log10(power + 1e-10)
    share = np.clip((loud - loud.max()) / FLOOR + 1, 0, 1) if power.max() > 1e-8 else np.zeros_like(loud)
    rows = np.linspace(share.shape[1] - 1, 0, height).round().astype(np.int64)
    place = share.T[rows] * (len(_COLOURS) - 1)
    below = np.minimum(place.astype(np.int64), len(_COLOURS) - 2)
    part = (place - below)[..., None]
    mixed = _COLOURS[below] * (1 - part) + _COLOURS[below + 1] * part
    picture: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return picture
