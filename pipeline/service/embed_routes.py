"""Encoders: /v1/embed, pictures to vectors, and /v1/search, the samples of the run that are most like a picture, a text or a vector."""

from fastapi import APIRouter, Request

from worldloom.pipeline.service.contract import EmbedAnswer, Embedding, EmbedRequest, Found, SearchAnswer, SearchRequest
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.reading import content_of, contents_of, read_json
from worldloom.pipeline.service.token_routes import ERRORS, body_of, charge
from worldloom.pipeline.service.values import pixels_of


def router(engine: Engine) -> APIRouter:
    """Both routes; 404 where no encoder is served."""
    routes = APIRouter(prefix="/v1", tags=["encoders"])

    @routes.post("/embed", summary="Pictures to embeddings", responses=ERRORS, openapi_extra=body_of(EmbedRequest))
    async def embed(request: Request) -> EmbedAnswer:
        asked = await read_json(request, EmbedRequest, engine.limits)
        contents = contents_of(asked.input, "image", "input", engine.limits)
        _spend(request, engine, asked.encoder, contents)
        rows = await engine.embed(asked.encoder, contents)
        data = tuple(Embedding(index=index, embedding=tuple(row)) for index, row in enumerate(rows.tolist()))
        return EmbedAnswer(encoder=asked.encoder, data=data)

    @routes.post("/search", summary="Samples that are alike", responses=ERRORS, openapi_extra=body_of(SearchRequest))
    async def search(request: Request) -> SearchAnswer:
        asked = await read_json(request, SearchRequest, engine.limits)
        if sum(given is not None for given in (asked.input, asked.text, asked.embedding)) != 1:
            raise ServiceError("request_invalid", 400, "give one of input, text and embedding to search by", "input")
        content = None if asked.input is None else content_of(asked.input, "image", "input")
        _spend(request, engine, asked.encoder, [] if content is None else [content], len(asked.text or "") + len(asked.embedding or ()))
        found = await engine.search(asked.encoder, content, asked.text, asked.embedding, asked.top)
        return SearchAnswer(encoder=asked.encoder, data=tuple(Found(key=key, split=split, score=score) for key, split, score in found))

    return routes


def _spend(request: Request, engine: Engine, encoder: str, contents: list[bytes], others: int = 0) -> None:
    """`others`: characters or numbers that it is asked by."""
    about = engine.encoder(encoder)
    cost = sum(max(about.size[0] * about.size[1], pixels_of(content)) for content in contents)
    if cost > engine.limits.pixels:
        raise ServiceError("too_costly", 413, f"the request has {cost} pixels, at most {engine.limits.pixels}; send it in several", "input")
    charge(request, cost + others)
