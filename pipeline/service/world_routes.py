"""Worlds: /v1/generate, told code by code, and /v1/rollouts, sessions that go on step by step."""

import json
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from worldloom.pipeline.service.contract import (
    ActRequest,
    GenerateRequest,
    RolloutInfo,
    RolloutOpened,
    RolloutRequest,
    RolloutsAnswer,
    StepsAnswer,
    WorldInfo,
)
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.reading import read_json
from worldloom.pipeline.service.token_routes import ERRORS, ONCE, body_of, charge

NDJSON = "application/x-ndjson"


def router(engine: Engine) -> APIRouter:
    """All routes of worlds; 404 where none is served."""
    routes = APIRouter(prefix="/v1", tags=["worlds"])

    @routes.post(
        "/generate",
        summary="A sample, written from what is given, told as it is written",
        response_class=StreamingResponse,
        responses={**ERRORS, 200: {"content": {NDJSON: {"schema": {"$ref": "#/components/schemas/GenerateLine"}}}}},
        openapi_extra=body_of(GenerateRequest),
    )
    async def generate(request: Request) -> Response:
        asked = await read_json(request, GenerateRequest, engine.limits)
        charge(request, _written(engine.need_world(), asked))
        lines = engine.generate(asked)
        first = await anext(lines)  # what is wrong with the request is said before the answer begins
        return StreamingResponse(_told(request.state.request_id, first, lines), media_type=NDJSON)

    @routes.post("/rollouts", status_code=201, summary="Opens a session", responses=ONCE, openapi_extra=body_of(RolloutRequest))
    async def open_rollout(request: Request) -> RolloutOpened:
        asked = await read_json(request, RolloutRequest, engine.limits)
        charge(request, asked.given * _step_codes(engine.need_world()))
        opened = await engine.open_rollout(request.state.tenant.name, asked)
        return RolloutOpened(**_info(engine, opened["id"], 0, engine.limits.rollout_seconds).model_dump(), first=opened["first"])

    @routes.get("/rollouts", summary="The token's sessions", responses=ERRORS)
    async def rollouts(request: Request) -> RolloutsAnswer:
        mine = [one for one in await engine.sessions() if one.tenant == request.state.tenant.name]
        return RolloutsAnswer(data=tuple(_info(engine, one.id, one.step, one.left) for one in mine))

    @routes.post("/rollouts/{id}/act", summary="Goes on by a step or several", responses=ONCE, openapi_extra=body_of(ActRequest))
    async def act(request: Request, id: str) -> StepsAnswer:
        asked = await read_json(request, ActRequest, engine.limits)
        charge(request, asked.steps * _step_codes(engine.need_world()))
        return StepsAnswer(data=tuple(await engine.act(request.state.tenant.name, id, asked)))

    @routes.delete("/rollouts/{id}", status_code=204, response_class=Response, summary="Ends a session", responses=ERRORS)
    async def close_rollout(request: Request, id: str) -> Response:
        await engine.close_rollout(request.state.tenant.name, id)
        return Response(status_code=204)

    return routes


def _info(engine: Engine, name: str, step: int, left: float) -> RolloutInfo:
    world = engine.need_world()
    frames = next(stream.name for stream in world.streams if stream.on_clock)
    return RolloutInfo(id=name, step=step, frames=frames, actions=world.actions, expires_in=round(left, 1))


def _written(world: WorldInfo, asked: GenerateRequest) -> int:
    """Codes that an answer may have: of the streams that are wanted, or of all that are not given."""
    streams = [stream for stream in world.streams if stream.name not in asked.given and (asked.want is None or stream.name in asked.want)]
    return sum(stream.max_length for stream in streams)


def _step_codes(world: WorldInfo) -> int:
    """Codes of one step of a rollout."""
    return sum(math.ceil(stream.max_length / world.steps) for stream in world.streams if stream.on_clock)


async def _told(request_id: str, first: dict[str, Any], lines: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    """The lines as they go over the wire; what fails on the way is the last of them."""
    yield _line({"event": "begin", "request_id": request_id})
    yield _line(first)
    try:
        async with aclosing(lines):
            async for line in lines:
                yield _line(line)
    except ServiceError as error:
        detail = {"code": error.code, "message": error.message, "param": error.param, "request_id": request_id}
        yield _line({"event": "error", "error": detail})


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps({name: value for name, value in said.items() if value is not None}, separators=(",", ":")).encode() + b"\n"
