"""A VQ-GAN as users of taming-transformers run it: plain torch modules in NCHW, keys in that layout; peer of the races, oracle of tests.

Written from the description of the network (arXiv:2012.09841, appendix) and from the names in public checkpoints; shares no code with
worldloom's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, width, 3, 1, 1)
        self.norm2 = nn.GroupNorm(32, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        if before != width:
            self.nin_shortcut = nn.Conv2d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = self.conv1(h * torch.sigmoid(h))
        h = self.norm2(h)
        h = self.conv2(h * torch.sigmoid(h))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        normed = self.norm(x)
        q, k, v = (each(normed).reshape(b, c, h * w) for each in (self.q, self.k, self.v))
        scores = torch.bmm(q.permute(0, 2, 1), k) * c**-0.5
        mixed = torch.bmm(v, scores.softmax(dim=2).permute(0, 2, 1))
        return x + self.proj_out(mixed.reshape(b, c, h, w))


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 2, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1), mode="constant", value=0))


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(width: int) -> nn.Module:
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = Residual(width, width), Attention(width), Residual(width, width)
    return mid


class Encoder(nn.Module):
    def __init__(self, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, attn: tuple[bool, ...], z_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, 1, 1)
        self.down = nn.ModuleList()
        width = ch
        for i, mult in enumerate(ch_mult):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks):
                level.block.append(Residual(width, ch * mult))
                width = ch * mult
                if attn[i]:
                    level.attn.append(Attention(width))
            if i + 1 < len(ch_mult):
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = middle(width)
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, z_channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            for i, block in enumerate(level.block):
                h = block(h)
                if len(level.attn):
                    h = level.attn[i](h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        h = self.norm_out(h)
        return self.conv_out(h * torch.sigmoid(h))


class Decoder(nn.Module):
    def __init__(self, ch: int, ch_mult: tuple[int, ...], num_res_blocks: int, attn: tuple[bool, ...], z_channels: int) -> None:
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, 1, 1)
        self.mid = middle(width)
        levels = []
        for i in reversed(range(len(ch_mult))):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                level.block.append(Residual(width, ch * ch_mult[i]))
                width = ch * ch_mult[i]
                if attn[i]:
                    level.attn.append(Attention(width))
            if i:
                level.upsample = Upsample(width)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(32, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        for level in reversed(self.up):
            for i, block in enumerate(level.block):
                h = block(h)
                if len(level.attn):
                    h = level.attn[i](h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        h = self.norm_out(h)
        return self.conv_out(h * torch.sigmoid(h))


class VectorQuantizer(nn.Module):
    """As taming's: full distances, argmin, straight-through, commitment of 0.25."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.embedding.weight.data.uniform_(-1.0 / codes, 1.0 / codes)

    def codes(self, z: Tensor) -> Tensor:
        flat = z.permute(0, 2, 3, 1).contiguous().view(-1, z.shape[1])
        e = self.embedding.weight
        distances = flat.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * flat @ e.t()
        return distances.argmin(1).view(len(z), *z.shape[2:])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.codes(z)
        chosen = self.embedding(codes).permute(0, 3, 1, 2).contiguous()
        loss = (chosen - z.detach()).square().mean() + 0.25 * (chosen.detach() - z).square().mean()
        return z + (chosen - z).detach(), loss, codes


class TamingModel(nn.Module):
    """Encoder, codes and decoder; `forward` gives reconstruction and codebook loss."""

    def __init__(
        self,
        ch: int,
        ch_mult: tuple[int, ...],
        num_res_blocks: int,
        attn: tuple[bool, ...],
        z_channels: int,
        embed_dim: int,
        n_embed: int,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, attn, z_channels)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, attn, z_channels)
        self.quantize = VectorQuantizer(n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor) -> Tensor:
        return self.quantize.codes(self.features(x))

    def decode(self, codes: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, loss, _ = self.quantize(self.features(x))
        return self.decoder(self.post_quant_conv(z)), loss
