"""The JSON Schema of pipeline files, for editors that complete and check them as one writes."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Union

from pydantic import Field, create_model

from worldloom.pipeline.catalogue import STAGES
from worldloom.pipeline.config import Heading, Name
from worldloom.stages.kind import StageKind


def pipeline_schema(kinds: Mapping[str, StageKind] = STAGES) -> dict[str, Any]:
    """JSON Schema, draft 2020-12: every stage's settings picked by `run`."""
    stage: Any = Union[tuple(kind.settings for kind in kinds.values())]  # noqa: UP007 - the kinds are values, not names
    if len(kinds) > 1:
        stage = Annotated[stage, Field(discriminator="run")]
    model = create_model(
        "Pipeline", __base__=Heading, stages=(dict[Name, stage], Field(min_length=1, description="stage name -> settings"))
    )
    schema = model.model_json_schema()
    for kind in kinds.values():
        definition = schema["$defs"][kind.settings.__name__]
        if "streams" in definition.get("required", ()):  # filled in from the top of the file
            definition["required"].remove("streams")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "worldloom pipeline", **_without_title(schema)}


def schema_text(kinds: Mapping[str, StageKind] = STAGES) -> str:
    """The schema as it is published in docs/pipeline.schema.json."""
    return json.dumps(pipeline_schema(kinds), indent=2, ensure_ascii=False) + "\n"


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}
