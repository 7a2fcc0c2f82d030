"""How bright a colour is (ITU-R BT.601), which is also Pillow's grey."""

from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def luma(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W]."""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
