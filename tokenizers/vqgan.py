"""The losses of VQ-GAN (arXiv:2012.09841, section 3.1): how the adversarial loss is weighed, gated and formed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HIGHEST = 1e4  # the adaptive weight is clamped here
DELTA = 1e-4


def adaptive_weight(xhat: Tensor, nll: Tensor, adversarial: Tensor, last_weight: Tensor) -> Tensor:
    """`|grad nll| / (|grad adversarial| + 1e-4)` at the decoder's last convolution, clamped to [0, 1e4], a constant (equation 7).

    `nll` and `adversarial` are the losses' gradients at `xhat`, whose graph is kept for the backward pass that follows. `last_weight`
    must be whole on this rank (ZeRO stage 2 at most).
    """
    norms = [torch.autograd.grad(xhat, last_weight, gradient, retain_graph=True)[0].float().norm() for gradient in (nll, adversarial)]
    clamped: Tensor = (norms[0] / (norms[1] + DELTA)).clamp(0, HIGHEST).detach()
    return clamped


def known(xhat: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
    """The value of `loss` as a function of `xhat` whose gradient there is `gradient`: what made the loss is not differentiated again."""
    value: Tensor = _Known.apply(xhat, loss.detach(), gradient)  # type: ignore[no-untyped-call]
    return value


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, xhat: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return above * gradient, None, None


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
