"""The multi-scale STFT discriminator of EnCodec (arXiv:2210.13438, section 3.4): sounds judged by their spectrograms, at several windows.

B batch, C channels of sound, S samples, N = window / 2 + 1 frequencies, T frames. Each scale sees the real and imaginary part of the
transform of each channel. Kernels and dilations are the paper's; weight norm is left out, as everywhere here, and the first weights are
small instead.
"""

from collections.abc import Sequence
from math import log2
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.tokenizers.vqgan import hinge

WINDOWS = (2048, 1024, 512, 256, 128)  # samples at 24 kHz
PAPERS_RATE = 24_000
SMALLEST = 32  # samples of a window


class Judged(NamedTuple):
    """What one scale says."""

    logits: Tensor  # [B, 1, T, n]: high for real
    features: list[Tensor]  # of each layer but the last


class StftDiscriminator(nn.Module):
    """Sounds [B, C, S] -> one Judged a scale."""

    def __init__(self, channels: int, windows: Sequence[int], width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale(channels, window, width) for window in windows)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
                else:
                    parameter.zero_()

    def forward(self, sounds: Tensor) -> list[Judged]:
        return [scale(sounds) for scale in self.scales]

    def frozen(self, sounds: Tensor) -> list[Judged]:
        """`forward` with constant weights: gradients pass to the sounds and not to this module."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        judged: list[Judged] = torch.func.functional_call(self, weights, (sounds,))
        return judged


class _Scale(nn.Module):
    """One window: a 3 x 9 convolution, three strided by 2 over frequencies and dilated over frames, and two of 3 x 3."""

    def __init__(self, channels: int, window: int, width: int) -> None:
        super().__init__()
        self.window = window
        layers = [nn.Conv2d(2 * channels, width, (3, 9), padding=(1, 4))]
        for dilation in (1, 2, 4):
            layers.append(nn.Conv2d(width, width, (3, 9), stride=(1, 2), dilation=(dilation, 1), padding=(dilation, 4)))
        layers.append(nn.Conv2d(width, width, 3, padding=1))
        self.layers = nn.ModuleList(layers)
        self.judge = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, sounds: Tensor) -> Judged:
        x, features = self._spectrum(sounds), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return Judged(self.judge(x), features)

    def _spectrum(self, sounds: Tensor) -> Tensor:
        """[B, C, S] -> [B, 2C, T, N], of unit energy for white sounds of unit energy."""
        B, C, S = sounds.shape
        with torch.autocast(sounds.device.type, enabled=False):  # transforms are float32
            flat, hann = sounds.float().reshape(B * C, S), torch.hann_window(self.window, device=sounds.device)
            spectrum = torch.stft(flat, self.window, self.window // 4, window=hann, center=True, normalized=True, return_complex=True)
            both = torch.view_as_real(spectrum)  # [B C, N, T, 2]
        return both.view(B, C, *both.shape[1:]).permute(0, 1, 4, 3, 2).reshape(B, 2 * C, both.shape[2], both.shape[1])


def windows_at(sample_rate: int, samples: int) -> tuple[int, ...]:
    """The paper's windows in powers of two nearest in seconds, from 32 samples up to the sound's length; at least one."""
    nearest = {1 << round(log2(window * sample_rate / PAPERS_RATE)) for window in WINDOWS}
    fitting = {window for window in nearest if SMALLEST <= window <= samples}
    return tuple(sorted(fitting or {SMALLEST}, reverse=True))


def feature_distance(real: Sequence[Judged], made: Sequence[Judged]) -> Tensor:
    """Mean over scales and layers of |real - made| over the mean of |real| (equation 2 of the paper); 0 for equal sounds."""
    distances = [
        (before.detach().float() - after.float()).abs().mean() / before.detach().float().abs().mean().clamp(min=1e-6)
        for one, other in zip(real, made, strict=True)
        for before, after in zip(one.features, other.features, strict=True)
    ]
    return torch.stack(distances).mean()


def scales_hinge(real: Sequence[Judged], made: Sequence[Judged]) -> Tensor:
    """The discriminator's loss: `hinge`, mean over scales."""
    return torch.stack([hinge(one.logits, other.logits) for one, other in zip(real, made, strict=True)]).mean()


def scales_generator_loss(made: Sequence[Judged]) -> Tensor:
    """The generator's: mean over scales of max(0, 1 - D(xhat)), which, other than a VQ-GAN's, is content with a margin (equation 1)."""
    return torch.stack([F.relu(1 - judged.logits.float()).mean() for judged in made]).mean()
