"""Group norm (arXiv:1803.08494) of activations in channels_last, where torch's own is slow on CPUs.

B batch, C channels, G groups, P places of the grid. torch walks small grids group by group, a few numbers at a time, and its backward
pass in bfloat16 takes as long as a 3 x 3 convolution. Here statistics are sums over places with all channels side by side, and the rest is
one scale and one shift a channel. Statistics and sums are float32 (float64 for float64), whatever the type of the activations.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALL = 1024  # places from which on torch's forward pass reads channels_last memory in rows


class GroupNorm(nn.GroupNorm):
    """[B, C, H, W] -> the same form, type and layout."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        return cast(Tensor, _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps))  # type: ignore[no-untyped-call]

    def swish(self, x: Tensor) -> Tensor:
        """norm(x) * sigmoid(norm(x))."""
        return F.silu(self(x), inplace=not torch.is_grad_enabled())


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float) -> Tensor:
        B, C, H, W = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        weight_C, bias_C = weight_C.to(wide), bias_C.to(wide)
        if H * W >= SMALL:
            y, mean_BG, rstd_BG = torch.native_group_norm(x, weight_C, bias_C, B, C, H * W, groups, eps)
        else:
            x_BPC = _places(x).to(wide)
            mean_BG = x_BPC.mean(1).view(B, groups, -1).mean(2)
            centred_BPC = x_BPC - _channels(mean_BG, C)
            rstd_BG = (centred_BPC.square().mean(1).view(B, groups, -1).mean(2) + eps).rsqrt()
            y = _grid(torch.addcmul(bias_C, centred_BPC, _channels(rstd_BG, C) * weight_C).to(x.dtype), x)
        ctx.save_for_backward(x, weight_C, mean_BG, rstd_BG)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight_C, mean_BG, rstd_BG = ctx.saved_tensors
        (B, G), C = mean_BG.shape, x.shape[1]
        x_BPC, dy_BPC = _places(x).to(weight_C.dtype), _places(dy).to(weight_C.dtype)
        count = x_BPC.shape[1] * C // G
        # Sums of dy and of dy * x over places say all: of every channel for weight and bias, of every group for x.
        dy_BC, dyx_BC = dy_BPC.sum(1), (dy_BPC * x_BPC).sum(1)
        mean_B1C, rstd_B1C = _channels(mean_BG, C), _channels(rstd_BG, C)
        dweight_C = ((dyx_BC - dy_BC * mean_B1C[:, 0]) * rstd_B1C[:, 0]).sum(0)
        dy_BG, dyx_BG = ((each * weight_C).view(B, G, -1).sum(2) for each in (dy_BC, dyx_BC))
        slope_BG = (dy_BG * mean_BG - dyx_BG) * rstd_BG**3 / count
        shift_BG = -slope_BG * mean_BG - dy_BG * rstd_BG / count
        dx_BPC = torch.addcmul(_channels(shift_BG, C), x_BPC, _channels(slope_BG, C)).addcmul_(dy_BPC, rstd_B1C * weight_C)
        return _grid(dx_BPC.to(x.dtype), x), dweight_C, dy_BC.sum(0), None, None


def _places(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, P, C]; a view of what lies in channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _grid(x_BPC: Tensor, like: Tensor) -> Tensor:
    """[B, P, C] -> [B, C, H, W] in channels_last."""
    B, C, H, W = like.shape
    return x_BPC.view(B, H, W, C).permute(0, 3, 1, 2)


def _channels(value_BG: Tensor, channels: int) -> Tensor:
    """[B, G] -> [B, 1, C]: each group's value at its channels."""
    return value_BG.repeat_interleave(channels // value_BG.shape[1], 1)[:, None]
