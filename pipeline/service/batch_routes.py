"""Datasets: /v1/batches, jobs that tokenize folders or uploaded shards as a pipeline would, and their results."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile

from worldloom.pipeline.service.contract import BatchesAnswer, BatchFilesAnswer, BatchInfo, BatchRequest, ErrorAnswer
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.jobs import Job, Jobs
from worldloom.pipeline.service.reading import MULTIPART, checked, media_type, parse_json, read_form, read_json
from worldloom.pipeline.service.token_routes import ERRORS, ONCE, body_of, charge

KEY = "idempotency-key"
MOST_KEY = 200  # characters
CREATE = {**ERRORS, 409: ONCE[409]}
RESULT: dict[int | str, dict[str, Any]] = {**ERRORS, 409: {"model": ErrorAnswer, "description": "the job has no result yet"}}
BINARY: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


def router(engine: Engine, jobs: Jobs) -> APIRouter:
    """All routes of batches."""
    routes = APIRouter(prefix="/v1/batches", tags=["batches"])
    body = body_of(BatchRequest, files="shard")

    @routes.post(
        "", status_code=202, summary="Starts a job; the same Idempotency-Key gives the same job", responses=CREATE, openapi_extra=body
    )
    async def create(request: Request, response: Response) -> BatchInfo:
        key = request.headers.get(KEY)
        if key is not None and not 0 < len(key) <= MOST_KEY:
            raise ServiceError("request_invalid", 400, f"an Idempotency-Key has 1 to {MOST_KEY} characters", "Idempotency-Key")
        if media_type(request) == MULTIPART:
            async with read_form(request, engine.limits) as form:
                shards = [value for name, value in form.multi_items() if isinstance(value, UploadFile) and name == "shard"]
                text = form.get("job")
                if not isinstance(text, str) or not shards:
                    raise ServiceError("request_invalid", 400, "a batch of shards has a field job, as JSON, and files called shard", "job")
                asked = checked(BatchRequest, parse_json(text.encode("utf-8", "surrogatepass"), engine.limits.json_depth))
                return await _create(engine, jobs, request, asked, shards, key)
        asked = await read_json(request, BatchRequest, engine.limits)
        return await _create(engine, jobs, request, asked, [], key)

    async def _find(request: Request, name: str) -> Job:
        return await asyncio.to_thread(jobs.find, request.state.tenant.name, name)

    @routes.get("", summary="The token's jobs, newest first", responses=ERRORS)
    async def batches(request: Request) -> BatchesAnswer:
        return BatchesAnswer(data=tuple(await asyncio.to_thread(jobs.of, request.state.tenant.name)))

    @routes.get("/{id}", summary="How a job stands", responses=ERRORS)
    async def batch(request: Request, id: str) -> BatchInfo:
        return await asyncio.to_thread(jobs.about, await _find(request, id))

    @routes.post("/{id}/cancel", summary="Stops a job where it loses nothing", responses=ONCE)
    async def cancel(request: Request, id: str) -> BatchInfo:
        job = await _find(request, id)
        jobs.cancel(job)
        return await asyncio.to_thread(jobs.about, job)

    @routes.post("/{id}/resume", summary="Goes on with a job that failed, was cancelled or was stopped", responses=ONCE)
    async def resume(request: Request, id: str) -> BatchInfo:
        job = await _find(request, id)
        jobs.resume(job)
        return await asyncio.to_thread(jobs.about, job)

    @routes.get("/{id}/files", summary="The files of a job's result", responses=RESULT)
    async def files(request: Request, id: str) -> BatchFilesAnswer:
        return BatchFilesAnswer(data=tuple(await asyncio.to_thread(jobs.files, await _find(request, id))))

    @routes.get("/{id}/files/{name:path}", summary="One file", response_class=FileResponse, responses={**RESULT, 200: BINARY})
    async def file(request: Request, id: str, name: str) -> Response:
        path = await asyncio.to_thread(jobs.file, await _find(request, id), name)
        return FileResponse(path, media_type="application/octet-stream")

    return routes


async def _create(
    engine: Engine, jobs: Jobs, request: Request, asked: BatchRequest, shards: Sequence[UploadFile], key: str | None
) -> BatchInfo:
    places = {place.name: place for place in engine.served.tokenizers}
    tenant = request.state.tenant.name
    uploads, pay = [shard.file for shard in shards], partial(charge, request, sum(shard.size or 0 for shard in shards))
    job = await asyncio.to_thread(jobs.create, tenant, asked, uploads, key, places, engine.tokenizers, pay)
    return await asyncio.to_thread(jobs.about, job)
