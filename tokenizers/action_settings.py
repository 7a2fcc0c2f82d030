"""Settings of the action tokenizer: how the numbers of a dimension become bins. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

Count = Annotated[int, Field(ge=2, le=65_536, description="intervals of each dimension")]


class _Bins(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bins: Count = 256


class Uniform(_Bins):
    """Intervals of one width between two quantiles of the training data (RT-1, arXiv:2212.06817; OpenVLA, arXiv:2406.09246)."""

    type: Literal["uniform"] = "uniform"
    cut: Annotated[float, Field(ge=0, lt=0.5, description="share at each end that is clipped; 0: from the smallest to the largest")] = 0.01


class Quantile(_Bins):
    """Intervals that hold equally many numbers of the training data; fewer of them where numbers repeat."""

    type: Literal["quantile"] = "quantile"


class MuLaw(_Bins):
    """Intervals of one width of sign(x) log(1 + mu |x|) / log(1 + mu), x in units of the largest number (Gato, arXiv:2205.06175)."""

    type: Literal["mu_law"] = "mu_law"
    mu: PositiveFloat = 255.0


Binning = Annotated[Uniform | Quantile | MuLaw, Field(discriminator="type")]
