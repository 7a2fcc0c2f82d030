"""Settings of the tokenizers of sounds. Imports no torch: pipeline files are validated without it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator

from worldloom.tokenizers.quantizers.settings import AnyQuantizer, Residual


class Codec(BaseModel):
    """A causal codec of the waveform (SoundStream, arXiv:2107.03312; EnCodec, arXiv:2210.13438), without their discriminators."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["codec"] = "codec"
    codebook_size: Annotated[int, Field(ge=2, le=1 << 20, description="how many codes there are, of each level")] = 512
    downsample: Annotated[int, Field(ge=2, le=1 << 13, description="samples that one frame of codes stands for; a power of two")] = 256
    patch: Annotated[int, Field(ge=2, le=1 << 10, description="samples that the first convolution reads at once; a power of two")] = 8
    width: Annotated[int, Field(ge=4, le=1024, description="channels at first; twice as many after each halving, up to four times")] = 32
    blocks: Annotated[int, Field(ge=1, le=16, description="residual blocks at each rate, in encoder and decoder, ever more dilated")] = 2
    quantizer: AnyQuantizer = Field(default=Residual(decay=0.95), description="how the encoder's vectors become codes")
    waveform_weight: NonNegativeFloat = Field(default=1.0, description="of the mean difference of the companded samples")
    mel_weight: NonNegativeFloat = Field(default=0.3, description="of the difference of log-mel spectrograms, mean over all window lengths")

    @model_validator(mode="after")
    def _halvings(self) -> Self:
        for name, value in (("patch", self.patch), ("downsample", self.downsample)):
            if value & (value - 1):
                raise ValueError(f"{name} must be a power of two (2, 4, 8, 16 ...), got {value}")
        if self.patch > self.downsample:
            raise ValueError(f"patch ({self.patch}) must not be above downsample ({self.downsample}): a frame stands for whole patches")
        codes = self.quantizer.codes()
        if codes is not None and codes != self.codebook_size:
            raise ValueError(f"quantizer.levels make {codes} codes, codebook_size is {self.codebook_size}; make them equal")
        return self

    def resolved(self, steps: int) -> Self:
        """The same with what follows from the length of the training written out."""
        return self.model_copy(update={"quantizer": self.quantizer.resolved(steps)})
