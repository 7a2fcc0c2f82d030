"""A residual network of convolutions (arXiv:1512.03385), pre-activated (arXiv:1603.05027) and with group norm (arXiv:1803.08494): what is
wanted where a teacher shall know of neighbourhoods and shifts what a transformer has to learn (DeiT, arXiv:2012.12877, section 5.2).

No statistics cross samples, so that a batch may be cut among workers. B batch, C channels, H x W pixels, N = h w places of the last grid,
D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.features import Features

GROUPS = 8  # of the norms; every width is a multiple


class ConvNet(nn.Module):
    """Pictures [B, C, H, W] of any size -> Features of the last grid; what is pooled is their mean."""

    def __init__(
        self, channels: int, patch: int, width: int, depths: Sequence[int], epsilon: float = 1e-5, generator: torch.Generator | None = None
    ) -> None:
        """The stem has stride `patch`; every stage behind the first halves the grid and doubles the width. Kernels are drawn from
        `generator` (He normal); the last of each branch starts at zero."""
        super().__init__()
        self.width, self.stride = width << (len(depths) - 1), patch << (len(depths) - 1)
        self.stem = nn.Conv2d(channels, width, max(3, patch), stride=patch, padding=1 if patch < 3 else 0)
        blocks: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            for number in range(depth):
                first = number == 0 and stage > 0
                blocks.append(_Block(width << (stage - 1 if first else stage), width << stage, 2 if first else 1, epsilon))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(GROUPS, self.width, eps=epsilon)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
            for block in blocks:
                assert isinstance(block, _Block)
                block.second.weight.zero_()

    def forward(self, pixels: Tensor) -> Features:
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        tokens = F.relu(self.norm(x)).flatten(2).transpose(1, 2)
        return Features(tokens, tokens.mean(1))


class _Block(nn.Module):
    """x + convolutions(relu(norm(x))); where stride or width change, x goes through a convolution of 1 x 1 as well."""

    def __init__(self, before: int, width: int, stride: int, epsilon: float) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(GROUPS, before, eps=epsilon), nn.GroupNorm(GROUPS, width, eps=epsilon)
        self.first = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.across = nn.Conv2d(before, width, 1, stride, bias=False) if stride > 1 or before != width else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(x))
        out: Tensor = (x if self.across is None else self.across(y)) + self.second(F.relu(self.second_norm(self.first(y))))
        return out
