"""Jobs over datasets: the encode stage's own shards, whatever stops on the way."""

import time

import pytest

from worldloom.pipeline.service.jobs import Jobs
from worldloom.pipeline.service.sources import Sources


@pytest.fixture
def service(serve, tiny_root, tmp_path):
    """The tiny run, served with batches over its own artifacts."""
    jobs = Jobs(tmp_path / "jobs", Sources({"run": tiny_root / "artifacts"}), most=3)
    with serve([str(tiny_root)], jobs=jobs) as asking:
        yield asking


def ended(service, name, seconds=300):
    until = time.monotonic() + seconds
    while (job := service("GET", f"/v1/batches/{name}").json())["state"] in ("queued", "running", "cancelling"):
        assert time.monotonic() < until, job
        time.sleep(0.1)
    return job


ASKED = {"source": "run/data/0123456789abcdef", "tokenizers": {"words": "words", "view": "view"}}


def test_a_job_over_a_dataset_leaves_the_very_shards_of_the_encode_stage(service, tiny_root):
    job = service("POST", "/v1/batches", json=ASKED)
    assert job.status_code == 202, job.text
    job = ended(service, job.json()["id"])
    assert job["state"] == "completed" and job["counts"]["samples"] == 24, job
    names = [file["name"] for file in service("GET", f"/v1/batches/{job['id']}/files").json()["data"]]
    done = tiny_root / "artifacts" / "tokens" / "0123456789abcdef"
    shards = [name for name in names if name.endswith((".tar", ".idx.npy"))]
    assert shards and "DONE.json" in names
    for name in shards:
        assert service("GET", f"/v1/batches/{job['id']}/files/{name}").content == (done / name).read_bytes(), name
