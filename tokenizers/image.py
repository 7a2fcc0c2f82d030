"""The image tokenizer: uint8 pictures to a grid of codes and back, by VQ-GAN, VQ-VAE or dVAE."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.dvae import split_output
from worldloom.tokenizers.image_settings import Dvae, ImageTokenizerSettings, VqGan, VqVae
from worldloom.tokenizers.learned import LearnedTokenizer, first_weights
from worldloom.tokenizers.networks.convnet import ConvDecoder, ConvEncoder
from worldloom.tokenizers.networks.taming import TamingDecoder, TamingEncoder
from worldloom.tokenizers.pixels import from_mapped, from_signed, to_mapped, to_signed
from worldloom.tokenizers.quantizers.build import build_quantizer, upkeep_of
from worldloom.tokenizers.quantizers.gumbel_quantizer import GumbelQuantizer
from worldloom.tokenizers.quantizers.quantized import Quantizer
from worldloom.tokenizers.quantizers.settings import Gradient
from worldloom.tokenizers.taming_settings import Taming


class ImageTokenizer(LearnedTokenizer):
    """Pictures, uint8 [height, width, 3], to a grid of codes [height/downsample, width/downsample] (and levels, if any)."""

    kind = "image"
    values = "pictures"
    value_type = torch.uint8
    settings: VqGan | VqVae | Dvae | Taming

    def __init__(self, autoencoder: DiscreteAutoencoder, settings: VqGan | VqVae | Dvae | Taming, height: int, width: int) -> None:
        super().__init__(autoencoder, settings)
        if height % settings.downsample or width % settings.downsample:
            raise ValueError(
                f"pictures of {height} x {width} pixels cannot be divided into cells of {settings.downsample}; "
                f"choose a downsample that divides both, or another size for the stream"
            )
        self.height, self.width = height, width

    @property
    def value_shape(self) -> tuple[int, ...]:
        return self.height, self.width, 3

    @property
    def shape(self) -> tuple[int, ...]:
        grid = self.height // self.settings.downsample, self.width // self.settings.downsample
        return grid if self.levels == 1 else (*grid, self.levels)

    @property
    def form(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width}

    @classmethod
    def build(cls, settings: VqGan | VqVae | Dvae | Taming, form: Mapping[str, Any], seed: int) -> Self:
        return cls(build_autoencoder(settings, seed), settings, form["height"], form["width"])

    @classmethod
    def read_settings(cls, value: Any) -> VqGan | VqVae | Dvae | Taming:
        settings: VqGan | VqVae | Dvae | Taming = TypeAdapter(
            Annotated[ImageTokenizerSettings | Taming, Field(discriminator="type")]
        ).validate_json(json.dumps(value))
        return settings

    def to_network(self, values: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]."""
        return to_mapped(values) if isinstance(self.settings, Dvae) else to_signed(values)

    def to_values(self, output: Tensor) -> Tensor:
        """[B, 3 or 6, H, W] -> uint8 [B, H, W, 3]."""
        return from_mapped(split_output(output)[0].sigmoid()) if isinstance(self.settings, Dvae) else from_signed(output)


def build_autoencoder(settings: VqGan | VqVae | Dvae | Taming, seed: int) -> DiscreteAutoencoder:
    """An untrained autoencoder in fp32 on the CPU; the same for the same settings and seed."""
    with first_weights(seed) as generator:
        if isinstance(settings, Taming):
            codes = Gradient(code_width=settings.code_width, place_after=-1, restart_every=0)
            quantizer = build_quantizer(codes, settings.codebook_size, seed, generator)
            return DiscreteAutoencoder(TamingEncoder(settings), quantizer, TamingDecoder(settings))
        quantizer = quantizer_of(settings, seed, generator)
        network = {"width": settings.width, "blocks": settings.blocks, "patch": settings.patch, "downsample": settings.downsample}
        network["mixing"] = settings.mixing
        encoder = ConvEncoder(channels=3, code_width=quantizer.in_width, **network)
        decoder = ConvDecoder(channels=6 if isinstance(settings, Dvae) else 3, code_width=quantizer.out_width, **network)
        return DiscreteAutoencoder(encoder, quantizer, decoder)


def quantizer_of(settings: VqGan | VqVae | Dvae, seed: int, generator: torch.Generator) -> Quantizer:
    """What stands between encoder and decoder: a dVAE's relaxed codes, or what the settings ask for."""
    if isinstance(settings, Dvae):
        upkeep = upkeep_of(settings.counting, seed)
        return GumbelQuantizer(settings.codebook_size, settings.code_width, upkeep, generator)
    return build_quantizer(settings.quantizer, settings.codebook_size, seed, generator)
