"""The encoder and decoder of VQ-GAN (arXiv:2012.09841, appendix), so that public checkpoints in that layout can be used.

B batch, H x W pixels, C channels, D code width. Values are those of the published network; the execution is ours: activations lie in
channels_last from the first convolution on, norms are made for that, swish overwrites their output where no gradient needs it, attention
is one fused call, the 1 x 1 convolutions around the codes belong to the networks. Parameters stay contiguous: engines exchange them as flat
memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.tokenizers.networks.group_norm import GroupNorm
from worldloom.tokenizers.taming_settings import GROUPS, Taming

EPSILON = 1e-6


class TamingEncoder(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] -> [B, D, H/downsample, W/downsample]."""

    def __init__(self, settings: Taming) -> None:
        super().__init__()
        widths = [settings.width * each for each in settings.multipliers]
        self.downsample = settings.downsample
        self.low = settings.precision == "bf16"
        self.stem = _conv3(3, settings.width)
        before = [settings.width, *widths[:-1]]
        self.levels = nn.ModuleList(
            Level(this, width, settings.blocks, attends, Halve(width) if level + 1 < len(widths) else None)
            for level, (this, width, attends) in enumerate(zip(before, widths, settings.attention, strict=True))
        )
        self.middle = Middle(widths[-1])
        self.norm = Norm(widths[-1])
        self.head = _conv3(widths[-1], settings.features)
        self.to_code = nn.Conv2d(settings.features, settings.code_width, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        H, W = pictures.shape[-2:]
        if H % self.downsample or W % self.downsample:
            raise ValueError(f"pictures of {H} x {W} pixels cannot be divided into cells of {self.downsample} x {self.downsample}")
        device = pictures.device.type
        low = torch.is_autocast_enabled(device) or (self.low and not torch.is_grad_enabled())
        with torch.autocast(device, torch.bfloat16, enabled=low):
            x = self.stem(pictures.contiguous(memory_format=torch.channels_last))
            for level in self.levels:
                x = level(x)
            x = self.head(self.norm.swish(self.middle(x)))
        with torch.autocast(device, enabled=False):  # codes are chosen by small differences: the last product is float32
            features: Tensor = self.to_code(x.to(self.to_code.weight.dtype))
        return features


class TamingDecoder(nn.Module):
    """[B, D, h, w] -> pictures [B, 3, h * downsample, w * downsample], unbounded."""

    def __init__(self, settings: Taming) -> None:
        super().__init__()
        widths = [settings.width * each for each in settings.multipliers][::-1]
        self.from_code = nn.Conv2d(settings.code_width, settings.features, 1)
        self.stem = _conv3(settings.features, widths[0])
        self.middle = Middle(widths[0])
        before = [widths[0], *widths[:-1]]
        # From the smallest resolution to the largest; in a checkpoint they are numbered the other way round.
        self.levels = nn.ModuleList(
            Level(this, width, settings.blocks + 1, attends, Double(width) if level + 1 < len(widths) else None)
            for level, (this, width, attends) in enumerate(zip(before, widths, settings.attention[::-1], strict=True))
        )
        self.norm = Norm(widths[-1])
        self.head = _conv3(widths[-1], 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.stem(self.from_code(z.contiguous(memory_format=torch.channels_last))))
        for level in self.levels:
            x = level(x)
        pictures: Tensor = self.head(self.norm.swish(x))
        return pictures

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the last convolution, against which a VQ-GAN balances its losses."""
        weight = self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight


class Level(nn.Module):
    """Residual blocks at one resolution, each perhaps with attention behind it, then a change of resolution."""

    def __init__(self, before: int, width: int, blocks: int, attends: bool, change: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(width if block else before, width) for block in range(blocks))
        self.attention = nn.ModuleList(Attention(width) for _ in range(blocks if attends else 0))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attention):
                x = self.attention[index](x)
        return x if self.change is None else self.change(x)


class Middle(nn.Module):
    """Block, attention, block at the smallest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.attention, self.second = Residual(width, width), Attention(width), Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.attention(self.first(x)))
        return out


class Norm(GroupNorm):
    """Group norm of 32 groups."""

    def __init__(self, width: int) -> None:
        super().__init__(GROUPS, width, eps=EPSILON)


class Residual(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), x through a 1 x 1 convolution where the width changes."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(before), _conv3(before, width)
        self.norm2, self.conv2 = Norm(width), _conv3(width, width)
        self.shortcut = nn.Conv2d(before, width, 1) if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.norm2.swish(self.conv1(self.norm1.swish(x))))
        kept = x if self.shortcut is None else self.shortcut(x)
        return y + kept if torch.is_grad_enabled() else y.add_(kept)


class Attention(nn.Module):
    """x + proj(attention(norm(x))) over all places of the grid, one head as wide as the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.q, self.k, self.v, self.mix = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        normed = self.norm(x)
        # channels_last: the permuted view is contiguous, nothing is copied
        q, k, v = (each(normed).permute(0, 2, 3, 1).reshape(B, 1, H * W, C) for each in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).reshape(B, H, W, C).permute(0, 3, 1, 2)
        out: Tensor = x + self.mix(mixed)
        return out


class Halve(nn.Module):
    """A 3 x 3 convolution of stride 2; zeros are added at the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Double(nn.Module):
    """Nearest neighbours, then a 3 x 3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _conv3(before: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, padding=1)
