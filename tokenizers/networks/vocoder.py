"""A small vocoder: what Griffin-Lim made of a log-mel spectrogram, made better by a network (after Deep Griffin-Lim, arXiv:1903.03971).

B batch, F frames, M mel bins, N = window / 2 + 1 frequencies, W width. A convolution that sees frames of mels alone makes of a steady tone
only what repeats with every hop, whatever the tone's pitch; so the phases come from a few rounds of Griffin-Lim, which keep it, and the
network says for each frequency and frame by what to multiply and what to add. The inverse transform brings frames to samples, as in Vocos
(arXiv:2306.00814). It looks both ways in time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 7  # frames
LOUDNESS = 0.3  # power to which amplitudes are compressed where the network reads and writes them
LEAST = 1e-5  # amplitude below which compression is linear
HIGHEST = 1.0  # logarithm of the highest gain of compressed amplitudes


class Vocoder(nn.Module):
    """Untrained, it changes nothing: its last weights are zeros."""

    def __init__(self, bins: int, window: int, hop: int, width: int, blocks: int) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        self.stem = nn.Conv1d(bins + window + 2, width, KERNEL, padding=KERNEL // 2)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3 * (window // 2 + 1))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: Tensor, start: Tensor) -> Tensor:
        """Spectrograms [B, M, F] in about [-1, 1] and the sounds found for them, [B, (F - 1) * hop] -> sounds of the same shape."""
        with torch.autocast(start.device.type, enabled=False):  # transforms are float32
            hann = torch.hann_window(self.window, device=start.device)
            spectrum = torch.stft(start.float(), self.window, self.hop, window=hann, center=True, return_complex=True)
            spectrum = spectrum * (4 / self.window)  # a tone of amplitude 1 has amplitude 1
            squeezed = spectrum * spectrum.abs().clamp(min=LEAST) ** (LOUDNESS - 1)
        x = self.stem(torch.cat([pictures, squeezed.real, squeezed.imag], dim=1))
        for block in self.blocks:
            x = block(x)
        with torch.autocast(start.device.type, enabled=False):
            gain, real, imaginary = self.head(self.norm(x.float().transpose(1, 2))).transpose(1, 2).chunk(3, dim=1)
            loudness = squeezed.abs().mean(1, keepdim=True)  # of each frame: nothing is added to silence
            made = squeezed * gain.clamp(max=HIGHEST).exp() + loudness * torch.complex(real, imaginary)
            spectrum = made * made.abs().clamp(min=LEAST**LOUDNESS) ** (1 / LOUDNESS - 1)
            sounds: Tensor = torch.istft(spectrum * (self.window / 4), self.window, self.hop, window=hann, center=True)
        return sounds


class _Block(nn.Module):
    """x + linear(gelu(linear(norm(depthwise conv(x))))) on [B, W, F], as in ConvNeXt (arXiv:2201.03545)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix_frames = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.mix_frames(x).transpose(1, 2))
        out: Tensor = x + self.narrow(F.gelu(self.widen(inner))).transpose(1, 2)
        return out
