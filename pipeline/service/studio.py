"""Read-only routes for the page: runs as they go on, datasets, checkpoints, and values as a tokenizer sees them.

What is asked for is looked up by name and number; no path is ever made of a request.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from worldloom.pipeline.service.checkpoint_pages import CheckpointPage, checkpoint_page
from worldloom.pipeline.service.contract import Asked, Input, Name, Shown
from worldloom.pipeline.service.dataset_pages import MOST_SAMPLES, CodeUse, DatasetLine, DatasetPage, Datasets, SampleLine
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.reading import content_of, read_json
from worldloom.pipeline.service.run_pages import Absent, RunLine, RunPage, Runs, StagePage
from worldloom.pipeline.service.token_routes import ERRORS, body_of, costs_of, spend
from worldloom.pipeline.service.told import Told
from worldloom.pipeline.service.values import shown
from worldloom.stages.artifact import ArtifactError

Result = TypeVar("Result")
Seed = Annotated[int, Query(ge=0, lt=1 << 31, description="the same one draws the same")]
Split = Annotated[str | None, Query(max_length=64, description="by default one that training has not seen")]
OneStream = Annotated[str | None, Query(max_length=64, description="only samples that have it")]
StreamName = Annotated[str, Query(max_length=64)]


class RunsAnswer(Told):
    """GET /v1/runs."""

    object: str = "list"
    data: tuple[RunLine, ...]


class DatasetsAnswer(Told):
    """GET /v1/datasets."""

    object: str = "list"
    data: tuple[DatasetLine, ...]


class SamplesAnswer(Told):
    """Samples drawn from a dataset."""

    object: str = "list"
    data: tuple[SampleLine, ...]


class PrepareRequest(Asked):
    """POST /v1/prepare."""

    tokenizer: Name
    input: Input


def router(engine: Engine) -> APIRouter:
    """All of them; everything under /v1 is behind the token."""
    routes = APIRouter(prefix="/v1", tags=["studio"], responses=ERRORS)
    runs = Runs(names_of(engine.runs))
    _add_runs(routes, runs)
    _add_datasets(routes, Datasets(runs))

    @routes.post("/prepare", summary="A value as the tokenizer sees it: cut, resized, resampled", openapi_extra=body_of(PrepareRequest))
    async def prepare(request: Request) -> Shown:
        asked = await read_json(request, PrepareRequest, engine.limits)
        about = engine.tokenizer(asked.tokenizer)
        content = content_of(asked.input, about.kind, "input")
        spend(request, about, sum(await costs_of(about, [content])), engine.limits)
        return Shown(**shown(await engine.prepare(about.name, content)))

    return routes


def names_of(places: Sequence[Path]) -> dict[str, Path]:
    """A name for each run: that of its file or folder, with a number where two are alike."""
    named: dict[str, Path] = {}
    for place in places:
        plain = (place.stem if place.suffix in (".yaml", ".yml") else place.resolve().name) or "run"
        name = next(name for number in range(len(places)) if (name := plain if not number else f"{plain}-{number + 1}") not in named)
        named[name] = place
    return named


def _add_runs(routes: APIRouter, runs: Runs) -> None:
    @routes.get("/runs", summary="The runs that are served")
    async def all_runs() -> RunsAnswer:
        return RunsAnswer(data=tuple(await _looked(runs.lines)))

    @routes.get("/runs/{run}", summary="A run: its stages, and how far they are")
    async def one_run(run: str) -> RunPage:
        return await _looked(runs.page, run)

    @routes.get("/runs/{run}/stages/{stage}", summary="A stage: what it measured and shows, while it goes on or after it")
    async def one_stage(run: str, stage: str) -> StagePage:
        return await _looked(runs.stage, run, stage)

    @routes.get("/runs/{run}/stages/{stage}/files/{number}", summary="A picture or sound of a stage's card", response_class=Response)
    async def card_file(run: str, stage: str, number: int) -> Response:
        file = await _looked(runs.file, run, stage, number)
        return Response(file.content, media_type=file.media_type)

    @routes.get("/runs/{run}/stages/{stage}/checkpoints/{step}", summary="What a training made at a checkpoint")
    async def one_checkpoint(run: str, stage: str, step: int) -> CheckpointPage:
        return await _looked(checkpoint_page, runs, run, stage, step)


def _add_datasets(routes: APIRouter, datasets: Datasets) -> None:
    @routes.get("/datasets", summary="The datasets and sets of tokens of the runs")
    async def all_datasets() -> DatasetsAnswer:
        return DatasetsAnswer(data=tuple(await _looked(datasets.lines)))

    @routes.get("/datasets/{run}/{stage}", summary="A dataset: its shards, its streams, and what was refused")
    async def one_dataset(run: str, stage: str) -> DatasetPage:
        return await _looked(datasets.page, run, stage)

    @routes.get("/datasets/{run}/{stage}/samples", summary="Samples drawn at random, to look at")
    async def samples(
        run: str,
        stage: str,
        split: Split = None,
        stream: OneStream = None,
        count: Annotated[int, Query(ge=1, le=MOST_SAMPLES)] = 8,
        seed: Seed = 0,
    ) -> SamplesAnswer:
        return SamplesAnswer(data=tuple(await _looked(datasets.samples, run, stage, split, stream, count, seed)))

    @routes.get(
        "/datasets/{run}/{stage}/draw", summary="One value of a stream, drawn at random, as it lies in its shard", response_class=Response
    )
    async def draw(run: str, stage: str, stream: StreamName, split: Split = None, seed: Seed = 0) -> Response:
        return Response((await _looked(datasets.draw, run, stage, stream, split, seed)).content, media_type="application/octet-stream")

    @routes.get("/datasets/{run}/{stage}/use", summary="How often each code of a stream is chosen")
    async def use(run: str, stage: str, stream: StreamName, split: Split = None) -> CodeUse:
        return await _looked(datasets.use, run, stage, stream, split)


async def _looked(look: Callable[..., Result], *arguments: Any) -> Result:
    """Reads files beside the loop; what is not there is a 404, what is being made anew right now a 503."""
    try:
        return await run_in_threadpool(look, *arguments)
    except Absent as absent:
        raise ServiceError("not_found", 404, str(absent)) from None
    except (ArtifactError, OSError, ValueError) as error:
        raise ServiceError("not_ready", 503, _first_line(error), None, 2.0) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
