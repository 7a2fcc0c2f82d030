"""What the service is raced with: the same tokenizer behind plain FastAPI with micro-batches, and behind Ray Serve's own batching.

`python -m bench.service_peers {fastapi,serve} TOKENIZER PORT`: POST /tokenize {"input": base64} -> {"codes": [...]}, as their guides say.
"""

import asyncio
import base64
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel

from worldloom.stages.open_tokenizer import open_tokenizer

BATCH = int(os.environ.get("WORLDLOOM_BENCH_BATCH", "16"))  # pictures: 16 are what the tokenizer takes at a time


class Asked(BaseModel):
    input: str


class Codes(BaseModel):
    codes: list[Any]


class Model:
    """Pictures in base64 to codes, a batch at a time."""

    def __init__(self, folder: str) -> None:
        torch.set_num_threads(1)
        self.tokenizer = open_tokenizer(Path(folder))

    def __call__(self, inputs: list[str]) -> list[Any]:
        pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in inputs]
        return [codes.tolist() for codes in self.tokenizer.encode(np.stack(pictures))]


def fastapi_app(folder: str) -> FastAPI:
    """A queue, and one task that takes what is there, up to a batch, to a thread."""
    app, model, waiting = FastAPI(), Model(folder), asyncio.Queue[tuple[str, "asyncio.Future[Any]"]]()

    async def work() -> None:
        while True:
            batch = [await waiting.get()]
            while len(batch) < BATCH and not waiting.empty():
                batch.append(waiting.get_nowait())
            found = await asyncio.to_thread(model, [one for one, _ in batch])
            for (_, answer), codes in zip(batch, found, strict=True):
                if not answer.done():
                    answer.set_result(codes)

    working: list[Any] = []

    @app.post("/tokenize")
    async def tokenize(asked: Asked) -> Codes:
        if not working:
            working.append(asyncio.create_task(work()))
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.put_nowait((asked.input, answer))
        return Codes(codes=await answer)

    return app


def run_serve(folder: str, port: int) -> None:
    """One deployment with `@serve.batch`; environment variables choose Serve's own proxy or HAProxy."""
    import ray
    from ray import serve

    app = FastAPI()

    @serve.deployment(max_ongoing_requests=4 * BATCH, ray_actor_options={"num_cpus": 1})
    @serve.ingress(app)
    class Tokenizer:
        def __init__(self) -> None:
            self.model = Model(folder)

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.002, max_concurrent_batches=2)
        async def encode(self, inputs: list[str]) -> list[Any]:
            return await asyncio.to_thread(self.model, inputs)

        @app.post("/tokenize")
        async def tokenize(self, asked: Asked) -> Codes:
            return Codes(codes=await self.encode(asked.input))

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"enable_access_log": False, "log_level": "ERROR"})
    serve.run(Tokenizer.bind(), name="peer", route_prefix="/", blocking=False)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


def main(kind: str, folder: str, port: int) -> None:
    if kind == "serve":
        run_serve(folder, port)
    else:
        import uvicorn

        uvicorn.run(fastapi_app(folder), host="127.0.0.1", port=port, access_log=False, log_level="error", loop="uvloop", http="httptools")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
