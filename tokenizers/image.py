"""The image tokenizer: uint8 pictures to a grid of codes and back, by VQ-GAN, VQ-VAE or dVAE."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.backbone_settings import ConvBackbone
from worldloom.tokenizers.dvae import split_output
from worldloom.tokenizers.image_settings import Dvae, ImageTokenizerSettings, VqGan, VqVae, is_mapped
from worldloom.tokenizers.learned import LearnedTokenizer, first_weights
from worldloom.tokenizers.networks.convnet import ConvDecoder, ConvEncoder
from worldloom.tokenizers.networks.elsewhere import NONE, EncoderDecoder, Networks, Sides, build_networks
from worldloom.tokenizers.networks.taming import TamingDecoder, TamingEncoder
from worldloom.tokenizers.pixels import from_mapped, from_signed, to_mapped, to_signed
from worldloom.tokenizers.quantizers.build import build_quantizer, upkeep_of
from worldloom.tokenizers.quantizers.gumbel_quantizer import GumbelQuantizer
from worldloom.tokenizers.quantizers.quantized import Quantizer
from worldloom.tokenizers.quantizers.settings import Gradient
from worldloom.tokenizers.resampling import Resampling
from worldloom.tokenizers.taming_settings import Taming

CACHED = 1 << 22  # numbers of a batch at full resolution, above which a CPU waits for memory


class ImageTokenizer(LearnedTokenizer):
    """Pictures, uint8 [height, width, 3], to a grid of codes [height/downsample, width/downsample] (and levels, if any)."""

    kind = "image"
    values = "pictures"
    value_type = torch.uint8
    settings: VqGan | VqVae | Dvae | Taming

    def __init__(
        self,
        autoencoder: DiscreteAutoencoder,
        settings: VqGan | VqVae | Dvae | Taming,
        height: int,
        width: int,
        resample: Resampling = "lanczos",
    ) -> None:
        """`resample` is how files of other sizes were brought to these."""
        super().__init__(autoencoder, settings)
        if height % settings.downsample or width % settings.downsample:
            raise ValueError(
                f"pictures of {height} x {width} pixels cannot be divided into cells of {settings.downsample}; "
                f"choose a downsample that divides both, or another size for the stream"
            )
        self.height, self.width, self.resample = height, width, resample
        if isinstance(settings, Taming) and not torch.cuda.is_available():
            self.batch = max(2, min(self.batch, CACHED // (settings.width * height * width)))

    @property
    def value_shape(self) -> tuple[int, ...]:
        return self.height, self.width, 3

    @property
    def shape(self) -> tuple[int, ...]:
        grid = self.height // self.settings.downsample, self.width // self.settings.downsample
        return grid if self.levels == 1 else (*grid, self.levels)

    @property
    def form(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width, "resample": self.resample}

    @classmethod
    def build(cls, settings: VqGan | VqVae | Dvae | Taming, form: Mapping[str, Any], seed: int, networks: Networks = NONE) -> Self:
        autoencoder = build_autoencoder(settings, seed, networks, (form["height"], form["width"]))
        return cls(autoencoder, settings, form["height"], form["width"], form.get("resample", "lanczos"))

    @classmethod
    def assemble(cls, settings: Any, form: Mapping[str, Any], networks: Networks) -> Self:
        return cls.build(settings, form, 0, networks)

    @classmethod
    def read_settings(cls, value: Any) -> VqGan | VqVae | Dvae | Taming:
        settings: VqGan | VqVae | Dvae | Taming = TypeAdapter(
            Annotated[ImageTokenizerSettings | Taming, Field(discriminator="type")]
        ).validate_json(json.dumps(value))
        return settings

    def to_network(self, values: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, 3, H, W]."""
        return to_mapped(values) if is_mapped(self.settings) else to_signed(values)

    def to_values(self, output: Tensor) -> Tensor:
        """[B, 3 or 6, H, W] -> uint8 [B, H, W, 3]."""
        return from_mapped(split_output(output)[0].sigmoid()) if is_mapped(self.settings) else from_signed(output)


def build_autoencoder(
    settings: VqGan | VqVae | Dvae | Taming, seed: int, networks: Networks = NONE, size: tuple[int, int] | None = None
) -> DiscreteAutoencoder:
    """An untrained autoencoder in fp32 on the CPU; the same for the same settings and seed.

    A backbone of another room comes from `networks` and is made for pictures of `size`, height and width.
    """
    with first_weights(seed) as generator:
        if isinstance(settings, Taming):
            codes = Gradient(code_width=settings.code_width, place_after=-1, restart_every=0)
            quantizer = build_quantizer(codes, settings.codebook_size, seed, generator)
            return DiscreteAutoencoder(TamingEncoder(settings), quantizer, TamingDecoder(settings))
        quantizer = quantizer_of(settings, seed, generator)
        encoder, decoder = picture_networks(settings, quantizer, networks, size, generator)
        return DiscreteAutoencoder(encoder, quantizer, decoder)


def picture_networks(
    settings: VqGan | VqVae | Dvae, quantizer: Quantizer, networks: Networks, size: tuple[int, int] | None, generator: torch.Generator
) -> EncoderDecoder:
    """The networks of the settings' backbone around a quantizer."""
    channels = 6 if is_mapped(settings) else 3
    if not isinstance(settings.backbone, ConvBackbone):
        assert size is not None, "such networks are made for pictures of one size"
        grid = size[0] // settings.downsample, size[1] // settings.downsample
        sides = Sides(grid, settings.downsample, 3, channels, quantizer.in_width, quantizer.out_width)
        return build_networks(networks, settings.backbone, sides, generator)
    network = {"width": settings.width, "blocks": settings.blocks, "patch": settings.patch, "downsample": settings.downsample}
    network["mixing"] = settings.mixing
    return EncoderDecoder(
        ConvEncoder(channels=3, code_width=quantizer.in_width, apart=settings.receptive_field == "cell", **network),
        ConvDecoder(channels=channels, code_width=quantizer.out_width, **network),
    )


def quantizer_of(settings: VqGan | VqVae | Dvae, seed: int, generator: torch.Generator) -> Quantizer:
    """What stands between encoder and decoder: a dVAE's relaxed codes, or what the settings ask for."""
    if isinstance(settings, Dvae):
        upkeep = upkeep_of(settings.counting, seed)
        return GumbelQuantizer(settings.codebook_size, settings.code_width, upkeep, generator)
    return build_quantizer(settings.quantizer, settings.codebook_size, seed, generator)
