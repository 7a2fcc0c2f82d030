"""What an exported world says of itself beside its model: for every stream what its values are, and where its tokenizer lies."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from worldloom.stages.settings import Settings, Stream
from worldloom.stages.train_world_model import ObjectiveName

STREAMS = "streams.json"


class ExportedStream(Settings):
    """One stream that the world writes."""

    stream: Stream
    tokenizer: Annotated[str, Field(pattern=r"^tokenizers/[a-z0-9][a-z0-9_-]*$")]  # its folder, below the export's


class Exported(Settings):
    """Everything that the model's own files do not say."""

    format: Literal[1] = 1
    name: str  # of the stage that trained it
    fingerprint: str  # of that stage
    objectives: tuple[ObjectiveName, ...]
    oracle: str | None  # who can read what its samples show
    streams: dict[str, ExportedStream]


def is_export(folder: Path) -> bool:
    """Whether `worldloom export` wrote the folder."""
    return (folder / STREAMS).is_file()


def read_export(folder: Path) -> Exported:
    """ValueError for a file that this version did not write."""
    try:
        return Exported.model_validate_json((folder / STREAMS).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{folder / STREAMS}: {where}: {first['msg']}; export the world again with this version of worldloom") from None
