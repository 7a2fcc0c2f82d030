"""Settings of codecs in EnCodec's layout. Imports no torch: pipeline files are validated without it."""

from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class Encodec(BaseModel):
    """EnCodec's network (arXiv:2210.13438, section 3.1) with its codebooks; `read_encodec` takes it from a checkpoint's config.json.

    The defaults are those of the public codec for 24 kHz.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["encodec"] = "encodec"
    codebook_size: Annotated[int, Field(ge=2, le=1 << 20, description="how many codes there are, of each level")] = 1024
    levels: Annotated[int, Field(ge=2, le=64, description="codebooks, each for what those before it leave")] = 32
    code_width: PositiveInt = Field(default=128, description="numbers in one code's vector")
    width: PositiveInt = Field(default=32, description="channels at first; twice as many after each stage of the encoder")
    strides: Annotated[tuple[PositiveInt, ...], Field(min_length=1, description="of the stages of the encoder, in their order")] = (
        2,
        4,
        5,
        8,
    )
    blocks: PositiveInt = Field(default=1, description="residual blocks of a stage, ever more dilated")
    kernel: PositiveInt = Field(default=7, description="of the first convolutions")
    last_kernel: PositiveInt = Field(default=7, description="of the last convolutions")
    residual_kernel: PositiveInt = Field(default=3, description="of the first convolution of a residual block; the second has 1")
    dilation_growth: PositiveInt = Field(default=2, description="times that a residual block is more dilated than the one before it")
    compress: PositiveInt = Field(default=2, description="times that a residual block is narrower inside")
    shortcut: bool = Field(default=True, description="whether what goes past a residual block goes through a convolution")
    lstm_layers: PositiveInt = Field(default=2, description="of the recurrent network at the frames' rate, in encoder and decoder")
    padding: Literal["reflect", "constant"] = Field(default="reflect", description="what stands before the first sample")

    @property
    def loudest(self) -> float:
        """The amplitude that the network hears as 1."""
        return 1.0

    @property
    def downsample(self) -> int:
        """Samples that one frame of codes stands for."""
        return prod(self.strides)
