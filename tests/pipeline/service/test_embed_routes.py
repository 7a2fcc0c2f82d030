"""Embeddings from the service are those of embed_dataset, and what is most alike is found."""

import asyncio
import base64
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
import torch

from worldloom.pipeline.client import AsyncClient, Client, ServiceFailure
from worldloom.pipeline.service import engine as engines
from worldloom.pipeline.service.calls import LANES
from worldloom.pipeline.service.tenants import Tenants, add_token
from worldloom.stages import embed_dataset, make_shapes
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.embed_dataset import EmbedDataset
from worldloom.stages.features import FeatureSet
from worldloom.stages.kind import StageKind
from worldloom.stages.make_shapes import MakeShapes
from worldloom.stages.settings import DatasetRef, ImageStream, StageSettings
from worldloom.stages.worker import Worker
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.load import save_pretrained
from worldloom.world_model.encoders.settings import VitSettings


class Untrained(StageSettings):
    run: Literal["untrained"]
    data: DatasetRef
    stream: str


def _encoder(settings: Untrained, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    about = VitSettings(patch=8, width=24, depth=2, heads=2, grid=(2, 2), pooling="mean")
    save_pretrained(out / "encoder", build_encoder(about, torch.Generator().manual_seed(0)), about)


@pytest.fixture(scope="module")
def seeing(serve, tmp_path_factory):
    """A run with an encoder and its features of twelve pictures, served; the dataset and the features."""
    root = tmp_path_factory.mktemp("seeing")
    made: dict[str, Artifact] = {}

    def make(name: str, kind: StageKind, settings: Any, **inputs: str) -> None:
        given = {field: made[stage] for field, stage in inputs.items()}
        made[name] = execute(kind, name, settings, given, root / "artifacts" / name / "0123456789abcdef", Worker())

    streams = {"view": ImageStream(kind="image", size=16)}
    shapes = MakeShapes(run="make_shapes", streams=streams, samples=12, validation=5, held_out=4, seed=1, shard_size=7)
    make("data", make_shapes.STAGE, shapes)
    encoder = StageKind("untrained", Untrained, _encoder, lambda *_: {}, "encoder", 1, "shards")
    make("eye", encoder, Untrained(run="untrained", data="data", stream="view"), data="data")
    embed = EmbedDataset(run="embed_dataset", data="data", encoder="eye", stream="view", batch_size=5)
    make("seen", embed_dataset.STAGE, embed, data="data", encoder="eye")
    run = root / "runs" / "first"
    run.mkdir(parents=True)
    places = {name: artifact.folder.relative_to(root).as_posix() for name, artifact in made.items()}
    (run / "artifacts.json").write_text(json.dumps(places))
    with serve([str(run)]) as service:
        yield service, Dataset(made["data"]), FeatureSet(made["seen"])


def pictures(data, split="train"):
    return [base64.b64encode(data.content(split, "view", row)).decode() for row in range(data.samples(split))]


def test_embeddings_are_those_of_the_stage_to_the_bit(seeing):
    service, data, features = seeing
    answer = service("POST", "/v1/embed", json={"encoder": "eye", "input": pictures(data)[:7]}).json()
    stored = features.shard("train", "shard-000000")
    assert np.array_equal(np.array([one["embedding"] for one in answer["data"]], np.float32), stored)
    about = service("GET", "/v1/info").json()["encoders"][0]
    assert (about["name"], about["width"], about["indexed"], about["reads_texts"]) == ("eye", 24, 21, False)


def test_a_picture_is_most_like_itself_and_an_embedding_finds_the_same(seeing):
    service, data, _ = seeing
    key = data.keys("validation")[3]
    by_picture = service("POST", "/v1/search", json={"encoder": "eye", "input": pictures(data, "validation")[3], "top": 4}).json()["data"]
    assert (key, "validation", pytest.approx(1)) in [(one["key"], one["split"], one["score"]) for one in by_picture]
    scores = [one["score"] for one in by_picture]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    (row,) = service("POST", "/v1/embed", json={"encoder": "eye", "input": pictures(data, "validation")[3]}).json()["data"]
    by_vector = service("POST", "/v1/search", json={"encoder": "eye", "embedding": row["embedding"], "top": 4}).json()["data"]
    assert [(one["key"], one["split"]) for one in by_vector] == [(one["key"], one["split"]) for one in by_picture]
    assert [one["score"] for one in by_vector] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"encoder": "nothing", "embedding": [1.0]}, 404, "encoder_unknown"),
        ({"encoder": "eye"}, 400, "request_invalid"),
        ({"encoder": "eye", "embedding": [1.0], "text": "a"}, 400, "request_invalid"),
        ({"encoder": "eye", "embedding": [1.0]}, 422, "request_invalid"),
        ({"encoder": "eye", "text": "a"}, 422, "request_invalid"),
        ({"encoder": "eye", "input": "AAAA"}, 415, "type_mismatch"),
        ({"encoder": "eye", "input": "http://example.com/a.png"}, 403, "url_forbidden"),
        ({"encoder": "eye", "embedding": [1.0] * 24, "top": 101}, 400, "request_invalid"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(seeing, asked, status, code):
    answer = seeing[0]("POST", "/v1/search", json=asked)
    assert answer.status_code == status and answer.json()["error"]["code"] == code, answer.text


@pytest.mark.parametrize(
    ("route", "asked", "cost"),
    [
        ("embed", {"input": "AAAA"}, 16 * 16),
        ("search", {"input": "AAAA"}, 16 * 16),
        ("search", {"text": "a red circle"}, 12),
        ("search", {"embedding": [1.0] * 24}, 24),
    ],
    ids=["embed", "by picture", "by text", "by embedding"],
)
def test_what_a_search_is_made_by_is_taken_off_the_quota(seeing, route, asked, cost, monkeypatch):
    service = seeing[0]
    token, line = add_token("ada", None, cost)
    monkeypatch.setattr(service.app.state.gate, "tenants", Tenants([(*line.split()[:2], float(cost))]))
    first, second = (
        service("POST", f"/v1/{route}", json={"encoder": "eye", **asked}, headers={"authorization": f"Bearer {token}"}) for _ in range(2)
    )
    assert first.status_code not in (413, 429) and second.status_code == 429 and 0 < int(second.headers["retry-after"]) <= 60


@pytest.mark.parametrize(("route", "found"), [("embed", np.zeros((1, 24), np.float32)), ("search", [])], ids=["embed", "search"])
def test_what_waits_for_an_encoder_is_bounded(seeing, route, found, monkeypatch):
    service = seeing[0]
    worker, may = service.engine.calls.workers["encoder:eye"], threading.Event()
    monkeypatch.setattr(engines, "MOST_WAITING", 1)
    monkeypatch.setattr(service.engine, "_lines", {})
    monkeypatch.setattr(worker, route, lambda *arguments: found if may.wait(60) else None)

    async def flood():
        asked = [
            asyncio.create_task(service.client.post(f"/v1/{route}", json={"encoder": "eye", "input": "AAAA"})) for _ in range(LANES + 3)
        ]
        done, _ = await asyncio.wait(asked, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        may.set()
        await asyncio.wait(asked)
        return [task.result() for task in done]

    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in service.run(flood())} == {(429, "busy")}


def test_both_clients_embed_and_search(seeing, listening):
    service, data, _ = seeing
    asked = [bytes(data.content("validation", "view", row)) for row in range(2)]
    key = data.keys("validation")[1]

    def check(rows, by_picture, by_vector):
        assert rows.dtype == np.float32 and rows.shape == (2, 24)
        assert key in [one["key"] for one in by_picture] and len(by_picture) == 4
        assert [one["key"] for one in by_vector] == [one["key"] for one in by_picture]

    with listening(service) as address, Client(address) as client:
        rows = client.embed("eye", asked)
        check(rows, client.search("eye", asked[1], top=4), client.search("eye", embedding=rows[1], top=4))
        with pytest.raises(ServiceFailure, match="request_invalid"):
            client.search("eye", text="a")

    async def awaited():
        async with AsyncClient("http://localhost", transport=httpx.ASGITransport(service.app)) as client:
            rows = await client.embed("eye", asked)
            check(rows, await client.search("eye", asked[1], top=4), await client.search("eye", embedding=rows[1], top=4))

    service.run(awaited())
