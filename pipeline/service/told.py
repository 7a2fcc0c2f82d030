"""The base of what the service tells."""

from pydantic import BaseModel, ConfigDict


class Told(BaseModel):
    """Part of an answer: immutable, and nothing in it that is not named."""

    model_config = ConfigDict(frozen=True, extra="forbid")
