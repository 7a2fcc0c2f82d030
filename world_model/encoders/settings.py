"""Settings of the encoders, one model a type. Imports no torch: pipeline files are validated without it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

Rate = Annotated[float, Field(ge=0, lt=1)]
PixelError = Literal["l1", "smooth_l1", "l2"]  # by which SimMIM judges what it has drawn
Interpolation = Literal["bicubic", "bilinear"]
THETA = 10_000.0  # of rotary positions
EXACT_BUCKETS = 8  # nearest offsets, which have a bucket each


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StemSettings(_Settings):
    """Residual network of convolutions whose last places a ViT takes for its patches (arXiv:2010.11929, section 3.1)."""

    patch: Annotated[int, Field(ge=1, le=128, description="stride of the first convolution, pixels")] = 4
    width: Annotated[int, Field(ge=8, multiple_of=8, description="features of a place in the first stage; every stage doubles it")] = 32
    depths: tuple[PositiveInt, ...] = Field(
        default=(1, 1), min_length=1, description="blocks of every stage; each behind the first halves the grid"
    )
    epsilon: PositiveFloat = Field(default=1e-5, description="of the norms")
    frozen: bool = Field(default=False, description="its weights, which another stage must give, stay as they are")

    @property
    def stride(self) -> int:
        """Pixels along the side of what a place of the last grid stands for."""
        return self.patch << (len(self.depths) - 1)


class VitSettings(_Settings):
    """Vision Transformer (arXiv:2010.11929)."""

    type: Literal["vit"] = "vit"
    channels: PositiveInt = 3
    patch: Annotated[int, Field(ge=1, le=128, description="pixels along the side of a patch")] = 16
    fitting: Literal["error", "pad", "crop"] = Field(default="error", description="what becomes of pictures that patches do not divide")
    stem: StemSettings | None = Field(
        default=None, description="convolutions of stride `patch` whose places become the patches; null: one linear map of each patch"
    )
    width: PositiveInt = Field(default=384, description="features of a token; 192, 384, 768 and 1024 in the papers")
    depth: PositiveInt = Field(default=12, description="blocks")
    heads: PositiveInt = Field(default=6, description="of the attention; they share the width")
    mlp_width: PositiveInt | None = Field(default=None, description="of the MLPs' hidden layers; null: 4 x width, SwiGLU: two thirds of it")
    swiglu: bool = Field(default=False, description="gated MLPs in place of GELU")
    gelu: Literal["none", "tanh"] = Field(default="none", description="what approximates GELU")
    grid: tuple[PositiveInt, PositiveInt] = Field(
        default=(14, 14), description="rows and columns of patches that learned positions and bias tables are made for"
    )
    positions: Literal["learned", "sine", "none"] = Field(default="learned", description="what is added to the patches")
    interpolation: Interpolation = Field(default="bicubic", description="how learned positions are brought to other grids")
    antialias: bool = Field(default=False, description="learned positions are smoothed on the way to smaller grids")
    relation: Literal["none", "rotary", "relative_bias", "buckets", "relative_keys", "two_phase"] = Field(
        default="none", description="positions inside the attention"
    )
    theta: PositiveFloat = Field(default=THETA, description="base of rotary positions' frequencies; higher ones turn more slowly")
    native: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="grid that rotary places of others are scaled to, so that they lie among those learnt; null: they go on beyond them",
    )
    furthest: PositiveInt | None = Field(
        default=None, description="offset beyond which all are alike to relative_keys (null: 16) or buckets (null: 128)"
    )
    class_token: bool = True
    distillation_token: bool = Field(default=False, description="a second class token, which learns from a teacher (DeiT)")
    registers: NonNegativeInt = Field(default=0, description="tokens of no patch, where the model may keep what belongs to no place")
    mask_token: bool = Field(default=False, description="a token that stands for hidden patches")
    pooling: Literal["class", "mean", "attention"] = Field(default="class", description="what becomes of the tokens as one vector")
    layer_scale: PositiveFloat | None = Field(default=None, description="first factor of the residual branches; null: none is learnt")
    drop_path: Rate = Field(default=0.0, description="stochastic depth of the last block; it rises from 0 at the first")
    subset: bool = Field(default=False, description="dropped samples skip the computation")
    dropout: Rate = 0.0
    epsilon: PositiveFloat = Field(default=1e-6, description="of the layer norms")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if self.pooling == "class" and not self.class_token:
            raise ValueError("pooling is 'class', and there is no class token; set pooling to 'mean', or class_token")
        if self.relation == "rotary" and self.width // self.heads % 4:
            raise ValueError(f"rotary positions need heads of a width that 4 divides, got {self.width // self.heads}; choose other heads")
        if self.positions == "sine" and self.width % 4:
            raise ValueError(f"positions of sines and cosines over two axes need a width that 4 divides, got {self.width}")
        if self.stem is not None and self.stem.stride != self.patch:
            raise ValueError(
                f"patches are as large as the stem's stride: {self.stem.stride} (stem.patch, doubled behind every stage but the last), "
                f"not {self.patch}; set patch to it, or change stem.patch or stem.depths"
            )
        return self

    @model_validator(mode="after")
    def _choices_have_a_use(self) -> Self:
        uses = {
            "interpolation": self.interpolation == "bicubic" or self.positions == "learned",
            "antialias": not self.antialias or self.positions == "learned",
            "theta": self.theta == THETA or self.relation == "rotary",
            "native": self.native is None or self.relation == "rotary",
            "furthest": self.furthest is None or self.relation in ("relative_keys", "buckets"),
        }
        idle = [name for name, used in uses.items() if not used]
        if idle:
            raise ValueError(f"{', '.join(idle)}: of no use to positions {self.positions!r} with relation {self.relation!r}; leave it out")
        if self.relation == "buckets" and self.furthest is not None and self.furthest <= EXACT_BUCKETS:
            raise ValueError(f"the {EXACT_BUCKETS} nearest offsets have a bucket each, and furthest is {self.furthest}; set it higher")
        return self


class SwinSettings(_Settings):
    """Swin (arXiv:2103.14030)."""

    type: Literal["swin"] = "swin"
    channels: PositiveInt = 3
    patch: Annotated[int, Field(ge=1, le=128, description="pixels along the side of a patch; others are padded")] = 4
    width: PositiveInt = Field(default=96, description="features of a token in the first stage; every stage doubles it")
    depths: tuple[PositiveInt, ...] = Field(default=(2, 2, 6, 2), min_length=1, description="blocks of every stage")
    heads: tuple[PositiveInt, ...] = Field(default=(3, 6, 12, 24), min_length=1, description="of every stage's attention")
    window: Annotated[int, Field(ge=2, le=64, description="tokens along the side of a window")] = 7
    mlp_ratio: PositiveFloat = Field(default=4.0, description="width of the MLPs' hidden layers over that of the tokens")
    mask_token: bool = Field(default=False, description="a token that stands for hidden patches")
    mask_padding: bool = Field(default=False, description="padded cells are no keys; in the original they are")
    drop_path: Rate = Field(default=0.0, description="stochastic depth of the last block; it rises from 0 at the first")
    epsilon: NonNegativeFloat = Field(default=1e-5, description="of the layer norms")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if len(self.depths) != len(self.heads):
            raise ValueError(f"there are {len(self.depths)} depths and {len(self.heads)} heads; give one of each for every stage")
        for stage, heads in enumerate(self.heads):
            if (self.width << stage) % heads:
                raise ValueError(f"width of stage {stage} ({self.width << stage}) must be a multiple of its heads ({heads})")
        return self


class ConvSettings(_Settings):
    """Residual network of convolutions (arXiv:1603.05027, with group norm)."""

    type: Literal["conv"] = "conv"
    channels: PositiveInt = 3
    patch: Annotated[int, Field(ge=1, le=128, description="stride of the first convolution, pixels")] = 2
    width: Annotated[int, Field(ge=8, multiple_of=8, description="features of a place in the first stage; every stage doubles it")] = 32
    depths: tuple[PositiveInt, ...] = Field(default=(2, 2, 2), min_length=1, description="blocks of every stage; each halves the grid")
    epsilon: PositiveFloat = Field(default=1e-5, description="of the norms")


EncoderSettings = Annotated[VitSettings | SwinSettings | ConvSettings, Field(discriminator="type")]


class TextSideSettings(_Settings):
    """What CoCa (arXiv:2205.01917) has beside its picture encoder: poolers and the text decoder."""

    width: PositiveInt = Field(default=192, description="features of a text token, and of what pictures and captions are compared by")
    depth: Annotated[int, Field(ge=2, multiple_of=2, description="blocks of the text decoder; half see text only")] = 4
    heads: PositiveInt = Field(default=3, description="of every attention; they share the width")
    length: Annotated[int, Field(ge=3, description="tokens of the longest caption, its begin and its end included")] = 64
    queries: PositiveInt = Field(default=32, description="encodings of a picture that the text decoder reads; 256 in the paper")
    cascade: bool = Field(
        default=True,
        description="the contrastive pooler reads what the captioning pooler found, as in the paper; false: the encoder's tokens",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self
