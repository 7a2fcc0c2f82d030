"""What every stage's settings are made of: immutable pydantic models, stream definitions, references to other stages."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

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

    produces: Literal["dataset", "tokenizer", "tokens", "world_model", "scores"]


@dataclass(frozen=True)
class StreamName:
    """Marks a string that names a stream of the dataset that the same settings refer to; `kind` is what it must be, None any."""

    kind: Literal["text", "image"] | None = None


DatasetRef = Annotated[str, Reference("dataset"), Field(description="name of a stage that makes or imports a dataset")]
TokenizerRef = Annotated[str, Reference("tokenizer"), Field(description="name of a stage that trains a tokenizer")]
TokensRef = Annotated[str, Reference("tokens"), Field(description="name of a stage that encodes a dataset")]
WorldRef = Annotated[str, Reference("world_model"), Field(description="name of a stage that trains a world model")]


class TextStream(Settings):
    """Text in UTF-8, one string a sample."""

    kind: Literal["text"]


class ImageStream(Settings):
    """Square RGB pictures."""

    kind: Literal["image"]
    size: Annotated[int, Field(ge=8, le=4096, description="height and width in pixels, after decoding and cropping")]


Stream = Annotated[TextStream | ImageStream, Field(discriminator="kind")]


def dump(settings: BaseModel) -> dict[str, Any]:
    """The settings as plain JSON values."""
    return settings.model_dump(mode="json")
