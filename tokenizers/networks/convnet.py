"""The convolutional encoder and decoder of the image tokenizers, made to be fast on CPUs as well as GPUs.

B batch, H x W pixels, h x w grid, C channels of pictures, D code width. Inside, activations lie as [B, H, W, channels], so that
3 x 3 convolutions run in channels_last, and norms, 1 x 1 convolutions and changes of resolution are plain operations on the last axis. The
norm is over channels alone (as in ConvNeXt, arXiv:2201.03545): group norm over a whole picture costs several times as much in bfloat16 on
CPUs. Any height and width that `downsample` divides will do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_CELLS = 256  # of which attention holds all pairs
HEAD = 32  # channels of an attention head, at least
OCTAVES = 4  # of the sines that tell a cell its place
WIDEST = 4  # the deepest stages are this many times as wide as the first


class ConvEncoder(nn.Module):
    """Pictures [B, C, H, W] -> [B, D, H/downsample, W/downsample]; the last `mixing` blocks before the head mix all cells.

    With `apart` every cell is read as a picture of its own: what lies outside it is not there.
    """

    def __init__(
        self, channels: int, width: int, blocks: int, patch: int, downsample: int, code_width: int, mixing: int = 0, apart: bool = False
    ) -> None:
        super().__init__()
        widths = stage_widths(width, patch, downsample)
        self.patch, self.downsample, self.apart = patch, downsample, apart
        self.stem = Conv3(patch * patch * channels, widths[0])
        stages: list[nn.Module] = []
        for this, deeper in zip(widths, [*widths[1:], None], strict=True):
            stages += [Residual(this) for _ in range(blocks)]
            if deeper is not None:
                stages.append(Halve(this, deeper))
        stages += [Mixing(widths[-1]) for _ in range(mixing)]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], code_width)

    def forward(self, pictures: Tensor) -> Tensor:
        H, W = pictures.shape[-2:]
        if H % self.downsample or W % self.downsample:
            raise ValueError(f"pictures of {H} x {W} pixels cannot be divided into cells of {self.downsample} x {self.downsample}")
        x = pictures.permute(0, 2, 3, 1)
        if self.apart:
            cells = space_to_depth(x, self.downsample)
            x = cells.view(-1, self.downsample, self.downsample, x.shape[-1])
        x = self.norm(self.stages(self.stem(space_to_depth(x, self.patch))))
        if self.apart:
            x = x.view(*cells.shape[:3], -1)
        if torch.is_autocast_enabled(x.device.type):
            # Codes are chosen by small differences: the last product is float32.
            with torch.autocast(x.device.type, enabled=False):
                x = self.head(x.float())
        else:
            x = self.head(x)
        features: Tensor = x.permute(0, 3, 1, 2)
        return features


class ConvDecoder(nn.Module):
    """[B, D, h, w] -> [B, C, h * downsample, w * downsample], unbounded; the first `mixing` blocks mix all cells."""

    def __init__(self, channels: int, width: int, blocks: int, patch: int, downsample: int, code_width: int, mixing: int = 0) -> None:
        super().__init__()
        widths = stage_widths(width, patch, downsample)[::-1]
        self.patch = patch
        self.stem = Conv3(code_width, widths[0])
        stages: list[nn.Module] = [Mixing(widths[0]) for _ in range(mixing)]
        for this, shallower in zip(widths, [*widths[1:], None], strict=True):
            stages += [Residual(this) for _ in range(blocks)]
            if shallower is not None:
                stages.append(Double(this, shallower))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(widths[-1])
        self.head = Conv3(widths[-1], patch * patch * channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.stages(self.stem(z.permute(0, 2, 3, 1)))
        x = depth_to_space(self.head(self.norm(x)), self.patch)
        return x.permute(0, 3, 1, 2)

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the last convolution, against which a VQ-GAN balances its losses."""
        weight = self.head.conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight


class Residual(nn.Module):
    """x + linear(swish(conv(norm(x)))); the last map starts small, so that deep stacks start near the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = Conv3(width, width)
        self.mix = nn.Linear(width, width)
        with torch.no_grad():
            self.mix.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mix(F.silu(self.conv(self.norm(x))))
        return out


class Mixing(nn.Module):
    """Every cell reads every other: x + linear(attention(norm(x) + places)), places a linear map of sines of the cells' coordinates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(max(1, width // HEAD), 0, -1) if width % heads == 0)
        self.norm = nn.LayerNorm(width)
        self.place = nn.Linear(4 * OCTAVES, width, bias=False)
        self.read = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        cells = (self.norm(x) + self.place(places(H, W, x.device))).reshape(B, H * W, C)
        q, k, v = self.read(cells).view(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        mixed = _attention(q, k, v).transpose(1, 2).reshape(B, H, W, C)
        out: Tensor = x + self.mix(mixed)
        return out


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, heads, cells, channels] each; plain products where cells are few: there, on CPUs, they cost a tenth of the fused kernel's."""
    if q.shape[-2] > FEW_CELLS:
        return F.scaled_dot_product_attention(q, k, v)
    chances = ((q @ k.transpose(-1, -2)).float() * float(q.shape[-1]) ** -0.5).softmax(-1)
    read: Tensor = chances.to(v.dtype) @ v
    return read


def places(H: int, W: int, device: torch.device) -> Tensor:
    """[H, W, 4 * OCTAVES]: sines and cosines of both coordinates of the middle of each cell, in shares of the picture's side."""
    rows, columns = ((torch.arange(length, device=device) + 0.5) / length for length in (H, W))
    octaves = torch.pi * 2 ** torch.arange(OCTAVES, device=device)
    down, across = (torch.cat([(at[:, None] * octaves).sin(), (at[:, None] * octaves).cos()], -1) for at in (rows, columns))
    return torch.cat([down[:, None].expand(-1, W, -1), across.expand(H, -1, -1)], -1)


class Conv3(nn.Module):
    """3 x 3 convolution of [B, H, W, channels]."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, out_width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class Halve(nn.Module):
    """[B, H, W, in] -> [B, H/2, W/2, out]: a 2 x 2 convolution of stride 2, as one product."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.merge = nn.Linear(4 * in_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.merge(space_to_depth(x, 2))
        return out


class Double(nn.Module):
    """[B, h, w, in] -> [B, 2h, 2w, out]: a transposed 2 x 2 convolution of stride 2, as one product."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.split = nn.Linear(in_width, 4 * out_width)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.split(x), 2)


def space_to_depth(x: Tensor, side: int) -> Tensor:
    """[B, H, W, C] -> [B, H/side, W/side, side * side * C]: each cell's pixels side by side."""
    B, H, W, C = x.shape
    cells = x.reshape(B, H // side, side, W // side, side, C).transpose(2, 3)
    return cells.reshape(B, H // side, W // side, side * side * C)


def depth_to_space(x: Tensor, side: int) -> Tensor:
    """[B, H, W, side * side * C] -> [B, side * H, side * W, C]; undoes space_to_depth."""
    B, H, W, C = x.shape
    cells = x.reshape(B, H, W, side, side, C // (side * side)).transpose(2, 3)
    return cells.reshape(B, side * H, side * W, C // (side * side))


def stage_widths(width: int, patch: int, downsample: int) -> list[int]:
    """Widths of the stages at 1/patch ... 1/downsample of the resolution, halved from one to the next."""
    if patch < 2 or patch & (patch - 1) or downsample & (downsample - 1) or patch > downsample:
        raise ValueError(f"patch and downsample must be powers of two with 2 <= patch <= downsample, got {patch} and {downsample}")
    return [width * min(WIDEST, 1 << stage) for stage in range((downsample // patch).bit_length())]
