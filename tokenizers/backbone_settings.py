"""Settings of the networks around an image tokenizer's codes. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ConvBackbone(_Settings):
    """Convolutions; the tokenizer's own patch, width, blocks and mixing are theirs."""

    type: Literal["conv"] = "conv"


class VitBackbone(_Settings):
    """Vision transformers on both sides, their patches as large as a code's cell (ViT-VQGAN, arXiv:2110.04627)."""

    type: Literal["vit"] = "vit"
    width: Annotated[int, Field(ge=8, le=4096, description="numbers of a token")] = 192
    depth: Annotated[int, Field(ge=1, le=64, description="blocks of the encoder")] = 4
    decoder_depth: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="blocks of the decoder; null: as many as the encoder has"
    )
    heads: Annotated[int, Field(ge=1, le=64, description="heads of the attention; they divide width")] = 6
    mlp_ratio: PositiveFloat = Field(default=4.0, description="width of the hidden layers over width")
    class_token: bool = Field(
        default=False, description="a token of no cell beside the encoder's, as encoders of pictures have; codes are made of the others"
    )
    positions: Literal["learned", "sine"] = Field(default="learned", description="learned for each place, or fixed sines and cosines")

    @model_validator(mode="after")
    def _heads_and_sines_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if self.positions == "sine" and self.width % 4:
            raise ValueError(f"positions 'sine' needs a width that 4 divides, got {self.width}; choose another width, or 'learned'")
        return self


Backbone = Annotated[ConvBackbone | VitBackbone, Field(discriminator="type")]
