"""The losses and schedules of the discrete VAE (arXiv:2102.12092, appendix A)."""

import math

import torch.nn.functional as F
from torch import Tensor


def logit_laplace_nll(x: Tensor, mu: Tensor, ln_b: Tensor) -> Tensor:
    """`ln(2 b x (1 - x)) + |logit x - mu| / b`, elementwise, for x strictly in (0, 1): minus the log density of equation 2."""
    logit = x.log() - (1 - x).log()
    return math.log(2) + ln_b + x.log() + (1 - x).log() + (logit - mu).abs() * (-ln_b).exp()


def split_output(output: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's [B, 6, H, W] as (mu, ln b), each float32 [B, 3, H, W]; ln b is kept within (-6, 6), so that no pixel takes over."""
    mu, ln_b = output.float().chunk(2, dim=1)
    return mu, 6 * F.tanh(ln_b / 6)


def temperature(step: int, steps: int, last: float) -> float:
    """Of the Gumbel-softmax: from 1 to `last` along half a cosine over `steps`, then constant."""
    progress = min(1.0, step / max(1, steps))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * progress))


def kl_weight(step: int, steps: int, last: float) -> float:
    """From 0 to `last` along half a cosine over `steps`, then constant."""
    progress = min(1.0, step / max(1, steps))
    return last * 0.5 * (1 - math.cos(math.pi * progress))


def kl_share(weight: float, downsample: int) -> float:
    """The weight of the KL of a mean position beside the NLL of a mean value, if the KL is summed and all divided by the values.

    With cells of 8 x 8 pixels of 3 values this is weight / 192, the factor of the paper's released settings.
    """
    return weight / (3 * downsample * downsample)
