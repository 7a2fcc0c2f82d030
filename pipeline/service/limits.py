"""What the service lets in, and for how long. Each limit can be set by an environment variable: WORLDLOOM_BODY_BYTES=1000000."""

import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

PREFIX = "WORLDLOOM_"
Seconds = PositiveFloat


class Limits(BaseModel):
    """Limits of one front."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: PositiveInt = Field(default=64 << 20, description="bytes of a request's body")
    upload_bytes: PositiveInt = Field(default=1 << 30, description="bytes of the shards that one batch brings")
    header_bytes: PositiveInt = Field(default=64 << 10, description="bytes of a request's head")
    header_seconds: Seconds = Field(
        default=8.0, description="seconds from the opening of a connection, or its last answer, to a whole head"
    )
    receive_seconds: Seconds = Field(
        default=8.0, description="seconds that a body may take, and one more for each `receive_rate` bytes of it"
    )
    receive_rate: PositiveInt = Field(default=256 << 10, description="bytes a second")
    send_seconds: Seconds = Field(
        default=30.0,
        description="seconds that a client may leave a part of its answer unread; behind the last, one more for each `receive_rate` bytes",
    )
    connections: PositiveInt = Field(default=4_096, description="open at the same time; more are closed with a 429")
    requests: PositiveInt = Field(default=512, description="in progress at the same time; more are answered with 429")
    request_seconds: Seconds = Field(
        default=60.0, description="seconds from the whole body to the answer, at most what a request asks for itself"
    )
    json_depth: PositiveInt = Field(default=32, description="lists and objects within each other in a JSON body")
    json_parts: PositiveInt = Field(default=2 << 20, description="brackets and commas in a JSON body, also those in its strings")
    values: PositiveInt = Field(default=1_024, description="values in one request")
    pixels: PositiveInt = Field(default=256 << 20, description="pixels in one request, clips' frames added up")
    samples: PositiveInt = Field(default=64 << 20, description="samples of sound in one request")
    characters: PositiveInt = Field(default=16 << 20, description="characters of text in one request")
    numbers: PositiveInt = Field(default=16 << 20, description="numbers of actions in one request")
    queued: PositiveInt = Field(
        default=1_024, description="values that wait for one tokenizer; a request that finds more is answered with 429"
    )
    queue_seconds: Seconds = Field(
        default=4.0, description="seconds that a request may have to wait, by estimate; beyond it is answered with 429"
    )
    rollouts: PositiveInt = Field(default=8, description="sessions of one token; the world holds four times as many in all")
    rollout_seconds: Seconds = Field(default=300.0, description="seconds from its last use to the end of a session")
    batches: PositiveInt = Field(default=16, description="unfinished jobs of one token")
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="seconds from the loss of readiness to the closing of the port"
    )

    def cost(self, unit: str) -> int:
        """The most that one request may cost, in pixels, samples, characters or numbers."""
        most: int = getattr(self, unit)
        return most


def limits_of(environment: Mapping[str, str] | None = None) -> Limits:
    """The limits as the environment sets them; ValueError names a variable that is no such number."""
    found = os.environ if environment is None else environment
    set_here = {name: found[f"{PREFIX}{name.upper()}"] for name in Limits.model_fields if f"{PREFIX}{name.upper()}" in found}
    try:
        return Limits.model_validate(set_here)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        raise ValueError(f"{PREFIX}{name.upper()}={set_here.get(name)}: {wrong['msg'].lower()}") from None
