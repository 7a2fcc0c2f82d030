"""What an encoder may be taught by: one model an objective. Imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from worldloom.stages.settings import EncoderRef, Settings, StreamName, TokenizerRef
from worldloom.world_model.encoders.settings import PixelError, TextSideSettings

Share = Annotated[float, Field(ge=0, le=1)]


class _Cropped(Settings):
    crop_from: Annotated[float, Field(gt=0, le=1, description="smallest share of a picture that a view shows")] = 0.67
    flip: Share = Field(default=0.5, description="share of the views that are mirrored")


class RandAugment(Settings):
    """A few operations a picture, drawn from fifteen (arXiv:1909.13719); the defaults are DeiT's and Swin's."""

    operations: PositiveInt = Field(default=2, description="how many are drawn for a picture, one behind the other")
    magnitude: Annotated[float, Field(ge=0, le=10, description="how strong they are, on the mean")] = 9.0
    spread: NonNegativeFloat = Field(default=0.5, description="standard deviation of the magnitude")
    share: Share = Field(default=0.5, description="share of the drawn operations that happen; 1 in the paper of RandAugment")


class Mixing(Settings):
    """Pairs of pictures become one, and their labels with them: mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899), as in DeiT."""

    mixup: NonNegativeFloat = Field(
        default=0.8, description="a of Beta(a, a), the first picture's weight where both are blended; 0: none are"
    )
    cutmix: NonNegativeFloat = Field(default=1.0, description="a of Beta(a, a), what a box of the second leaves of the first; 0: no boxes")
    share: Share = Field(default=1.0, description="share of the batches, or of the pictures, that are mixed")
    cut: Share = Field(default=0.5, description="share of the mixed ones that get a box, where there are both ways")
    each: Literal["batch", "picture"] = Field(default="batch", description="what ways, weights and boxes are drawn for; batch in the paper")

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        if not self.mixup and not self.cutmix:
            raise ValueError("mixup and cutmix are both 0, so nothing would be mixed; set one of them, or leave mixing out")
        return self


class _Taught(_Cropped):
    """What pictures that a class is learnt from go through."""

    randaugment: RandAugment | None = Field(default=None, description="operations behind the crop; null: none")
    erase: Share = Field(default=0.0, description="share of the views of which a box becomes noise (arXiv:1708.04896); 0.25 in the papers")
    mixing: Mixing | None = Field(default=None, description="pairs of pictures that become one; null: none do")
    repeats: PositiveInt = Field(default=1, description="how often a picture stands in a batch, each time with views of its own")


class Supervised(_Taught):
    """Classification by labels (arXiv:2010.11929)."""

    type: Literal["supervised"] = "supervised"
    smoothing: Annotated[float, Field(ge=0, lt=1, description="probability that goes to all classes alike")] = 0.1


class SimMim(_Cropped):
    """Masked pictures drawn again (arXiv:2111.09886); needs no labels."""

    type: Literal["simmim"] = "simmim"
    unit: PositiveInt = Field(default=2, description="patches along the side of what is hidden or not; 32 pixels in the paper")
    ratio: Annotated[float, Field(gt=0, lt=1, description="share of the units that are hidden")] = 0.6
    error: PixelError = Field(
        default="l1",
        description="of hidden pixels; l1 is the paper's. Of pictures that are mostly plain, l1 is least for the plain colour alone",
    )


class Looks(Settings):
    """What happens to a view beside its crop: all that pictures of one thing may differ in, and nothing that tells things apart."""

    flip: Share = Field(default=0.5, description="share of the views that are mirrored")
    turn: Annotated[float, Field(ge=0, le=180, description="degrees that a view is turned by, to either side at most")] = 0.0
    warp: Annotated[
        float,
        Field(ge=0, le=0.25, description="share of the sides that places move by at most, smoothly, as hands differ; 0.1 for writing"),
    ] = 0.0
    jittered: Share = Field(default=0.8, description="share of the views whose colours move")
    jitter: NonNegativeFloat = Field(default=1.0, description="how far brightness, contrast and saturation move; 1 as in the paper")
    hue: Annotated[float, Field(ge=0, le=0.5, description="how far hues move, as a share of their circle")] = 0.1
    grey: Share = Field(default=0.2, description="share of the views without colours")
    blur: Share = Field(default=1.0, description="share of first views that are blurred; of second ones a tenth of it, of small ones half")
    solarise: Share = Field(default=0.2, description="share of second views whose bright pixels are inverted")


class _Views(Settings):
    """What objectives of several views of a picture and a following teacher have in common."""

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
    centring: Literal["mean", "sinkhorn"] = Field(
        default="mean",
        description="what keeps the teacher from saying the same of all: a running mean, or Sinkhorn-Knopp, which short trainings need",
    )
    centre_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    temperature: PositiveFloat = Field(default=0.04, description="the teacher's at first")
    last_temperature: PositiveFloat = Field(default=0.04, description="the teacher's behind its warm-up; up to 0.07 in the paper")
    warm_up: Share = Field(default=0.1, description="share of the steps over which the teacher's temperature moves")
    frozen: Share = Field(default=0.01, description="share of the steps during which the head's prototypes stay as they are")
    koleo: NonNegativeFloat = Field(default=0.0, description="weight of spreading features apart, among the pictures of a worker")

    @model_validator(mode="after")
    def _centres_by_what_is_set(self) -> Self:
        if self.centring == "sinkhorn":
            _refuse_idle(self, "centring sinkhorn", ("centre_momentum",))
        return self

    @model_validator(mode="after")
    def _small_crops_are_small(self) -> Self:
        if self.local_from > self.global_from:
            raise ValueError(f"local_from ({self.local_from}) must not be above global_from ({self.global_from}), where large crops begin")
        return self


class Dino(_Views):
    """A student that agrees with a slowly following teacher (arXiv:2104.14294); needs no labels."""

    type: Literal["dino"] = "dino"


class Dinov2(_Views):
    """DINO, hidden patches that the student says like the teacher who sees them (iBOT), and features spread apart (arXiv:2304.07193)."""

    type: Literal["dinov2"] = "dinov2"
    global_from: Annotated[float, Field(gt=0, le=1, description="smallest share of a picture that a large crop shows")] = 0.32
    momentum: Annotated[float, Field(ge=0, lt=1, description="the teacher's at first; 1 at the end")] = 0.992
    last_temperature: PositiveFloat = Field(default=0.07, description="the teacher's behind its warm-up")
    patches: NonNegativeFloat = Field(default=1.0, description="weight of the loss of hidden patches")
    koleo: NonNegativeFloat = Field(default=0.1, description="weight of spreading features apart, among the pictures of a worker")
    patch_prototypes: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="outputs of a head of their own for hidden patches; null: pictures and patches share one head"
    )
    masked: Share = Field(default=0.5, description="share of the large crops in which patches are hidden")
    hidden_from: Annotated[float, Field(gt=0, lt=1, description="smallest part of such a crop's patches that is hidden")] = 0.1
    hidden_to: Annotated[float, Field(gt=0, lt=1, description="largest part of such a crop's patches that is hidden")] = 0.5

    @model_validator(mode="after")
    def _hides_from_less_to_more(self) -> Self:
        if self.hidden_from > self.hidden_to:
            raise ValueError(f"hidden_from ({self.hidden_from}) must not be above hidden_to ({self.hidden_to})")
        return self


def _refuse_idle(about: Settings, choice: str, names: tuple[str, ...]) -> None:
    """ValueError for what is set and does not count with that choice."""
    for name in names:
        if getattr(about, name) != type(about).model_fields[name].default:
            raise ValueError(
                f"{choice} has no use for {name} ({getattr(about, name)}); leave it out, or choose another {choice.split()[0]}"
            )


class Distill(_Cropped):
    """What a teacher knows, for an encoder of any form (arXiv:1503.02531); with labels, or without."""

    type: Literal["distill"] = "distill"
    teacher: EncoderRef
    form: Literal["soft", "hard", "features", "tokens"] = Field(
        default="soft",
        description="soft: the teacher's probabilities; hard: its first choice; features: its vector of a picture; tokens: each token's",
    )
    temperature: PositiveFloat = Field(default=3.0, description="of both softmaxes of form soft")
    keep: PositiveInt | None = Field(
        default=None,
        description="of form soft: the teacher is asked once about each picture, and so many of its likeliest classes are kept, with the "
        "mass of all others; pictures must stay whole then, for it to have seen what the student sees. null: it is asked every step",
    )
    alpha: Share = Field(
        default=0.9, description="weight of the teacher, of form soft or hard; labels, where there are some, have the rest"
    )

    @model_validator(mode="after")
    def _sets_what_counts(self) -> Self:
        _refuse_idle(
            self, f"form {self.form}", {"soft": (), "hard": ("temperature", "keep")}.get(self.form, ("temperature", "alpha", "keep"))
        )
        if self.keep is not None and (self.crop_from < 1 or self.flip):
            raise ValueError("keep is for pictures that look the same every time; set crop_from to 1 and flip to 0, or leave out keep")
        return self


class Deit(_Taught):
    """A class token that learns from labels and one that learns from a teacher (arXiv:2012.12877)."""

    type: Literal["deit"] = "deit"
    teacher: EncoderRef
    form: Literal["hard", "soft"] = Field(default="hard", description="hard: the teacher's first choice, smoothed; soft: its probabilities")
    smoothing: Annotated[float, Field(ge=0, lt=1, description="of the teacher's first choice; 0 is the paper's hard distillation")] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="of the labels, over all classes; 0.1 in the paper")] = 0.0
    smoothing_over: Literal["others", "all"] = Field(default="others", description="classes that share the smoothing's probability")
    alpha: Share = Field(default=0.1, description="weight of the teacher in form soft; 0.1 in the paper, 0.5 in its code")
    temperature: PositiveFloat = Field(default=3.0, description="of both softmaxes of form soft; 3 in the paper, 1 in its code")
    inference: Literal["sum", "mean", "softmaxes"] = Field(
        default="sum", description="what becomes of both heads: the sum or the mean of their logits, or the paper's mean of their softmaxes"
    )
    reduction: Literal["batch", "numbers"] = Field(
        default="batch",
        description="what the divergence of form soft is a mean over: pictures, or, as in its code, pictures and classes, which is smaller",
    )
    repeats: PositiveInt = Field(default=3, description="how often a picture stands in a batch, each time with views of its own")

    @model_validator(mode="after")
    def _sets_what_counts(self) -> Self:
        idle = {"hard": ("alpha", "temperature", "reduction"), "soft": ("smoothing", "smoothing_over")}
        _refuse_idle(self, f"form {self.form}", idle[self.form])
        return self


class Coca(_Cropped):
    """Pictures and captions: compared with each other, and captions written (arXiv:2205.01917)."""

    type: Literal["coca"] = "coca"
    captions: Annotated[str, StreamName(("text",))] = Field(description="the stream of texts that say what pictures show")
    tokenizer: TokenizerRef = Field(description="name of a stage that trains a text tokenizer")
    text: TextSideSettings = TextSideSettings()
    classify: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.3,
        description="share of the steps that the picture encoder first learns to classify in, by `labels`; 0: captions from the start",
    )
    smoothing: Annotated[float, Field(ge=0, lt=1, description="of the classes' labels")] = 0.1
    contrastive: PositiveFloat = Field(default=1.0, description="weight of comparing; without it nothing could be looked up any more")
    caption: PositiveFloat = Field(default=2.0, description="weight of writing")
    flip: Share = Field(default=0.0, description="share of the views that are mirrored; captions that name sides forbid it")


Objective = Annotated[Supervised | SimMim | Dino | Dinov2 | Distill | Deit | Coca, Field(discriminator="type")]
LabelBy = Literal["text", "shape", "colour", "place"]
