"""What an encoder may be taught by: one model an objective. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from worldloom.stages.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class _Cropped(Settings):
    crop_from: Annotated[float, Field(gt=0, le=1, description="smallest share of a picture that a view shows")] = 0.67
    flip: Share = Field(default=0.5, description="share of the views that are mirrored")


class Supervised(_Cropped):
    """Classification by labels (arXiv:2010.11929)."""

    type: Literal["supervised"] = "supervised"
    smoothing: Annotated[float, Field(ge=0, lt=1, description="probability that goes to all classes alike")] = 0.1


class SimMim(_Cropped):
    """Masked pictures drawn again (arXiv:2111.09886); needs no labels."""

    type: Literal["simmim"] = "simmim"
    unit: PositiveInt = Field(default=2, description="patches along the side of what is hidden or not; 32 pixels in the paper")
    ratio: Annotated[float, Field(gt=0, lt=1, description="share of the units that are hidden")] = 0.6


class Looks(Settings):
    """What happens to a view beside its crop: all that pictures of one thing may differ in, and nothing that tells things apart."""

    flip: Share = Field(default=0.5, description="share of the views that are mirrored")
    turn: Annotated[float, Field(ge=0, le=180, description="degrees that a view is turned by, to either side at most")] = 0.0
    jittered: Share = Field(default=0.8, description="share of the views whose colours move")
    jitter: NonNegativeFloat = Field(default=1.0, description="how far brightness, contrast and saturation move; 1 as in the paper")
    hue: Annotated[float, Field(ge=0, le=0.5, description="how far hues move, as a share of their circle")] = 0.1
    grey: Share = Field(default=0.2, description="share of the views without colours")
    blur: Share = Field(default=1.0, description="share of first views that are blurred; of second ones a tenth of it, of small ones half")
    solarise: Share = Field(default=0.2, description="share of second views whose bright pixels are inverted")


class Dino(Settings):
    """A student that agrees with a slowly following teacher (arXiv:2104.14294); needs no labels."""

    type: Literal["dino"] = "dino"
    prototypes: Annotated[int, Field(ge=2, description="outputs of the head; 65,536 in the paper")] = 1_024
    hidden: PositiveInt = Field(default=512, description="width of the head's hidden layers; 2,048 in the paper")
    bottleneck: PositiveInt = Field(default=128, description="width of the head's last but one layer; 256 in the paper")
    local_views: NonNegativeInt = Field(default=4, description="small crops that the student alone sees; 8 in the paper")
    local_size: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="pixels of a small crop's side; null: half the picture's"
    )
    global_from: Annotated[float, Field(gt=0, le=1, description="smallest share of a picture that a large crop shows")] = 0.4
    local_from: Annotated[float, Field(gt=0, le=1, description="smallest share of a picture that a small crop shows")] = 0.05
    looks: Looks = Field(default=Looks(), description="how views are flipped, turned and coloured")
    momentum: Annotated[float, Field(ge=0, lt=1, description="the teacher's at first; 1 at the end")] = 0.996
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    temperature: PositiveFloat = Field(default=0.04, description="the teacher's at first")
    last_temperature: PositiveFloat = Field(default=0.04, description="the teacher's behind its warm-up; up to 0.07 in the paper")
    warm_up: Share = Field(default=0.1, description="share of the steps over which the teacher's temperature moves")
    frozen: Share = Field(default=0.01, description="share of the steps during which the head's prototypes stay as they are")

    @model_validator(mode="after")
    def _small_crops_are_small(self) -> Self:
        if self.local_from > self.global_from:
            raise ValueError(f"local_from ({self.local_from}) must not be above global_from ({self.global_from}), where large crops begin")
        return self


Objective = Annotated[Supervised | SimMim | Dino, Field(discriminator="type")]
LabelBy = Literal["text", "shape", "colour", "place"]
