"""The service as one FastAPI application around an engine; under uvicorn as it is, or in front of replicas of Ray Serve."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from worldloom.pipeline.service import batch_routes, embed_routes, studio, token_routes, world_routes
from worldloom.pipeline.service.contract import InfoAnswer, LimitsInfo, QuotaInfo, TokenizersAnswer
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import ServiceError, not_found
from worldloom.pipeline.service.guard import API, Gate, Guard, error_body, error_headers
from worldloom.pipeline.service.jobs import Jobs
from worldloom.pipeline.service.sources import Sources
from worldloom.pipeline.service.tenants import Tenant, Tenants
from worldloom.pipeline.service.version import version

PAGE = Path(__file__).parents[1] / "studio"
UNITS = ("pixels", "samples", "characters", "numbers")


def create_app(engine: Engine, tenants: Tenants | None = None, jobs: Jobs | None = None) -> FastAPI:
    """The application; `app.state.gate` is what ends it gracefully. Without `tenants` anybody on this machine may use it; without `jobs`
    there are no batches.
    """
    jobs = jobs or Jobs(None, Sources({}), 0)
    gate = Gate(engine.limits, tenants or Tenants(), engine.measures, rooms={f"{API}/tokenize": engine.check_room})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        jobs.start()
        app.state.ready = True
        yield
        app.state.ready = False
        await jobs.stop()
        await engine.close()

    app = FastAPI(title="worldloom", version=version(), lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.engine, app.state.gate, app.state.ready = engine, gate, False
    tokens = token_routes.router(engine)
    app.add_middleware(_Direct, routes=tokens.routes)
    app.add_middleware(Guard, gate=gate)
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_health(app, gate, engine)
    _add_listings(app, gate, engine, tuple(jobs.sources.folders))
    app.include_router(tokens)
    app.include_router(world_routes.router(engine))
    app.include_router(embed_routes.router(engine))
    app.include_router(batch_routes.router(engine, jobs))
    app.include_router(studio.router(engine))
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="studio")
    return app


class _Direct:
    """ASGI middleware: routes that want nothing but the request are called by their path alone, past all that FastAPI does for others,
    which takes as long as the rest of the front."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self.app = app
        self._routes = {route.path: route for route in routes if isinstance(route, APIRoute) and route.methods == {"POST"}}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request)
        except ServiceError as error:
            response = await _refused(request, error)
        await response(scope, receive, send)


def _add_health(app: FastAPI, gate: Gate, engine: Engine) -> None:
    @app.get("/health/live", response_class=Response, tags=["health"], summary="Whether the process answers")
    async def live() -> Response:
        return Response("live\n", media_type="text/plain")

    @app.get("/health/ready", response_class=Response, tags=["health"], summary="Whether it takes requests")
    async def ready() -> Response:
        if gate.draining or not app.state.ready:
            raise ServiceError("draining" if gate.draining else "starting", 503, "the service takes no requests now", None, 1.0)
        return Response("ready\n", media_type="text/plain")

    @app.get("/metrics", response_class=Response, tags=["health"], summary="Figures for Prometheus")
    async def metrics() -> Response:
        for name, batcher in engine.batchers.items():
            engine.measures.queue_depth.labels(tokenizer=name).set(batcher.queued)
        return Response(engine.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_listings(app: FastAPI, gate: Gate, engine: Engine, sources: tuple[str, ...]) -> None:
    @app.get("/v1/tokenizers", tags=["tokens"], summary="The tokenizers that are served")
    async def tokenizers() -> TokenizersAnswer:
        return TokenizersAnswer(data=tuple(engine.tokenizers.values()))

    @app.get("/v1/info", tags=["service"], summary="What is served, to whom, within which limits")
    async def info(request: Request) -> InfoAnswer:
        tenant: Tenant = request.state.tenant
        limits = gate.limits
        return InfoAnswer(
            version=version(),
            tenant=tenant.name,
            tokenizers=tuple(engine.tokenizers),
            world=engine.world,
            encoders=tuple(engine.encoders.values()),
            sources=sources,
            limits=LimitsInfo(
                body_bytes=limits.body_bytes,
                upload_bytes=limits.upload_bytes,
                values=limits.values,
                cost={unit: limits.cost(unit) for unit in UNITS},
                seconds=limits.request_seconds,
            ),
            quota=None if tenant.quota is None else QuotaInfo(per_minute=tenant.quota.per_minute, left=tenant.quota.left),
        )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    request.state.error = error.code
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    return Response(error_body(error, request.state.request_id), error.status, headers, "application/json")


async def _http(request: Request, error: Exception) -> Response:
    """What starlette itself says of a route or a file that is not there, or of another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and any(
        route.matches({**request.scope, "root_path": ""})[0] is Match.PARTIAL for route in request.app.routes
    ):
        # The page is mounted at "/" and takes, as files that are not there, what a route would take by another method.
        return await _refused(request, ServiceError("method_not_allowed", 405, f"{request.method} is no method of this route"))
    if error.status_code == 404:
        return await _refused(request, not_found("page"))
    code = {405: "method_not_allowed"}.get(error.status_code, "request_invalid")
    return await _refused(request, ServiceError(code, error.status_code, str(error.detail)))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return await _refused(request, ServiceError("request_invalid", 400, f"{where}: {first['msg']}", where[:200]))
