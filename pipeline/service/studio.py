"""Read-only routes for the page: runs and datasets."""

from fastapi import APIRouter

from worldloom.pipeline.service.engine import Engine


def router(engine: Engine) -> APIRouter:
    """All of them; everything under /v1 is behind the token."""
    return APIRouter(prefix="/v1", tags=["studio"])
