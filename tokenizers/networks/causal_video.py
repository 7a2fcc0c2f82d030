"""Causal encoder and decoder of clips whose first frame stands alone: a picture is a clip of one frame (MAGVIT-v2, arXiv:2310.05737).

B batch, C channels, T = 1 + n * stride frames, t = 1 + n steps of codes, H x W pixels, D code width. 3-D convolutions are factorised:
3 x 3 over each frame, as in networks/convnet, then KERNEL over time at each place, which sees its own frame and those before. Time is
halved by merging neighbours, where the first frame's neighbour is nothing at all; doubling it makes one frame too many, before the first,
which is dropped. Norms are over channels: one over time would let the past know the future. Activations lie as [B, T, H, W, channels].

Outside training a clip goes through in units, its first frame and then `stride` frames at a time, whatever parts it comes in: parts give
bit for bit what the whole gives.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.tokenizers.networks.convnet import (
    Conv3,
    ConvDecoder,
    ConvEncoder,
    Double,
    Halve,
    Residual,
    depth_to_space,
    space_to_depth,
    stage_widths,
)
from worldloom.tokenizers.networks.streaming import Past

KERNEL = 3  # frames


class CausalVideoEncoder(nn.Module):
    """Clips [B, C, T, H, W] -> [B, D, t, H/downsample, W/downsample]."""

    def __init__(self, channels: int, width: int, blocks: int, patch: int, downsample: int, time_stride: int, code_width: int) -> None:
        super().__init__()
        widths = stage_widths(width, patch, downsample)
        self.patch, self.downsample, self.time_stride = patch, downsample, time_stride
        self.stem = Frames(Conv3(patch * patch * channels, widths[0]))
        self.stages = nn.ModuleList()
        for i, halvings in enumerate(halvings_of(time_stride, len(widths))):
            self.stages.extend(Frames(Residual(widths[i])) for _ in range(blocks))
            self.stages.append(CausalTime(widths[i]))
            if i + 1 < len(widths):
                self.stages.append(Frames(Halve(widths[i], widths[i + 1])))
            self.stages.extend(HalveFrames(widths[min(i + 1, len(widths) - 1)]) for _ in range(halvings))
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], code_width)

    def forward(self, clips: Tensor, past: Past | None = None) -> Tensor:
        """With `past`, the next part of a clip: 1 + n * stride frames at its beginning, n * stride later; ValueError for another number."""
        T, H, W = clips.shape[-3:]
        past = Past() if past is None else past
        if H % self.downsample or W % self.downsample:
            raise ValueError(f"frames of {H} x {W} pixels cannot be divided into cells of {self.downsample} x {self.downsample}")
        rest = T if past.begun else T - 1
        if rest < 0 or rest % self.time_stride:
            rule = f"{'' if past.begun else '1 + '}n * {self.time_stride}"
            raise ValueError(f"this part of a clip must have {rule} frames, it has {T}")
        sizes = [T] if self.training else [1] * (T - rest) + [self.time_stride] * (rest // self.time_stride)
        found = [self._part(part, past) for part in torch.split(clips, sizes, dim=2)]
        return torch.cat(found, dim=2) if len(found) > 1 else found[0]

    def _part(self, clips: Tensor, past: Past) -> Tensor:
        B, C, T, H, W = clips.shape
        cells = space_to_depth(clips.permute(0, 2, 3, 4, 1).reshape(B * T, H, W, C), self.patch)
        x = self.stem(cells.view(B, T, *cells.shape[1:]), past)
        for stage in self.stages:
            x = stage(x, past)
        past.begun = True
        with torch.autocast(x.device.type, enabled=False):  # codes are chosen by small differences: the last product is float32
            x = self.head(self.norm(x.float()))
        features: Tensor = x.permute(0, 4, 1, 2, 3)
        return features


class CausalVideoDecoder(nn.Module):
    """[B, D, t, h, w] -> [B, C, T, h * downsample, w * downsample], unbounded."""

    def __init__(self, channels: int, width: int, blocks: int, patch: int, downsample: int, time_stride: int, code_width: int) -> None:
        super().__init__()
        widths = stage_widths(width, patch, downsample)
        self.patch = patch
        self.stem = Frames(Conv3(code_width, widths[-1]))
        self.stages = nn.ModuleList()
        for i, doublings in reversed(list(enumerate(halvings_of(time_stride, len(widths))))):
            self.stages.extend(DoubleFrames(widths[min(i + 1, len(widths) - 1)]) for _ in range(doublings))
            if i + 1 < len(widths):
                self.stages.append(Frames(Double(widths[i + 1], widths[i])))
            self.stages.extend(Frames(Residual(widths[i])) for _ in range(blocks))
            self.stages.append(CausalTime(widths[i]))
        self.norm = nn.LayerNorm(widths[0])
        self.head = Frames(Conv3(widths[0], patch * patch * channels))

    def forward(self, z: Tensor, past: Past | None = None) -> Tensor:
        """With `past`, the next part of a clip: any number of steps."""
        past = Past() if past is None else past
        parts = [z] if self.training else torch.split(z, 1, dim=2)
        made = [self._part(part, past) for part in parts]
        return torch.cat(made, dim=2) if len(made) > 1 else made[0]

    def _part(self, z: Tensor, past: Past) -> Tensor:
        x = self.stem(z.permute(0, 2, 3, 4, 1), past)
        for stage in self.stages:
            x = stage(x, past)
        x = self.head(self.norm(x), past)
        pixels = depth_to_space(x.flatten(0, 1), self.patch)
        clips: Tensor = pixels.view(*x.shape[:2], *pixels.shape[1:]).permute(0, 4, 1, 2, 3)
        return clips

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the last convolution, against which a VQ-GAN balances its losses."""
        last = self.head.inner
        assert isinstance(last, Conv3) and isinstance(last.conv.weight, nn.Parameter)
        return last.conv.weight


class Frames(nn.Module):
    """A network of pictures [N, H, W, in] on each frame of [B, T, H, W, in]."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, past: Past) -> Tensor:
        out: Tensor = self.inner(x.flatten(0, 1))
        return out.view(*x.shape[:2], *out.shape[1:])


class CausalTime(nn.Module):
    """x + linear(swish(conv(norm(x)))), the convolution over a frame and the KERNEL - 1 before it, as one product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Linear(KERNEL * width, width)
        self.mix = nn.Linear(width, width)
        with torch.no_grad():
            self.mix.weight.mul_(0.5)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        T = x.shape[1]
        joined = past.join(self, self.norm(x), KERNEL - 1)
        seen = torch.cat([joined[:, k : k + T] for k in range(KERNEL)], dim=-1)
        out: Tensor = x + self.mix(F.silu(self.conv(seen)))
        return out


class HalveFrames(nn.Module):
    """[B, 1 + 2n, H, W, C] -> [B, 1 + n, H, W, C]; later parts 2n -> n."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if past.first(self):
            x = F.pad(x, (0, 0) * 3 + (1, 0))
        out: Tensor = self.merge(torch.cat([x[:, ::2], x[:, 1::2]], dim=-1))
        return out


class DoubleFrames(nn.Module):
    """[B, 1 + n, H, W, C] -> [B, 1 + 2n, H, W, C]; later parts n -> 2n."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.split = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        pairs = torch.stack(self.split(x).chunk(2, dim=-1), dim=2).flatten(1, 2)
        return pairs[:, 1:] if past.first(self) else pairs


class EachFrame(nn.Module):
    """A network of pictures [N, C, H, W] on each frame of clips [B, C, T, H, W] by itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, clips: Tensor) -> Tensor:
        B, T = clips.shape[0], clips.shape[2]
        out: Tensor = self.inner(clips.transpose(1, 2).flatten(0, 1))
        return out.view(B, T, *out.shape[1:]).transpose(1, 2)

    @property
    def last_weight(self) -> nn.Parameter:
        weight = self.inner.last_weight
        assert isinstance(weight, nn.Parameter)
        return weight


def halvings_of(time_stride: int, stages: int) -> Sequence[int]:
    """How often time is halved behind each stage: once behind the last but one and those before, as needed, the rest behind the
    last; ValueError unless `time_stride` is a power of two."""
    if time_stride < 1 or time_stride & (time_stride - 1):
        raise ValueError(f"time_stride must be a power of two (1, 2, 4 ...), got {time_stride}")
    left, halvings = time_stride.bit_length() - 1, [0] * stages
    for i in reversed(range(stages - 1)):
        halvings[i] = min(left, 1)
        left -= halvings[i]
    halvings[-1] += left
    return halvings


@torch.no_grad()
def inflate(video: CausalVideoEncoder | CausalVideoDecoder, picture: ConvEncoder | ConvDecoder) -> None:
    """Gives `video` the weights of a network of pictures of the same sizes, so that each first frame gives what the picture alone gives.

    What works over time begins as the identity: kernels have their weight on the frame itself, nothing on those before.
    """
    ours = [stage.inner for stage in video.stages if isinstance(stage, Frames)]
    for mine, theirs in zip(ours, picture.stages, strict=True):
        mine.load_state_dict(theirs.state_dict())
    video.stem.inner.load_state_dict(picture.stem.state_dict())
    head = video.head.inner if isinstance(video.head, Frames) else video.head
    head.load_state_dict(picture.head.state_dict())
    video.norm.load_state_dict(picture.norm.state_dict())
    for stage in video.stages:
        if isinstance(stage, CausalTime):
            nn.init.zeros_(stage.mix.weight)
            nn.init.zeros_(stage.mix.bias)
        elif isinstance(stage, HalveFrames):
            width = stage.merge.out_features
            stage.merge.weight.copy_(torch.cat([torch.zeros(width, width), torch.eye(width)], dim=1))
            nn.init.zeros_(stage.merge.bias)
        elif isinstance(stage, DoubleFrames):
            stage.split.weight.copy_(torch.eye(stage.split.in_features).repeat(2, 1))
            nn.init.zeros_(stage.split.bias)
