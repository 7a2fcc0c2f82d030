"""Sounds from spectrograms without phases: Griffin and Lim, "Signal estimation from modified short-time Fourier transform", 1984.

B batch, F frames, N = window / 2 + 1 frequencies, M mel bins.
"""

import torch
from torch import Tensor

from worldloom.tokenizers.mel import mel_filters


def amplitudes_of(log_mels: Tensor, sample_rate: int, window: int) -> Tensor:
    """Amplitudes [B, N, F] whose mels are nearest to exp of `log_mels` [B, M, F], none below 0."""
    filters_NM = torch.from_numpy(mel_filters(sample_rate, window, log_mels.shape[1])).to(log_mels.device)
    inverse_NM = torch.linalg.pinv(filters_NM.double().T).float()
    amplitudes: Tensor = (inverse_NM @ log_mels.exp()).clamp(min=0) * (window / 4)
    return amplitudes


def griffin_lim(amplitudes: Tensor, window: int, hop: int, rounds: int) -> Tensor:
    """Sounds [B, (F - 1) * hop]: phases, random at first (always the same), become those of a real sound round by round."""
    hann = torch.hann_window(window, device=amplitudes.device)
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(amplitudes.shape[1:], generator=generator) * 2 * torch.pi
    spectrum = torch.polar(amplitudes, first.to(amplitudes.device).expand_as(amplitudes).contiguous())
    for _ in range(rounds):
        sounds = torch.istft(spectrum, window, hop, window=hann, center=True)
        again = torch.stft(sounds, window, hop, window=hann, center=True, return_complex=True)
        spectrum = torch.polar(amplitudes, again.angle())
    return torch.istft(spectrum, window, hop, window=hann, center=True)
