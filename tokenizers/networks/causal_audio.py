"""Causal 1-D encoder and decoder of sounds; a frame's code sees its own samples and those before, a sample its own frame and those before.

B batch, C channels of sound, S samples, F frames of `downsample` samples, D code width. Inside, activations lie as [B, T, channels]. The
first layer reads `patch` samples at once and each stage halves the rate by one product, as in networks/convnet, which is what makes it
fast; SoundStream and EnCodec (arXiv:2107.03312, 2210.13438) have strided convolutions there. There are no norms: one over time would let
the past know the future, and one over channels takes a sound's loudness from it, without which its waveform cannot be followed. There is no
LSTM and no weight norm, and the activation is SiLU.

Outside training a signal goes through in units of 8 frames, whatever parts it comes in: parts that are whole units (the last may be
shorter) give bit for bit what the whole gives, which products of other sizes do not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.tokenizers.networks.convnet import stage_widths
from worldloom.tokenizers.networks.streaming import Past

KERNEL = 5  # samples of its rate that a convolution sees: itself and four before
UNIT = 8  # frames that go through at a time outside training


class CausalAudioEncoder(nn.Module):
    """Sounds [B, C, S] -> [B, D, S / downsample]; S is a multiple of `downsample`."""

    def __init__(self, channels: int, width: int, blocks: int, patch: int, downsample: int, code_width: int) -> None:
        super().__init__()
        widths = stage_widths(width, patch, downsample)
        self.patch, self.downsample = patch, downsample
        self.stem = CausalConv(patch * channels, widths[0])
        self.stages = nn.ModuleList()
        for this, deeper in zip(widths, [*widths[1:], None], strict=True):
            self.stages.extend(CausalResidual(this, dilation=2**number) for number in range(blocks))
            if deeper is not None:
                self.stages.append(HalveTime(this, deeper))
        self.head = nn.Linear(widths[-1], code_width)

    def forward(self, sounds: Tensor, past: Past | None = None) -> Tensor:
        """With `past`, the next part of a signal: any multiple of `downsample` samples."""
        S = sounds.shape[2]
        if S % self.downsample:
            raise ValueError(f"{S} samples cannot be divided into frames of {self.downsample}")
        past = Past() if past is None else past
        parts = [sounds] if self.training else torch.split(sounds, UNIT * self.downsample, dim=2)
        return torch.cat([self._part(part, past) for part in parts], dim=2)

    def _part(self, sounds: Tensor, past: Past) -> Tensor:
        B, C, S = sounds.shape
        x = self.stem(sounds.transpose(1, 2).reshape(B, S // self.patch, self.patch * C), past)
        for stage in self.stages:
            x = stage(x, past)
        with torch.autocast(x.device.type, enabled=False):  # codes are chosen by small differences: the last product is float32
            x = self.head(x.float())
        features: Tensor = x.transpose(1, 2)
        return features


class CausalAudioDecoder(nn.Module):
    """[B, D, F] -> sounds [B, C, F * downsample], unbounded."""

    def __init__(self, channels: int, width: int, blocks: int, patch: int, downsample: int, code_width: int) -> None:
        super().__init__()
        widths = stage_widths(width, patch, downsample)[::-1]
        self.channels, self.patch = channels, patch
        self.stem = CausalConv(code_width, widths[0])
        self.stages = nn.ModuleList()
        for this, shallower in zip(widths, [*widths[1:], None], strict=True):
            self.stages.extend(CausalResidual(this, dilation=2**number) for number in range(blocks))
            if shallower is not None:
                self.stages.append(DoubleTime(this, shallower))
        self.head = CausalConv(widths[-1], patch * channels)

    def forward(self, z: Tensor, past: Past | None = None) -> Tensor:
        """With `past`, the next part of a signal: any number of frames."""
        past = Past() if past is None else past
        parts = [z] if self.training else torch.split(z, UNIT, dim=2)
        return torch.cat([self._part(part, past) for part in parts], dim=2)

    def _part(self, z: Tensor, past: Past) -> Tensor:
        x = self.stem(z.transpose(1, 2), past)
        for stage in self.stages:
            x = stage(x, past)
        x = self.head(x, past)
        sounds: Tensor = x.reshape(len(x), -1, self.channels).transpose(1, 2)
        return sounds

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the last convolution."""
        weight = self.head.conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight


class CausalConv(nn.Module):
    """Convolution of [B, T, channels] that sees itself and KERNEL - 1 steps before, `dilation` apart."""

    def __init__(self, in_width: int, out_width: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_width, out_width, KERNEL, dilation=dilation)
        self.before = (KERNEL - 1) * dilation

    def forward(self, x: Tensor, past: Past) -> Tensor:
        out: Tensor = self.conv(past.join(self, x, self.before).transpose(1, 2)).transpose(1, 2)
        return out


class CausalResidual(nn.Module):
    """x + linear(swish(conv(x)))."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv = CausalConv(width, width, dilation)
        self.mix = nn.Linear(width, width)
        with torch.no_grad():
            self.mix.weight.mul_(0.5)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        out: Tensor = x + self.mix(F.silu(self.conv(x, past)))
        return out


class HalveTime(nn.Module):
    """[B, T, in] -> [B, T/2, out]: neighbours merged by one product."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * in_width, out_width)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        B, T, W = x.shape
        out: Tensor = self.merge(x.reshape(B, T // 2, 2 * W))
        return out


class DoubleTime(nn.Module):
    """[B, T, in] -> [B, 2T, out]."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.split = nn.Linear(in_width, 2 * out_width)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        B, T, _ = x.shape
        out: Tensor = self.split(x)
        return out.reshape(B, 2 * T, -1)
