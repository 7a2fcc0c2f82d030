"""What causal networks keep between two parts of one signal, so that parts give what the whole gives."""

from torch import Tensor, nn


class Past:
    """The last inputs of each layer that looks back; one for each signal. Empty, it stands for the silence before the beginning."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def join(self, layer: nn.Module, x: Tensor, count: int) -> Tensor:
        """[B, count + T, ...] from the new [B, T, ...]: the `count` before it, zeros at the beginning, in front."""
        before = self._kept.get(id(layer))
        if before is None:
            before = x.new_zeros((x.shape[0], count, *x.shape[2:]))
        joined = _cat(before, x)
        self._kept[id(layer)] = joined[:, joined.shape[1] - count :]
        return joined

    def seen(self, layer: nn.Module) -> bool:
        """Whether the layer has had a part of this signal before; from then on it has."""
        before = id(layer) in self._kept
        self._kept.setdefault(id(layer), Tensor())
        return before


def _cat(before: Tensor, x: Tensor) -> Tensor:
    import torch

    return torch.cat([before.to(x.dtype), x], dim=1)
