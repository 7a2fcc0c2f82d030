"""A perceptual distance: squared differences of unit-normalised features of a network (LPIPS, arXiv:1801.03924).

The network is passed in: anything with features at several depths, such as a trained encoder of pictures. Those made here are like VGG.
Without weights that network is random with a fixed seed, and named so in the metrics: random convolutions still compare edges and textures
over neighbourhoods, which pixels alone do not. With LPIPS weights it is VGG16 with the learnt weights of each channel.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# Convolutions of VGG16 by stage, with their places in torchvision's `features`; features are taken at the end of each stage.
VGG16 = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and spread for pictures in [-1, 1], as in LPIPS
SCALE = (0.458, 0.448, 0.450)
SEED = 20_180_111


class Features(NamedTuple):
    """Unit-normalised features of one batch of pictures."""

    stages: tuple[Tensor, ...]  # each [B, C, h, w]


class Depths(Protocol):
    """A module that gives its features at several depths."""

    def __call__(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, H, W] in [-1, 1] -> [B, C, h, w] each."""
        ...

    def pooled(self, pictures: Tensor) -> Tensor:
        """[B, D]: one vector for a picture."""
        ...


class Chain(nn.Module):
    """Stages one behind the other, of pictures standardised as ImageNet's."""

    shift: Tensor
    scale: Tensor

    def __init__(self, stages: list[nn.Sequential]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        x = ((pictures - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return tuple(found)

    def pooled(self, pictures: Tensor) -> Tensor:
        """[B, D]: mean unit-normalised features of all stages side by side."""
        return torch.cat([_unit(stage).mean((2, 3)) for stage in self(pictures)], dim=1)


class PerceptualLoss(nn.Module):
    """Distance between batches of pictures [B, 3, H, W] in [-1, 1]; frozen. Zero for equal pictures, symmetric."""

    def __init__(self, network: Depths, heads: list[Tensor] | None, name: str) -> None:
        """`heads` are the weights [C] of each stage's channels, None: every stage counts the same, as do its channels; `name` says in
        the metrics what the distance is."""
        super().__init__()
        assert isinstance(network, nn.Module)
        self.name, self.network = name, network
        self.weighed = heads is not None
        for index, head in enumerate(heads or ()):
            self.register_buffer(f"head_{index}", head.view(1, -1, 1, 1))
        self.requires_grad_(False).eval()

    def features(self, pictures: Tensor) -> Features:
        """What `distance` compares: compute it once for the real pictures."""
        return Features(tuple(_unit(stage) for stage in self.network(pictures)))

    def distance(self, left: Features, right: Features) -> Tensor:
        """Scalar: squared differences, weighed by channel, averaged over batch and places, summed over stages."""
        parts = [
            ((a - b).square() * (self.get_buffer(f"head_{index}") if self.weighed else 1 / len(left.stages))).sum(1).mean()
            for index, (a, b) in enumerate(zip(left.stages, right.stages, strict=True))
        ]
        return torch.stack(parts).sum()

    def pooled(self, pictures: Tensor) -> Tensor:
        """[B, D]: one vector for a picture, for distances between sets of pictures."""
        found: Tensor = self.network.pooled(pictures)
        return found

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.distance(self.features(left), self.features(right))


def _unit(x: Tensor) -> Tensor:
    """Features [B, C, h, w] of length one at every place, in float32."""
    wide = x.float()
    return wide * (wide.square().sum(1, keepdim=True) + 1e-10).rsqrt()


def random_perceptual(widths: tuple[int, ...] = (16, 32, 64)) -> PerceptualLoss:
    """A small random network of strided convolutions, so that it costs less than the autoencoder; the same one every time."""
    generator = torch.Generator().manual_seed(SEED)
    stages, before = [], 3
    for width in widths:
        stages.append(nn.Sequential(_conv(before, width, generator), nn.LeakyReLU(0.1)))
        before = width
    heads = [torch.full((width,), 1 / len(widths)) for width in widths]
    return PerceptualLoss(Chain(stages), heads, name="random_vgg")


def lpips_perceptual(path: Path) -> PerceptualLoss:
    """VGG16 with LPIPS weights, from one safetensors file that holds both.

    Keys: torchvision's `features.<n>.weight` and `features.<n>.bias`, and `lin<k>.model.1.weight` [1, C, 1, 1] as in the lpips package's
    vgg.pth. ValueError where a key is missing or of another shape.
    """
    weights = load_file(path)
    stages, heads, before = [], [], 3
    for index, convolutions in enumerate(VGG16):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
        for place, width in convolutions:
            conv = nn.Conv2d(before, width, 3, padding=1)
            conv.weight = nn.Parameter(_take(weights, f"features.{place}.weight", (width, before, 3, 3), path))
            conv.bias = nn.Parameter(_take(weights, f"features.{place}.bias", (width,), path))
            layers += [conv, nn.ReLU()]
            before = width
        stages.append(nn.Sequential(*layers))
        heads.append(_take(weights, f"lin{index}.model.1.weight", (1, before, 1, 1), path).flatten())
    return PerceptualLoss(Chain(stages), heads, name="lpips_vgg")


def _take(weights: Mapping[str, Tensor], key: str, shape: tuple[int, ...], path: Path) -> Tensor:
    if key not in weights or tuple(weights[key].shape) != shape:
        seen = f"has the shape {tuple(weights[key].shape)}" if key in weights else "is missing"
        raise ValueError(
            f"{path}: {key} {seen}, expected {shape}; save torchvision's VGG16 features and the lpips package's lin weights into one file"
        )
    return weights[key].float()


def _conv(in_width: int, out_width: int, generator: torch.Generator) -> nn.Conv2d:
    conv = nn.Conv2d(in_width, out_width, 4, stride=2, padding=1)
    with torch.no_grad():
        conv.weight.normal_(0, (2 / (16 * in_width)) ** 0.5, generator=generator)
        assert conv.bias is not None
        conv.bias.normal_(0, 0.1, generator=generator)
    return conv
