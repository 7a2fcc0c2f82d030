"""PatchGAN (arXiv:1611.07004, section 3.2.2): one logit for each patch, real or reconstructed.

Group norm in place of batch norm: its statistics are those of one picture, so they need no synchronising between ranks.
"""

import torch
from torch import Tensor, nn

from worldloom.tokenizers.networks.group_norm import GroupNorm


class PatchDiscriminator(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] -> logits [B, 1, h, w]. Weights N(0, 0.02), norms N(1, 0.02)."""

    def __init__(self, width: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for layer in range(1, layers + 1):
            after = width * min(8, 1 << layer)
            stride = 2 if layer < layers else 1
            stages += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False), _group_norm(after), nn.LeakyReLU(0.2)]
            before = after
        self.stages = nn.Sequential(*stages, nn.Conv2d(before, 1, 4, padding=1))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.02, generator=generator)
                elif name.endswith("weight"):
                    parameter.normal_(1, 0.02, generator=generator)
                else:
                    parameter.zero_()

    def forward(self, pictures: Tensor) -> Tensor:
        # Only the activations are channels_last: training engines exchange weights as flat memory.
        logits: Tensor = self.stages(pictures.contiguous(memory_format=torch.channels_last))
        return logits


def smallest_side(layers: int) -> int:
    """The smallest pictures that leave at least one patch."""
    side = 1
    for stride in [1, 1] + [2] * layers:
        side = (side - 1) * stride + 4 - 2
    return side


def _group_norm(channels: int) -> GroupNorm:
    groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if groups == 1 or (channels % groups == 0 and channels // groups >= 4))
    return GroupNorm(groups, channels)
