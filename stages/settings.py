"""What every stage's settings are made of: immutable pydantic models, stream definitions, references to other stages."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from worldloom.tokenizers.resampling import Resampling

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StageSettings(Settings):
    """Base of a stage's settings; `run` names the stage's kind and picks the model in the union."""

    run: str


@dataclass(frozen=True)
class NotInOutput:
    """Marks a field that cannot change a stage's output and so stays out of its fingerprint."""


NOT_IN_OUTPUT = NotInOutput()


@dataclass(frozen=True)
class Reference:
    """Marks a string field that names another stage; `produces` is what that stage must leave."""

    produces: Literal["dataset", "tokenizer", "tokens", "world_model", "encoder", "features", "scores"]


@dataclass(frozen=True)
class StreamName:
    """Marks a string that names a stream of the dataset that the same settings refer to; `kinds` are those it may be of, () any."""

    kinds: tuple[str, ...] = ()


DatasetRef = Annotated[str, Reference("dataset"), Field(description="name of a stage that makes or imports a dataset")]
TokenizerRef = Annotated[str, Reference("tokenizer"), Field(description="name of a stage that trains a tokenizer")]
TokensRef = Annotated[str, Reference("tokens"), Field(description="name of a stage that encodes a dataset")]
EncoderRef = Annotated[str, Reference("encoder"), Field(description="name of a stage that trains or imports an encoder")]
FeaturesRef = Annotated[str, Reference("features"), Field(description="name of a stage that embeds a dataset")]
WorldRef = Annotated[str, Reference("world_model"), Field(description="name of a stage that trains a world model")]


Side = Annotated[int, Field(ge=8, le=4096)]


class TextStream(Settings):
    """Text in UTF-8, one string a sample."""

    kind: Literal["text"]


class Sized(Settings):
    """A stream of pictures, still or moving."""

    size: Side | tuple[Side, Side] = Field(description="pixels after decoding and cropping: one side of a square, or [height, width]")

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]


class ImageStream(Sized):
    """RGB pictures, uint8 [height, width, 3]."""

    kind: Literal["image"]
    resample: Resampling = Field(
        default="lanczos", description="how pictures are brought to their size; nearest keeps the labels of a mask as they are"
    )


Clock = Annotated[
    Annotated[str, Field(pattern=NAME)] | None,
    Field(
        description="name of the clock that its steps are woven on with those of other streams, one frame each; null: a segment of its own"
    ),
]


class VideoStream(Sized):
    """Clips of RGB frames without sound, uint8 [frames, height, width, 3]."""

    kind: Literal["video"]
    frames: Annotated[int, Field(ge=1, le=4096, description="frames of a clip")]
    frame_rate: PositiveFloat = Field(description="frames a second; others are resampled by their timestamps")
    clock: Clock = None


class AudioStream(Settings):
    """Sounds, float32 [channels, samples] in [-1, 1]."""

    kind: Literal["audio"]
    sample_rate: Annotated[int, Field(ge=1_000, le=192_000, description="samples a second (Hz); others are resampled")]
    seconds: Annotated[float, Field(gt=0, le=600, description="length; longer sounds are cut at the end, shorter ones filled with silence")]
    channels: Literal[1, 2] = Field(default=1, description="1: mono, the mean of what there is; 2: stereo, mono is doubled")
    clock: Clock = None

    @property
    def samples(self) -> int:
        """Samples of each channel."""
        return max(1, round(self.sample_rate * self.seconds))


class ActionStream(Settings):
    """Numbers at every step of a clip: actions, rewards, ends of episodes; float32 [steps, dimensions]."""

    kind: Literal["action"]
    steps: Annotated[int, Field(ge=1, le=100_000, description="rows of numbers in a sample")]
    dimensions: Annotated[int, Field(ge=1, le=256, description="numbers of a row")] = 1
    choices: Annotated[int, Field(ge=2, le=65_536)] | None = Field(
        default=None, description="discrete: every number is one of 0 .. choices - 1; null: real numbers"
    )
    names: tuple[str, ...] | None = Field(default=None, description="what the choices are called, by number: [noop, up, down]")
    clock: Clock = None
    role: Literal["action", "reward", "end"] = Field(
        default="action", description="on a clock: given from outside (action), or what the world says of it (reward, end of the episode)"
    )

    @model_validator(mode="after")
    def _names_are_of_the_choices(self) -> Self:
        if self.names is not None and (len(set(self.names)) != len(self.names) or len(self.names) != self.choices):
            raise ValueError(
                f"names ({', '.join(self.names)}) must be as many as choices ({self.choices}), each another; "
                f"set choices to {len(set(self.names))}, or leave names out"
            )
        return self


Stream = Annotated[TextStream | ImageStream | VideoStream | AudioStream | ActionStream, Field(discriminator="kind")]


def dump(settings: BaseModel) -> dict[str, Any]:
    """The settings as plain JSON values."""
    return settings.model_dump(mode="json")
