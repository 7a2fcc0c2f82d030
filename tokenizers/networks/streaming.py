"""What causal networks keep between two parts of one signal, so that parts give what the whole gives."""

import torch
from torch import Tensor, nn


class Past:
    """The last inputs of each layer that looks back; one for each signal. A new one stands for the nothing before its beginning."""

    def __init__(self) -> None:
        self.begun = False  # whoever counts frames from the beginning says so here
        self._kept: dict[nn.Module, Tensor] = {}
        self._met: set[nn.Module] = set()

    def join(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """[B, count + T, ...] from the new [B, T, ...]: the `count` steps before it, zeros at the beginning, stand in front."""
        before = self._kept.get(layer)
        if before is None:
            before = x.new_zeros((x.shape[0], count, *x.shape[2:]))
        joined = torch.cat([before.to(x.dtype), x], dim=1)
        self._kept[layer] = joined[:, joined.shape[1] - count :]
        return joined

    def first(self, layer: nn.Module) -> bool:
        """Whether this is the layer's first part of the signal."""
        new = layer not in self._met
        self._met.add(layer)
        return new
