"""Log-mel spectrograms: what losses and figures of sounds are made of.

B batch, S samples, F frames, M mel bins. Frames are centred (reflection at the ends), windows are periodic Hann, power is 1 (amplitudes).
The mel scale is htk's unless said otherwise, bins are not scaled by their width.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

FLOOR = 1e-4  # of amplitudes, before the logarithm: 80 dB below the loudest tone
Scale = Literal["htk", "slaney"]


def log_mel(sounds: Tensor, sample_rate: int, window: int, bins: int, hop: int | None = None) -> Tensor:
    """float32 natural logarithms [..., M, F] of sounds [..., S]; `window` and `hop` (a quarter of it) in samples."""
    hop = window // 4 if hop is None else hop
    flat = sounds.float().reshape(-1, sounds.shape[-1])
    spectrum = torch.stft(flat, window, hop, window=torch.hann_window(window, device=flat.device), center=True, return_complex=True)
    filters = torch.from_numpy(mel_filters(sample_rate, window, bins)).to(flat.device)
    mel = filters.T @ (spectrum.abs() * (4 / window))  # a tone of amplitude 1 has amplitude 1
    return mel.clamp(min=FLOOR).log().reshape(*sounds.shape[:-1], bins, -1)


@lru_cache(maxsize=64)
def mel_filters(sample_rate: int, window: int, bins: int, scale: Scale = "htk") -> np.ndarray:
    """float32 [window / 2 + 1, M]: triangles over the frequencies from 0 to half of `sample_rate`, equally spaced in mel."""
    frequencies = np.linspace(0, sample_rate / 2, window // 2 + 1)
    edges = _to_hertz(np.linspace(0, _to_mel(np.array(sample_rate / 2), scale), bins + 2), scale)
    rising = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[None, :-1]
    falling = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[None, 1:]
    triangles: np.ndarray = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    return triangles


def _to_mel(hertz: np.ndarray, scale: Scale) -> np.ndarray:
    if scale == "htk":
        mel: np.ndarray = 2595.0 * np.log10(1.0 + hertz / 700.0)
        return mel
    return np.where(hertz < 1000.0, hertz * 3 / 200, 15.0 + np.log(np.maximum(hertz, 1e-9) / 1000.0) * 27.0 / np.log(6.4))


def _to_hertz(mel: np.ndarray, scale: Scale) -> np.ndarray:
    if scale == "htk":
        hertz: np.ndarray = 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
        return hertz
    return np.where(mel < 15.0, mel * 200 / 3, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))
