"""Settings of the image tokenizers, one model a type. Imports no torch: pipeline files are validated without it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from worldloom.tokenizers.backbone_settings import Backbone, ConvBackbone
from worldloom.tokenizers.quantizers.settings import AnyQuantizer, Ema, QuantizerSettings, Share
from worldloom.tokenizers.rules import check_codebook, check_halvings


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Autoencoder(_Settings):
    codebook_size: Annotated[int, Field(ge=2, le=1 << 20, description="how many codes there are")] = 512
    downsample: Annotated[
        int, Field(ge=2, le=64, description="pixels along a side of the cell that one code stands for; a power of two")
    ] = 8
    patch: Annotated[
        int, Field(ge=2, le=64, description="side of the cells of pixels that the first convolution reads; a power of two")
    ] = 2
    width: Annotated[int, Field(ge=4, le=1024, description="channels at first; twice as many after each halving, up to four times")] = 32
    blocks: Annotated[int, Field(ge=1, le=16, description="residual blocks at each resolution, in encoder and decoder")] = 1
    mixing: Annotated[
        int,
        Field(ge=0, le=16, description="blocks of attention over the whole picture, on the grid of codes, in encoder and decoder"),
    ] = 0
    receptive_field: Literal["wide", "cell"] = Field(
        default="wide",
        description="of a code: wide, as far as the encoder's convolutions reach; cell, its own pixels alone. What stays as it is then "
        "keeps its code whatever happens around it, and a world model foretells it sooner",
    )
    backbone: Backbone = Field(
        default=ConvBackbone(),
        description="the networks: conv, made of patch, width, blocks and mixing; or vit, which has settings of its own",
    )
    time_stride: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="of clips: frames that one step of codes stands for, a power of two; null: every frame by itself"
    )

    @model_validator(mode="after")
    def _halvings(self) -> Self:
        check_halvings(self.patch, self.downsample, time_stride=self.time_stride or 1)
        if self.mixing and self.time_stride is not None:
            raise ValueError(
                f"mixing ({self.mixing}) is for pictures and clips coded frame by frame; leave out it or time_stride ({self.time_stride})"
            )
        return self

    @model_validator(mode="after")
    def _cells_lie_apart(self) -> Self:
        if self.receptive_field == "cell":
            for name, value, none in (("mixing", self.mixing, 0), ("time_stride", self.time_stride, None)):
                if value != none:
                    raise ValueError(f"receptive_field 'cell' keeps cells apart and {name} ({value}) joins them; leave out one of the two")
        return self

    @model_validator(mode="after")
    def _each_backbone_has_its_own(self) -> Self:
        if isinstance(self.backbone, ConvBackbone):
            return self
        theirs = [
            name
            for name in ("patch", "width", "blocks", "mixing", "receptive_field")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if theirs:
            raise ValueError(
                f"{', '.join(theirs)} shape{'s' if len(theirs) == 1 else ''} the conv backbone; "
                f"with {self.backbone.type} leave it out and set backbone's own"
            )
        if self.time_stride is not None:
            raise ValueError(
                f"time_stride ({self.time_stride}) needs the conv backbone: {self.backbone.type} codes frame by frame; leave one out"
            )
        return self


class _VectorQuantized(_Autoencoder):
    quantizer: AnyQuantizer = Field(default=Ema(), description="how the encoder's vectors become codes")

    @model_validator(mode="after")
    def _codebook_is_the_quantizers(self) -> Self:
        check_codebook(self.quantizer, self.codebook_size)
        return self

    def resolved(self, steps: int) -> Self:
        """The same with what follows from the length of the training written out."""
        return self.model_copy(update={"quantizer": self.quantizer.resolved(steps)})


class VqGan(_VectorQuantized):
    """VQ-GAN (arXiv:2012.09841)."""

    type: Literal["vqgan"] = "vqgan"
    perceptual_weight: NonNegativeFloat = Field(default=1.0, description="of the perceptual loss beside L1")
    perceptual_weights: str | None = Field(
        default=None,
        description="safetensors file with VGG16 and LPIPS weights; without it the perceptual network is random with a fixed seed",
    )
    adversarial_weight: NonNegativeFloat = Field(
        default=0.2,
        description="of the adversarial loss, times the adaptive weight; 0 leaves it out. 0.8 in the paper, whose discriminator learns for "
        "days; beside one that has learnt for minutes that costs decibels",
    )
    adversarial_from: Share = Field(default=0.6, description="share of the steps before the discriminator joins")
    adversarial_ramp: Share = Field(default=0.2, description="share of the steps over which its weight grows to full")
    discriminator_learning_rate: PositiveFloat = Field(
        default=5e-4, description="of the discriminator at its highest; one that learns too fast stops telling pictures apart"
    )
    discriminator_width: PositiveInt = Field(default=32, description="channels of the discriminator's first layer (64 in the paper)")
    discriminator_layers: Annotated[int, Field(ge=1, le=6, description="strided layers of the patch discriminator (3 in the paper)")] = 2
    lecam_weight: NonNegativeFloat = Field(
        default=0.0, description="of the LeCam regularisation of the discriminator (arXiv:2104.03310), as 0.05; 0 leaves it out"
    )

    @model_validator(mode="after")
    def _lecam_has_a_discriminator(self) -> Self:
        if self.lecam_weight and not self.adversarial_weight:
            raise ValueError("lecam_weight regularises the discriminator, and adversarial_weight is 0: there is none; set one of them")
        if self.lecam_weight and self.adversarial_from >= 1:
            raise ValueError(
                f"lecam_weight ({self.lecam_weight:g}) regularises the discriminator, which with an adversarial_from of "
                f"{self.adversarial_from:g} never joins; set adversarial_from below 1, or lecam_weight to 0"
            )
        return self


class VqVae(_VectorQuantized):
    """VQ-VAE (arXiv:1711.00937)."""

    type: Literal["vqvae"] = "vqvae"


class Dvae(_Autoencoder):
    """Discrete VAE (arXiv:2102.12092, appendix A)."""

    type: Literal["dvae"] = "dvae"
    code_width: Annotated[int, Field(ge=2, le=4096, description="width of the decoder's input")] = 128
    reconstruction: Literal["logit_laplace", "l2"] = Field(
        default="logit_laplace", description="of pixels: the paper's likelihood, or the squared error over the data's variance"
    )
    kl_weight: NonNegativeFloat | None = Field(
        default=None,
        description="of KL(q || uniform); summed over codes, divided by the number of pixel values; null: 6.6, or 0.1 with l2, whose "
        "numbers are smaller",
    )
    kl_rise: Share = Field(
        default=0.04, description="share of the steps over which the KL weight rises from 0 (5,000 updates in the paper)"
    )
    temperature: PositiveFloat = Field(default=1 / 16, description="of the Gumbel-softmax at the end; starts at 1")
    temperature_fall: Share = Field(
        default=0.6, description="share of the steps over which the temperature falls (150,000 updates in the paper)"
    )
    counting: QuantizerSettings = Field(default=QuantizerSettings(), description="when the use of the codes is too low")

    @property
    def last_kl_weight(self) -> float:
        """The weight of the KL once it has risen."""
        if self.kl_weight is not None:
            return self.kl_weight
        return 6.6 if self.mapped else 0.1

    @property
    def mapped(self) -> bool:
        """Whether pictures are mapped into (0, 1), where the logit-Laplace density lives, and the decoder says its spread, too."""
        return self.reconstruction == "logit_laplace"

    def resolved(self, steps: int) -> Self:
        """The same with the KL weight written out; nothing of it follows from the length of the training."""
        return self.model_copy(update={"kl_weight": self.last_kl_weight})


def is_mapped(settings: object) -> bool:
    """Whether pictures are those of a dVAE with the logit-Laplace likelihood."""
    return isinstance(settings, Dvae) and settings.mapped


ImageTokenizerSettings = Annotated[VqGan | VqVae | Dvae, Field(discriminator="type")]
