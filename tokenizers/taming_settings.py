"""Settings of VQ-GANs in the layout of taming-transformers. Imports no torch: pipeline files are validated without it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

GROUPS = 32  # of every group norm


class Taming(BaseModel):
    """The network of taming-transformers (arXiv:2012.09841) with its codebook; `read_taming` infers it from a checkpoint's shapes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["taming"] = "taming"
    codebook_size: Annotated[int, Field(ge=2, le=1 << 20, description="how many codes there are")] = 1024
    code_width: PositiveInt = Field(default=256, description="numbers in one code's vector")
    features: PositiveInt = Field(default=256, description="channels between the networks and the 1 x 1 convolutions around the codes")
    width: PositiveInt = Field(default=128, description="channels at full resolution, a multiple of 32")
    multipliers: Annotated[
        tuple[PositiveInt, ...], Field(min_length=1, description="of width at each resolution; each halves the last")
    ] = (
        1,
        1,
        2,
        2,
        4,
    )
    blocks: PositiveInt = Field(default=2, description="residual blocks at each resolution of the encoder; the decoder has one more")
    attention: tuple[bool, ...] = Field(
        default=(False, False, False, False, True), description="whether attention follows each block, by resolution"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the encoder when it encodes; bf16 is faster, and some codes differ from those of fp32"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.attention) != len(self.multipliers):
            raise ValueError(f"attention says something of {len(self.attention)} resolutions, multipliers of {len(self.multipliers)}")
        if self.width % GROUPS:
            raise ValueError(f"width must be a multiple of {GROUPS}, the groups of the norms, got {self.width}")
        return self

    @property
    def downsample(self) -> int:
        """Pixels along a side of the cell that one code stands for."""
        return 1 << (len(self.multipliers) - 1)
