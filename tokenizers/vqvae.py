"""The reconstruction loss of VQ-VAE (arXiv:1711.00937; the sonnet example divides by the data's variance)."""

import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(x: Tensor, xhat: Tensor, variance: float) -> Tensor:
    """Mean squared error over the data's variance: 1 for a decoder that only knows the mean."""
    return F.mse_loss(xhat.float(), x) / variance
