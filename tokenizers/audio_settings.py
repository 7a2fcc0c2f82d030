"""Settings of the tokenizers of sounds. Imports no torch: pipeline files are validated without it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from worldloom.tokenizers.quantizers.settings import AnyQuantizer, Ema, Residual, Share
from worldloom.tokenizers.rules import check_codebook, check_halvings

TYPICAL = 0.05  # root mean square of speech; stands for what nobody has measured


class Codec(BaseModel):
    """A causal codec of the waveform (SoundStream, arXiv:2107.03312; EnCodec, arXiv:2210.13438); their discriminators are an option."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["codec"] = "codec"
    codebook_size: Annotated[int, Field(ge=2, le=1 << 20, description="how many codes there are, of each level")] = 512
    downsample: Annotated[int, Field(ge=2, le=1 << 13, description="samples that one frame of codes stands for; a power of two")] = 256
    patch: Annotated[int, Field(ge=2, le=1 << 10, description="samples that the first convolution reads at once; a power of two")] = 8
    width: Annotated[int, Field(ge=4, le=1024, description="channels at first; twice as many after each halving, up to four times")] = 32
    blocks: Annotated[int, Field(ge=1, le=16, description="residual blocks at each rate, in encoder and decoder, ever more dilated")] = 2
    quantizer: AnyQuantizer = Field(default=Residual(decay=0.95), description="how the encoder's vectors become codes")
    crop: Annotated[int, Field(ge=32)] | None = Field(  # the loss has no shorter window
        default=None,
        description="samples of each sound that a step learns from, at a random place, a multiple of downsample; null: all of them",
    )
    loudness: PositiveFloat | None = Field(
        default=None, description="root mean square of the samples, which the network hears as 1/3; null: measured on what it learns from"
    )
    waveform_weight: NonNegativeFloat = Field(default=0.3, description="of the mean difference of the samples, as the network hears them")
    energy_weight: NonNegativeFloat = Field(
        default=3.0, description="of the energy of the samples' differences, as a share of each sound's"
    )
    mel_weight: NonNegativeFloat = Field(default=0.3, description="of the difference of log-mel spectrograms, mean over all window lengths")

    adversarial_weight: NonNegativeFloat = Field(
        default=0.0,
        description="of the adversarial loss, its gradient first made as large as that of those above; 3 in the paper, 0 leaves it out",
    )
    feature_weight: NonNegativeFloat = Field(
        default=3.0, description="of the distance of the discriminator's features, in the same way; only where adversarial_weight is not 0"
    )
    adversarial_from: Share = Field(default=0.6, description="share of the steps before the discriminator joins")
    adversarial_ramp: Share = Field(default=0.2, description="share of the steps over which its weight grows to full")
    discriminator_learning_rate: PositiveFloat = Field(default=3e-4, description="of the discriminator at its highest")
    discriminator_width: PositiveInt = Field(default=32, description="channels of the discriminator's convolutions")

    @model_validator(mode="after")
    def _halvings(self) -> Self:
        check_halvings(self.patch, self.downsample)
        check_codebook(self.quantizer, self.codebook_size)
        if self.crop is not None and self.crop % self.downsample:
            raise ValueError(f"crop ({self.crop}) must be a multiple of downsample ({self.downsample}), so that frames are whole")
        return self

    @property
    def loudest(self) -> float:
        """The amplitude that the network hears as 1."""
        return 3 * (self.loudness or TYPICAL)

    def resolved(self, steps: int) -> Self:
        """The same with what follows from the length of the training written out."""
        return self.model_copy(update={"quantizer": self.quantizer.resolved(steps)})


class Mel(BaseModel):
    """The log-mel spectrogram as a picture, coded like one; sounds come back by Griffin-Lim, to which a vocoder may be added.

    Spectrograms as in arXiv:2312.17172.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["mel"] = "mel"
    codebook_size: Annotated[int, Field(ge=2, le=1 << 20, description="how many codes there are, of each level")] = 512
    bins: Annotated[int, Field(ge=8, le=512, description="mel bins from 0 to half of the sample rate; a multiple of downsample")] = 64
    window: Annotated[int, Field(ge=32, le=1 << 14, description="samples of a frame of the spectrogram")] = 512
    hop: Annotated[int, Field(ge=8, le=1 << 13, description="samples between two frames, a quarter of the window or less")] = 128
    downsample: Annotated[int, Field(ge=2, le=64, description="bins, and frames, that one code stands for; a power of two")] = 16
    patch: Annotated[int, Field(ge=2, le=64, description="bins, and frames, that the first convolution reads at once")] = 4
    width: Annotated[int, Field(ge=4, le=1024, description="channels at first; twice as many after each halving, up to four times")] = 32
    blocks: Annotated[int, Field(ge=1, le=16, description="residual blocks at each resolution, in encoder and decoder")] = 1
    receptive_field: Literal["wide", "cell"] = Field(
        default="wide",
        description="of a code: wide, as far as the encoder's convolutions reach; cell, its own bins and frames alone: silence then has "
        "one code, and a world model foretells it sooner",
    )
    quantizer: AnyQuantizer = Field(default=Ema(), description="how the encoder's vectors become codes")
    decoder: Literal["griffin_lim", "learned"] = Field(
        default="griffin_lim", description="learned: a vocoder trained beside the codes makes Griffin-Lim's sounds better"
    )
    rounds: Annotated[int, Field(ge=1, le=1000, description="of Griffin-Lim; more are better and slower")] = 32
    vocoder_width: Annotated[int, Field(ge=4, le=1024, description="channels of the learned decoder")] = 128
    vocoder_blocks: Annotated[int, Field(ge=1, le=16, description="residual blocks of the learned decoder")] = 4

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_halvings(self.patch, self.downsample)
        check_codebook(self.quantizer, self.codebook_size)
        if self.bins % self.downsample:
            raise ValueError(f"bins ({self.bins}) must be a multiple of downsample ({self.downsample}), so that codes are whole")
        if self.hop * 4 > self.window:
            raise ValueError(f"hop ({self.hop}) must be at most a quarter of window ({self.window}): Griffin-Lim needs frames that overlap")
        return self

    def resolved(self, steps: int) -> Self:
        """The same with what follows from the length of the training written out."""
        return self.model_copy(update={"quantizer": self.quantizer.resolved(steps)})
