"""Settings of the quantizers, one model a type. Imports no torch: pipeline files are validated without it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

Share = Annotated[float, Field(ge=0, le=1)]
MOST_STEPS_BEFORE_PLACING = 50  # the encoder has found its scale by then


class QuantizerSettings(BaseModel):
    """What all quantizers share."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    least_use: Share = Field(default=0.01, description="share of codes used under which a training has collapsed; 0: never")
    patience: PositiveInt = Field(
        default=500,
        description="steps in collapse before k-means places the codes anew; as many again, and the training stops",
    )

    def resolved(self, steps: int) -> Self:
        """The same with what follows from the length of the training written out."""
        return self

    def codes(self) -> int | None:
        """How many codes these settings make; None where any number will do."""
        return None

    @property
    def depth(self) -> int:
        """Codes that stand at one place of the grid, one for each level."""
        return 1


class LearntCodebook(QuantizerSettings):
    """A codebook of vectors that follow the data."""

    code_width: Annotated[int, Field(ge=2, le=4096, description="numbers in one code's vector")] = 32
    commitment: NonNegativeFloat = Field(default=0.25, description="weight of |z - sg(e)|^2 (beta in the papers)")
    decay: Annotated[float, Field(ge=0, lt=1, description="of the codebook's moving averages")] = 0.99
    place_after: Annotated[int, Field(ge=-1)] | None = Field(
        default=None,
        description="steps before k-means places the codes in the data; -1: random start; null: 50, or a tenth of fewer than 500 steps",
    )
    restart_every: Annotated[int, Field(ge=0, description="steps between restarts of dead codes; 0: never")] = 10
    dead_below: NonNegativeFloat = Field(default=0.03, description="a code used less than this share of even use is dead")
    restart_at: Literal["errors", "crowds"] = Field(
        default="errors",
        description="where dead codes begin anew: at vectors that are badly served, or at any, so that crowds of vectors share out among "
        "more codes; with the latter dead_below: 0.6, restart_every: 2 and decay: 0.95 keep codes in even use",
    )

    def resolved(self, steps: int) -> Self:
        return (
            self if self.place_after is not None else self.model_copy(update={"place_after": min(MOST_STEPS_BEFORE_PLACING, steps // 10)})
        )


class OneCodebook(LearntCodebook):
    """A single codebook, whose even use can be part of the loss."""

    cosine: bool = Field(
        default=False, description="compare by angle, vectors and codes of length 1 (arXiv:2110.04627); goes with a small code_width, as 8"
    )
    entropy_weight: NonNegativeFloat = Field(
        default=0.0,
        description="of the mean entropy of a vector's soft choice of a code, nats, less the entropy of the batch's mean choice (as in "
        "arXiv:2310.05737): the encoder learns to use all codes alike. 0.005, or 0.02 beside a perceptual loss, with restart_at: crowds "
        "and mixing: 1",
    )
    entropy_temperature: PositiveFloat = Field(
        default=0.3, description="of that soft choice, in units of the mean squared distance to the nearest code"
    )


class Ema(OneCodebook):
    """Codes are moving averages of the vectors that chose them (arXiv:1711.00937, appendix A.1)."""

    type: Literal["ema"] = "ema"


class Gradient(OneCodebook):
    """Codes learn by gradient (arXiv:1711.00937)."""

    type: Literal["gradient"] = "gradient"


class Residual(LearntCodebook):
    """Several codebooks, each for what those before it leave (arXiv:2107.03312): `levels` codes at every place."""

    type: Literal["residual"] = "residual"
    levels: Annotated[int, Field(ge=2, le=64, description="codebooks, each of codebook_size codes")] = 4
    codebook: Literal["ema", "gradient"] = "ema"
    dropout: Share = Field(default=0.0, description="share of the training samples that use only their first levels, how many is drawn")

    @property
    def depth(self) -> int:
        return self.levels


class Fsq(QuantizerSettings):
    """Finite scalar quantization (arXiv:2309.15505): channels are rounded to levels, there is no codebook to learn."""

    type: Literal["fsq"] = "fsq"
    levels: Annotated[tuple[Annotated[int, Field(ge=3, le=256)], ...], Field(min_length=1)] = Field(
        description="levels of each channel; their product is codebook_size (8, 8, 8 for 512; 5 or more are best)"
    )

    def codes(self) -> int:
        product = 1
        for levels in self.levels:
            product *= levels
        return product


class Lfq(QuantizerSettings):
    """Lookup-free quantization (arXiv:2310.05737): the signs of the channels, there is no codebook to learn."""

    type: Literal["lfq"] = "lfq"
    bits: Annotated[int, Field(ge=1, le=20, description="channels, one bit each; codebook_size is two to this power")]
    commitment: NonNegativeFloat = Field(default=0.25, description="weight of |z - sg(sign)|^2")
    entropy_weight: NonNegativeFloat = Field(default=0.1, description="of the mean entropy of a vector's code, nats, less diversity")
    diversity: NonNegativeFloat = Field(default=1.0, description="weight, within, of the entropy of the mean over the batch (gamma)")
    temperature: PositiveFloat = Field(default=0.01, description="of the chances of codes that the entropies are of")

    def codes(self) -> int:
        return 1 << self.bits


AnyQuantizer = Annotated[Ema | Gradient | Residual | Fsq | Lfq, Field(discriminator="type")]
