"""Values to codes and back: /v1/tokenize and /v1/detokenize, as JSON, multipart or an array in, JSON or files out."""

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from worldloom.pipeline.service.contract import (
    DetokenizeAnswer,
    DetokenizeRequest,
    ErrorAnswer,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.reading import MULTIPART, NPY, checked, contents_of, media_type, read_files, read_json, values_of
from worldloom.pipeline.service.values import TYPES, Content, SeveralCodes, codes_in, cost_of, shown
from worldloom.stages.npy import write_npy
from worldloom.stages.present import File

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": what}
    for status, what in (
        (400, "the request is malformed"),
        (401, "no token, or a wrong one"),
        (404, "there is no such thing"),
        (413, "too much at once"),
        (415, "not of a type that is read"),
        (422, "the content cannot be worked with"),
        (429, "too busy, or over the quota; come again after Retry-After"),
        (503, "the service is about to end, or what works for it is not up, or was lost; come again after Retry-After"),
    )
}
# Of what has an effect under an Idempotency-Key.
ONCE: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    409: {"model": ErrorAnswer, "description": "its Idempotency-Key was used for another request"},
    410: {"model": ErrorAnswer, "description": "it was done under its Idempotency-Key, and the answer is no longer kept"},
}


def body_of(model: type[Any], *, files: str | None = None) -> dict[str, Any]:
    """What OpenAPI says of a body that a route reads by itself."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if files is not None:
        fields: dict[str, Any] = {name: {"type": "string"} for name in schema["properties"] if name not in ("input", "codes", "source")}
        fields[files] = {"type": "array", "items": {"type": "string", "format": "binary"}}
        content[MULTIPART] = {"schema": {"type": "object", "properties": fields, "required": ["tokenizer", files]}}
    return {"requestBody": {"required": True, "content": content}}


def router(engine: Engine) -> APIRouter:
    """Both routes."""
    routes = APIRouter(prefix="/v1", tags=["tokens"])

    @routes.post(
        "/tokenize",
        summary="Values to codes",
        response_model=TokenizeAnswer,
        responses={**ERRORS, 200: {"content": {NPY: {"schema": {"type": "string", "format": "binary"}}}}},
        openapi_extra=_or_array(body_of(TokenizeRequest, files="file")),
    )
    async def tokenize(request: Request) -> Response:
        asked, contents, params = await _tokenize_request(request, engine)
        about = engine.tokenizer(asked.tokenizer)
        costs = await costs_of(about, contents)
        spend(request, about, sum(costs), engine.limits)
        codes = await engine.encode(about.name, contents, costs, params)
        if asked.answer == "npy":
            return Response(as_npy(about, codes), media_type=NPY)
        return Response(tokenize_answer(about, codes, sum(costs)), media_type="application/json")

    @routes.post(
        "/detokenize",
        summary="Codes to values",
        response_model=DetokenizeAnswer,
        responses={**ERRORS, 200: {"content": {"image/png": {}, "audio/wav": {}, "video/mp4": {}, NPY: {}, "text/plain": {}}}},
        openapi_extra=body_of(DetokenizeRequest, files="file"),
    )
    async def detokenize(request: Request) -> Response:
        asked, codes = await _detokenize_request(request, engine)
        about = engine.tokenizer(asked.tokenizer)
        if asked.answer == "file" and len(codes) != 1:
            raise ServiceError(
                "request_invalid", 400, f"return=file answers with one file, and there are codes of {len(codes)} values", "codes"
            )
        given = [codes_in(one) for one in codes]
        cost = sum(max(cost_of(about.stream, b""), count) for count in given)
        spend(request, about, cost, engine.limits)
        files = await engine.decode(about.name, codes, asked.format)
        if asked.answer == "file":
            return Response(files[0].content, media_type=TYPES[files[0].extension])
        return Response(_detokenize_answer(about, files, cost, sum(given)), media_type="application/json")

    return routes


def spend(request: Request, about: TokenizerInfo, cost: int, limits: Limits) -> None:
    """Takes the cost off the quota and notes it; ServiceError where it is more than a request, or the token, may spend."""
    request.state.tokenizer = about.name
    if cost > limits.cost(about.unit):
        raise ServiceError(
            "too_costly", 413, f"the request has {cost} {about.unit}, at most {limits.cost(about.unit)}; send it in several", "input"
        )
    charge(request, cost)


def charge(request: Request, cost: int) -> None:
    """Takes the cost off the quota of the token and notes it; ServiceError where it may not spend so much."""
    request.state.cost = cost
    request.state.tenant.spend(cost)


async def costs_of(about: TokenizerInfo, contents: Sequence[Content]) -> list[int]:
    """What each value costs. Headers of sounds and clips are read by libraries that take their time, so beside the loop."""
    if about.kind in ("audio", "video"):
        return await run_in_threadpool(_costs, about, contents)
    return _costs(about, contents)


def _costs(about: TokenizerInfo, contents: Sequence[Content]) -> list[int]:
    least = cost_of(about.stream, b"")
    return [cost_of(about.stream, content) if isinstance(content, bytes) else least for content in contents]


def tokenize_answer(about: TokenizerInfo, codes: SeveralCodes, cost: int) -> bytes:
    """A TokenizeAnswer, written without going through the model: it is the bulk of what the service says."""
    data = [{"index": index, "codes": one.tolist(), "shape": one.shape} for index, one in enumerate(codes)]
    usage = {"values": len(codes), "cost": cost, "unit": about.unit, "codes": sum(one.size for one in codes)}
    answer = {
        "object": "list",
        "tokenizer": about.name,
        "fingerprint": about.fingerprint,
        "dtype": about.dtype,
        "data": data,
        "usage": usage,
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def as_npy(about: TokenizerInfo, codes: SeveralCodes) -> bytes:
    """One array [values, *shape]; where codes vary in shape, one array a value, one behind the other, as np.load reads them."""
    if about.shape is not None:
        return write_npy(np.asarray(codes))
    written = io.BytesIO()
    for one in codes:
        written.write(write_npy(one))
    return written.getvalue()


def _or_array(about: dict[str, Any]) -> dict[str, Any]:
    """The body may be an .npy, too; what else is asked then stands in the query."""
    about["requestBody"]["content"][NPY] = {"schema": {"type": "string", "format": "binary"}}
    fields = about["requestBody"]["content"]["application/json"]["schema"]["properties"]
    about["parameters"] = [
        {"name": name, "in": "query", "description": f"of an {NPY} body", "schema": fields[name]} for name in ("tokenizer", "return")
    ]
    return about


async def _tokenize_request(request: Request, engine: Engine) -> tuple[TokenizeRequest, Sequence[Content], list[str]]:
    """The request, and the content and the place in it of every value."""
    if media_type(request) == NPY:
        asked = checked(TokenizeRequest, {**request.query_params, "input": ""})
        values = values_of(await request.body(), engine.tokenizer(asked.tokenizer).stream, engine.limits)
        return asked, values, [f"body[{index}]" for index in range(len(values))]
    if media_type(request) == MULTIPART:
        fields, contents = await read_files(request, engine.limits, "file")
        asked = checked(TokenizeRequest, {**fields, "input": ""})
        return asked, contents, [f"file[{index}]" for index in range(len(contents))]
    asked = await read_json(request, TokenizeRequest, engine.limits)
    contents = contents_of(asked.input, engine.tokenizer(asked.tokenizer).kind, "input", engine.limits)
    one = isinstance(asked.input, str)
    return asked, contents, ["input" if one else f"input[{index}]" for index in range(len(contents))]


async def _detokenize_request(request: Request, engine: Engine) -> tuple[DetokenizeRequest, list[Any]]:
    if media_type(request) == MULTIPART:
        fields, contents = await read_files(request, engine.limits, "file")
        return checked(DetokenizeRequest, {**fields, "codes": []}), list(contents)
    asked = await read_json(request, DetokenizeRequest, engine.limits)
    if not 0 < len(asked.codes) <= engine.limits.values:
        raise ServiceError("request_invalid", 400, f"give the codes of 1 to {engine.limits.values} values, got {len(asked.codes)}", "codes")
    return asked, list(asked.codes)


def _detokenize_answer(about: TokenizerInfo, files: Sequence[File], cost: int, codes: int) -> bytes:
    data = [{"index": index, **shown(file)} for index, file in enumerate(files)]
    usage = {"values": len(files), "cost": cost, "unit": about.unit, "codes": codes}
    return json.dumps({"object": "list", "tokenizer": about.name, "data": data, "usage": usage}).encode()
