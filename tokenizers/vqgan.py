"""The losses of VQ-GAN (arXiv:2012.09841, section 3.1): how the adversarial loss is weighed, gated and formed."""

import torch
import torch.nn.functional as F
from torch import Tensor

HIGHEST = 1e4  # the adaptive weight is clamped here
DELTA = 1e-4


def adaptive_weight(nll: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """`|grad nll| / (|grad adversarial| + 1e-4)` at the decoder's last convolution, clamped to [0, 1e4], a constant (equation 7).

    Both graphs are kept for the backward pass that follows. `last_weight` must be whole on this rank (ZeRO stage 2 at most).
    """
    nll_grad = torch.autograd.grad(nll, last_weight, retain_graph=True)[0]
    adversarial_grad = torch.autograd.grad(adversarial, last_weight, retain_graph=True)[0]
    weight = nll_grad.float().norm() / (adversarial_grad.float().norm() + DELTA)
    clamped: Tensor = weight.clamp(0, HIGHEST).detach()
    return clamped


def gate(step: int, start: int, ramp: int) -> float:
    """The discriminator's factor: 0 before step `start`, then rising to 1 over `ramp` steps. One step is one generator update."""
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / max(1, ramp))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its logits for real and reconstructed pictures: half the sum of two hinges."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """`-mean D(xhat)`: what the autoencoder wants of the discriminator."""
    return -fake.float().mean()
