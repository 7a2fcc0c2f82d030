"""Patch embedding (arXiv:2010.11929, section 3.1): cells of a picture to vectors, by one linear map or behind a network of convolutions.

One linear map is a convolution of stride p, or unfolded patches times a matrix. Both keep the kernel as [D, C, p, p], so that the weights
of one are those of the other; other libraries' matrices come in through `unflatten_kernel`.

B batch, C channels, H x W pixels, p side of a patch, h x w grid, D width.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.convnet import ConvNet

Fitting = Literal["error", "pad", "crop"]  # what becomes of a picture that patches do not divide
Order = Literal["channel_first", "channel_last"]  # of the numbers of a flattened patch: (C, p, p) or (p, p, C)


class _Embedding(nn.Module):
    """What all forms share: the map to vectors, and how pictures are made to fit."""

    def __init__(
        self, channels: int, patch: int, fitting: Fitting, kernel: tuple[int, ...], generator: torch.Generator | None = None
    ) -> None:
        """The weight [D, ...] of that shape is drawn from `generator` (LeCun normal), biases are zero. Other sizes raise, get zeros or lose
        pixels at the right and the bottom, as `fitting` says."""
        super().__init__()
        self.channels, self.patch, self.fitting = channels, patch, fitting
        self.weight = nn.Parameter(torch.empty(kernel))
        self.bias = nn.Parameter(torch.zeros(kernel[0]))
        with torch.no_grad():
            self.weight.normal_(0, math.prod(kernel[1:]) ** -0.5, generator=generator)

    @property
    def width(self) -> int:
        return len(self.bias)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches down and across; ValueError where they do not divide the picture and `fitting` is "error"."""
        return patch_grid(height, width, self.patch, self.fitting)

    def fitted(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h p, w p]."""
        h, w = self.grid(*pixels.shape[-2:])
        down, right = h * self.patch - pixels.shape[-2], w * self.patch - pixels.shape[-1]
        return F.pad(pixels, (0, right, 0, down)) if down or right else pixels  # a negative number of zeros cuts


class _Patches(_Embedding):
    """One linear map, its kernel [D, C, p, p]: a vector hears of its own cell alone."""

    def __init__(self, channels: int, width: int, patch: int, fitting: Fitting = "error", generator: torch.Generator | None = None) -> None:
        super().__init__(channels, patch, fitting, (width, channels, patch, patch), generator)

    def blanked(self, pixels: Tensor, hidden: Tensor) -> Tensor:
        """What visible cells may hear of where those of `hidden`, bool [B, h w], are not to be seen: all, since none hears of another."""
        return pixels


class ConvPatches(_Patches):
    """[B, C, H, W] -> [B, h w, D] by a convolution of stride p; in bfloat16 on a CPU as the product that it is, which is faster there."""

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.device.type == "cpu" and pixels.dtype == torch.bfloat16:
            return F.linear(
                unfold(self.fitted(pixels), self.patch, "channel_first"), flatten_kernel(self.weight, "channel_first"), self.bias
            )
        return F.conv2d(self.fitted(pixels), self.weight, self.bias, stride=self.patch).flatten(2).transpose(1, 2)


class LinearPatches(_Patches):
    """[B, C, H, W] -> [B, h w, D] by unfolding and one product; `order` is that of a flattened patch and changes no result."""

    def __init__(
        self,
        channels: int,
        width: int,
        patch: int,
        fitting: Fitting = "error",
        generator: torch.Generator | None = None,
        order: Order = "channel_first",
    ) -> None:
        super().__init__(channels, width, patch, fitting, generator)
        self.order: Order = order

    def forward(self, pixels: Tensor) -> Tensor:
        return F.linear(unfold(self.fitted(pixels), self.patch, self.order), flatten_kernel(self.weight, self.order), self.bias)


class HybridPatches(_Embedding):
    """[B, C, H, W] -> [B, h w, D]: places of the last grid of convolutions, each through one linear map (the paper's hybrid, whose patches
    are 1 x 1 places of a feature map). A patch is as large as the convolutions' stride.

    A vector hears of what is around its cell, too, and through the norms of the whole picture.
    """

    def __init__(
        self,
        convolutions: ConvNet,
        width: int,
        fitting: Fitting = "error",
        frozen: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """`frozen` convolutions get no gradient and stay as they are; the map, which is drawn from `generator`, learns all the same."""
        super().__init__(convolutions.stem.in_channels, convolutions.stride, fitting, (width, convolutions.width), generator)
        self.convolutions = convolutions.requires_grad_(not frozen)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.linear(self.convolutions(self.fitted(pixels)).tokens, self.weight, self.bias)

    def blanked(self, pixels: Tensor, hidden: Tensor) -> Tensor:
        """What visible cells may hear of, fitted already, [B, C, h p, w p]: hidden cells are zero, since their neighbours hear of them."""
        x = self.fitted(pixels)
        cells = hidden.view(len(x), 1, *self.grid(*pixels.shape[-2:]))
        return x.masked_fill(cells.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3), 0)


Patches = ConvPatches | LinearPatches | HybridPatches


def patch_grid(height: int, width: int, patch: int, fitting: Fitting) -> tuple[int, int]:
    """How many patches a picture has, down and across: N = h w is the length of its sequence."""
    if fitting == "error" and (height % patch or width % patch):
        raise ValueError(
            f"pictures of {height} x {width} pixels cannot be divided into patches of {patch}; "
            f"choose another size or patch, or fitting 'pad' or 'crop'"
        )
    h, w = (-(-height // patch), -(-width // patch)) if fitting == "pad" else (height // patch, width // patch)
    if not h or not w:
        raise ValueError(f"pictures of {height} x {width} pixels hold no patch of {patch}; choose smaller patches, or fitting 'pad'")
    return h, w


def unfold(pixels: Tensor, patch: int, order: Order) -> Tensor:
    """[B, C, h p, w p] -> [B, h w, C p p], the numbers of a patch in the order named."""
    B, C, H, W = pixels.shape
    cells = pixels.reshape(B, C, H // patch, patch, W // patch, patch)
    cells = cells.permute(0, 2, 4, 1, 3, 5) if order == "channel_first" else cells.permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(B, (H // patch) * (W // patch), C * patch * patch)


def fold(patches: Tensor, grid: tuple[int, int], patch: int, order: Order) -> Tensor:
    """[B, h w, C p p] -> [B, C, h p, w p]; undoes `unfold`."""
    B, _, numbers = patches.shape
    C = numbers // (patch * patch)
    if order == "channel_first":
        cells = patches.reshape(B, *grid, C, patch, patch).permute(0, 3, 1, 4, 2, 5)
    else:
        cells = patches.reshape(B, *grid, patch, patch, C).permute(0, 5, 1, 3, 2, 4)
    return cells.reshape(B, C, grid[0] * patch, grid[1] * patch)


def flatten_kernel(kernel: Tensor, order: Order) -> Tensor:
    """[D, C, p, p] -> [D, C p p]: the matrix that flattened patches are multiplied with."""
    return (kernel if order == "channel_first" else kernel.permute(0, 2, 3, 1)).reshape(len(kernel), -1)


def unflatten_kernel(matrix: Tensor, channels: int, patch: int, order: Order) -> Tensor:
    """[D, C p p] -> [D, C, p, p]; undoes `flatten_kernel`. A Flax kernel [p, p, C, D] is `reshape(-1, D).T`, channel_last."""
    if order == "channel_first":
        return matrix.reshape(-1, channels, patch, patch)
    return matrix.reshape(-1, patch, patch, channels).permute(0, 3, 1, 2)
