"""How far a sound is from another: log-mel distance and scale-invariant signal-to-distortion ratio; and the plain coder to compare with."""

from math import log1p

import torch
from torch import Tensor

from worldloom.tokenizers.mel import log_mel

BINS = 64
MU = 255.0
WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)  # samples


def multi_scale_mel_loss(sounds: Tensor, rebuilt: Tensor, sample_rate: int) -> Tensor:
    """Scalar: mean over windows of 32 .. 2,048 samples of the mean and the root mean square difference of log-mels (arXiv:2210.13438).

    Windows longer than the sound are left out; short windows have as many bins as they can tell apart.
    """
    if sounds.shape[-1] < WINDOWS[0]:
        raise ValueError(
            f"sounds of {sounds.shape[-1]} samples are shorter than the shortest window, {WINDOWS[0]}; set seconds of the stream higher"
        )
    losses = []
    for window in WINDOWS:
        if window > sounds.shape[-1]:
            continue
        bins = min(BINS, window // 8)
        difference = log_mel(sounds, sample_rate, window, bins) - log_mel(rebuilt, sample_rate, window, bins)
        losses.append(difference.abs().mean() + difference.square().mean().add(1e-8).sqrt())
    return torch.stack(losses).mean()


def log_mel_l1(sounds: Tensor, rebuilt: Tensor, sample_rate: int) -> Tensor:
    """[B]: mean difference of log-mels (natural logarithm) of 64 bins, windows of 512 samples a quarter apart."""
    window = min(512, sounds.shape[-1])
    difference = log_mel(sounds, sample_rate, window, BINS) - log_mel(rebuilt, sample_rate, window, BINS)
    return difference.abs().flatten(1).mean(1)


def si_sdr(sounds: Tensor, rebuilt: Tensor) -> Tensor:
    """[B], dB: energy of the part of `rebuilt` that is `sounds`, scaled as fits best, over that of the rest (arXiv:1811.02508)."""
    real, made = (x.double().flatten(1) - x.double().flatten(1).mean(1, keepdim=True) for x in (sounds, rebuilt))
    scale = (real * made).sum(1, keepdim=True) / real.square().sum(1, keepdim=True).clamp(min=1e-12)
    target = scale * real
    return 10 * (target.square().sum(1).clamp(min=1e-12) / (made - target).square().sum(1).clamp(min=1e-12)).log10()


def compress(sounds: Tensor) -> Tensor:
    """mu-law: sign(x) log(1 + mu |x|) / log(1 + mu), from [-1, 1] to [-1, 1]."""
    return sounds.sign() * (MU * sounds.abs()).log1p() / log1p(MU)


def expand(squeezed: Tensor) -> Tensor:
    """The way back from `compress`."""
    return squeezed.sign() * (squeezed.abs() * log1p(MU)).expm1() / MU


def mu_law_coded(sounds: Tensor, bits: int) -> Tensor:
    """What a plain coder of `bits` a sample leaves: 2^bits intervals of the companded sound, each decoded to its middle."""
    levels = 2**bits
    interval = ((compress(sounds) + 1) / 2 * levels).floor().clamp(0, levels - 1)
    return expand((interval + 0.5) / levels * 2 - 1)
