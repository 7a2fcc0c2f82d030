"""How taming-transformers trains a VQ-GAN, in plain torch: peer of the race, oracle of a test.

The autoencoder goes forward once for each optimizer, the perceptual network sees both pictures each time, the adaptive weight comes from
two calls of autograd.grad.

Written from the paper (arXiv:2012.09841, section 3.1). The discriminator has group norm, as worldloom's: the network is the same in both.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.taming_reference import TamingModel

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # convolutions of torchvision's VGG16


class Lpips(nn.Module):
    """Distance between pictures by VGG16's features; `weights` by the names that worldloom's `lpips_perceptual` reads."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for index, places in enumerate(STAGES):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            for place in places:
                weight = weights[f"features.{place}.weight"]
                conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                conv.load_state_dict({"weight": weight, "bias": weights[f"features.{place}.bias"]})
                layers += [conv, nn.ReLU()]
            self.stages.append(nn.Sequential(*layers))
        self.heads = nn.ParameterList(weights[f"lin{index}.model.1.weight"] for index in range(len(STAGES)))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = (x - self.shift) / self.scale, (y - self.shift) / self.scale
        distance = torch.zeros(())
        for stage, head in zip(self.stages, self.heads, strict=True):
            x, y = stage(x), stage(y)
            left, right = (each / (each.norm(dim=1, keepdim=True) + 1e-10) for each in (x, y))
            distance = distance + F.conv2d((left - right).square(), head).mean()
        return distance


class Discriminator(nn.Module):
    """PatchGAN; its parameters come in the order of worldloom's."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        main: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = width
        for layer in range(1, layers + 1):
            after = width * min(8, 2**layer)
            main += [nn.Conv2d(before, after, 4, 2 if layer < layers else 1, 1, bias=False), nn.GroupNorm(min(32, after // 4), after)]
            main.append(nn.LeakyReLU(0.2))
            before = after
        self.main = nn.Sequential(*main, nn.Conv2d(before, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class TamingTraining:
    """The two optimizers' losses and steps, from the first step on with the discriminator."""

    def __init__(
        self, model: TamingModel, perceptual: Callable[[Tensor, Tensor], Tensor], discriminator: nn.Module, learning_rate: float = 1e-5
    ) -> None:
        self.model, self.perceptual, self.discriminator = model, perceptual, discriminator
        self.generator_optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.5, 0.9))
        self.discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate, betas=(0.5, 0.9))

    def generator_loss(self, x: Tensor) -> Tensor:
        xhat, codebook = self.model(x)
        nll = (x - xhat).abs().mean() + self.perceptual(x, xhat)
        adversarial = -self.discriminator(xhat).mean()
        last = self.model.decoder.conv_out.weight
        nll_grad = torch.autograd.grad(nll, last, retain_graph=True)[0]
        adversarial_grad = torch.autograd.grad(adversarial, last, retain_graph=True)[0]
        weight = 0.8 * (nll_grad.norm() / (adversarial_grad.norm() + 1e-4)).clamp(0, 1e4).detach()
        return nll + weight * adversarial + codebook

    def discriminator_loss(self, x: Tensor) -> Tensor:
        xhat, _ = self.model(x)
        self.perceptual(x, xhat)  # taming's loss takes it for both optimizers
        real, fake = self.discriminator(x), self.discriminator(xhat.detach())
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

    def step(self, x: Tensor, precision: torch.dtype | None = None) -> None:
        """Both optimizers' turns on pictures [B, 3, H, W] in [-1, 1], under autocast if a precision is given."""
        for loss_of, optimizer in (
            (self.generator_loss, self.generator_optimizer),
            (self.discriminator_loss, self.discriminator_optimizer),
        ):
            with torch.autocast("cpu", precision, enabled=precision is not None):
                loss = loss_of(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
