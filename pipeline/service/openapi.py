"""docs/openapi.json: `python -m worldloom.pipeline.service.openapi`, what every route takes and gives."""

import json
import sys

from worldloom.pipeline.service.app import create_app
from worldloom.pipeline.service.calls import NoCalls
from worldloom.pipeline.service.contract import GenerateLine
from worldloom.pipeline.service.engine import Engine
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.served import Served

OPEN = ("/health/live", "/health/ready", "/metrics")  # that need no token


def openapi_text() -> str:
    """The file: what FastAPI says of the application, and what a line of /v1/generate is."""
    app = create_app(Engine(NoCalls(), Served((), None, (), ()), Limits()))
    about = app.openapi()
    schemas = about["components"]["schemas"]
    line = GenerateLine.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= line.pop("$defs", {}) | {"GenerateLine": line}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    about["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, methods in about["paths"].items():
        for told in methods.values():
            if path not in OPEN:
                told["security"] = [{"token": []}]
    return json.dumps(about, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(openapi_text())
