"""EnCodec's encoder and decoder (arXiv:2210.13438, section 3.1), the causal ones, with plain weights in place of normed ones.

B batch, C channels of sound, S samples, F frames, D code width. Convolutions see the past alone, but for the very beginning, before which
the first samples stand reflected. Any number of samples makes ceil(S / downsample) frames. Sounds are taken whole, not in parts.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.tokenizers.encodec_settings import Encodec


class EncodecEncoder(nn.Module):
    """Sounds [B, C, S] -> [B, D, F]."""

    def __init__(self, settings: Encodec, channels: int) -> None:
        super().__init__()
        width = settings.width
        self.stem = _Conv(channels, width, settings.kernel, settings.padding)
        self.stages = nn.ModuleList()
        for stride in settings.strides:
            self.stages.append(_Stage(settings, width, _Conv(width, 2 * width, 2 * stride, settings.padding, stride), change_first=False))
            width *= 2
        self.lstm = nn.LSTM(width, width, settings.lstm_layers)
        self.head = _Conv(width, settings.code_width, settings.last_kernel, settings.padding)

    def forward(self, sounds: Tensor) -> Tensor:
        x = self.stem(sounds)
        for stage in self.stages:
            x = stage(x)
        features: Tensor = self.head(F.elu(_recur(self.lstm, x)))
        return features


class EncodecDecoder(nn.Module):
    """[B, D, F] -> sounds [B, C, F * downsample], unbounded."""

    def __init__(self, settings: Encodec, channels: int) -> None:
        super().__init__()
        width = settings.width << len(settings.strides)
        self.stem = _Conv(settings.code_width, width, settings.kernel, settings.padding)
        self.lstm = nn.LSTM(width, width, settings.lstm_layers)
        self.stages = nn.ModuleList()
        for stride in reversed(settings.strides):
            width //= 2
            self.stages.append(_Stage(settings, width, _ConvTranspose(2 * width, width, 2 * stride, stride), change_first=True))
        self.head = _Conv(width, channels, settings.last_kernel, settings.padding)

    def forward(self, z: Tensor) -> Tensor:
        x = _recur(self.lstm, self.stem(z))
        for stage in self.stages:
            x = stage(x)
        sounds: Tensor = self.head(F.elu(x))
        return sounds

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the last convolution."""
        weight = self.head.conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight


class _Stage(nn.Module):
    """Residual blocks at one rate, and a change of rate behind (encoder) or before them (decoder)."""

    def __init__(self, settings: Encodec, width: int, change: nn.Module, change_first: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Residual(settings, width, settings.dilation_growth**number) for number in range(settings.blocks))
        self.change = change
        self.change_first = change_first

    def forward(self, x: Tensor) -> Tensor:
        if self.change_first:
            x = self.change(F.elu(x))
        for block in self.blocks:
            x = block(x)
        return x if self.change_first else self.change(F.elu(x))


class _Residual(nn.Module):
    """shortcut(x) + conv(elu(conv(elu(x))))."""

    def __init__(self, settings: Encodec, width: int, dilation: int) -> None:
        super().__init__()
        inside = width // settings.compress
        self.first = _Conv(width, inside, settings.residual_kernel, settings.padding, dilation=dilation)
        self.second = _Conv(inside, width, 1, settings.padding)
        self.shortcut = _Conv(width, width, 1, settings.padding) if settings.shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.second(F.elu(self.first(F.elu(x))))
        return out


class _Conv(nn.Module):
    """[B, in, T] -> [B, out, ceil(T / stride)]: all padding stands before, but what fills the last stride."""

    def __init__(self, in_width: int, out_width: int, kernel: int, padding: str, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_width, out_width, kernel, stride, dilation=dilation)
        self.padding, self.stride = padding, stride
        self.before = (kernel - 1) * dilation + 1 - stride

    def forward(self, x: Tensor) -> Tensor:
        behind = -x.shape[-1] % self.stride
        # A reflection must be shorter than what is reflected: short signals are first made longer by zeros, which are cut off again.
        short = max(0, max(self.before, behind) - x.shape[-1] + 1) if self.padding == "reflect" else 0
        padded = F.pad(F.pad(x, (0, short)), (self.before, behind), mode=self.padding)
        out: Tensor = self.conv(padded[..., : padded.shape[-1] - short])
        return out


class _ConvTranspose(nn.Module):
    """[B, in, T] -> [B, out, T * stride]: what reaches beyond the last step is cut."""

    def __init__(self, in_width: int, out_width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(in_width, out_width, kernel, stride)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)[..., : x.shape[-1] * self.stride]
        return out


def _recur(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """x + lstm(x) over [B, width, T], from a state of zeros."""
    steps = x.permute(2, 0, 1)
    out: Tensor = (lstm(steps)[0] + steps).permute(1, 2, 0)
    return out
