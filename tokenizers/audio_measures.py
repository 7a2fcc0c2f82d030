"""How far a sound is from another: log-mel distance and scale-invariant signal-to-distortion ratio; and the plain coder to compare with."""

import torch
from torch import Tensor

from worldloom.tokenizers.mel import log_mel

BINS = 64
WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)  # samples


def multi_scale_mel_loss(sounds: Tensor, rebuilt: Tensor, sample_rate: int) -> Tensor:
    """Scalar: mean over windows of 32 .. 2,048 samples of the mean and the root mean square difference of log-mels (arXiv:2210.13438).

    Windows longer than the sound are left out; short windows have as many bins as they can tell apart.
    """
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


def mu_law_coded(sounds: Tensor, bits: int, mu: float = 255.0) -> Tensor:
    """What a coder of `bits` a sample leaves: sign(x) log(1 + mu |x|) / log(1 + mu) in 2^bits intervals, each decoded to its middle."""
    levels = 2**bits
    squeezed = sounds.sign() * (mu * sounds.abs()).log1p() / torch.tensor(mu).log1p()
    middle = (((squeezed + 1) / 2 * levels).floor().clamp(0, levels - 1) + 0.5) / levels * 2 - 1
    coded: Tensor = middle.sign() * (middle.abs() * torch.tensor(mu).log1p()).expm1() / mu
    return coded
