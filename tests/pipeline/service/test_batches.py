"""Jobs over datasets: the encode stage's own shards, whatever stops on the way."""

import io
import json
import logging
import os
import signal
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from worldloom.pipeline.service.contract import BatchRequest
from worldloom.pipeline.service.errors import ServiceError
from worldloom.pipeline.service.job import LOCK, PIPELINE
from worldloom.pipeline.service.jobs import RECORD, STOPPED, Jobs, _locked
from worldloom.pipeline.service.sources import Sources
from worldloom.pipeline.service.tenants import Tenants, add_token
from worldloom.stages import disk
from worldloom.stages.shards import IndexedShard

ASKED = {"source": "run/data/0123456789abcdef", "tokenizers": {"words": "words", "view": "view"}}
SAMPLES = 2_000


def jobs_in(folder, root, most=3):
    return Jobs(folder, Sources({"run": root / "artifacts"}), most)


def ended(service, name, headers=None, seconds=300):
    until = time.monotonic() + seconds
    while (job := service("GET", f"/v1/batches/{name}", headers=headers).json())["state"] in ("queued", "running", "cancelling"):
        assert time.monotonic() < until, job
        time.sleep(0.1)
    return job


def running(service, name):
    until = time.monotonic() + 60
    while service("GET", f"/v1/batches/{name}").json()["state"] != "running":
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_job_leaves_the_very_shards_of_the_encode_stage_though_its_service_ends_and_it_is_killed(serve, tiny_root, tmp_path):
    headers = {"idempotency-key": "one"}
    with serve([str(tiny_root)], jobs=jobs_in(tmp_path, tiny_root)) as first:
        job = first("POST", "/v1/batches", json=ASKED, headers=headers)
        assert job.status_code == 202 and job.json()["state"] in ("queued", "running"), job.text
        name = job.json()["id"]
        running(first, name)
    with serve([str(tiny_root)], jobs=(jobs := jobs_in(tmp_path, tiny_root))) as second:
        running(second, name)
        os.kill(jobs._running[1].pid, signal.SIGKILL)
        assert ended(second, name)["error"] == "the process that ran it ended with -9"
        assert second("GET", f"/v1/batches/{name}/files").json()["error"]["code"] == "batch_unfinished"
        assert second("POST", f"/v1/batches/{name}/resume").json()["state"] in ("queued", "running")
        job = ended(second, name)
        assert job["state"] == "completed" and job["counts"]["samples"] == 24 and job["error"] is None, job
        assert second("POST", "/v1/batches", json=ASKED, headers=headers).json()["id"] == name
        other = second("POST", "/v1/batches", json={**ASKED, "max_reject_share": 0.5}, headers=headers)
        assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency_conflict"
        assert [one["id"] for one in second("GET", "/v1/batches").json()["data"]] == [name]
        names = [file["name"] for file in second("GET", f"/v1/batches/{name}/files").json()["data"]]
        done = tiny_root / "artifacts" / "tokens" / "0123456789abcdef"
        shards = [file for file in names if file.endswith((".tar", ".idx.npy"))]
        assert shards and {"DONE.json", "tokens/dataset.json"} <= set(names)
        for file in shards:
            assert second("GET", f"/v1/batches/{name}/files/{file}").content == (done / file).read_bytes(), file
        for strange in ("../job.json", "stage.json/../../x", "%2e%2e/x", "nothing"):
            assert second("GET", f"/v1/batches/{name}/files/{strange}").status_code == 404


def shard_of(*samples):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as file:
        for name, content in samples:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return written.getvalue()


def test_uploaded_shards_are_tokenized_and_refusals_are_accounted_for_and_are_nobody_elses_business(serve, tiny_root, tmp_path):
    tokens = {name: add_token(name, None, None) for name in ("ada", "bob")}
    tenants = Tenants([(name, line.split()[1], None) for name, (_, line) in tokens.items()])
    ada, bob = ({"authorization": f"Bearer {tokens[name][0]}"} for name in ("ada", "bob"))
    shard = shard_of(("b.txt", b"a blue square"), ("a.txt", b"a red circle"), ("c.txt", b"\xff"), ("__bad__.txt", b"x"), ("d.txt", b"dot"))
    with serve([str(tiny_root)], tenants=tenants, jobs=jobs_in(tmp_path, tiny_root)) as service:
        job = {"job": json.dumps({"tokenizers": {"words": "words"}, "max_reject_share": 0.5})}
        answer = service("POST", "/v1/batches", data=job, files=[("shard", ("x.tar", shard))], headers=ada)
        assert answer.status_code == 202, answer.text
        name = answer.json()["id"]
        for path in ("", "/files", "/files/DONE.json", "/cancel", "/resume"):
            method = "POST" if path in ("/cancel", "/resume") else "GET"
            theirs, missing = (service(method, f"/v1/batches/{which}{path}", headers=bob) for which in (name, "batch_0"))
            assert theirs.status_code == missing.status_code == 404
            assert {**theirs.json()["error"], "request_id": ""} == {**missing.json()["error"], "request_id": ""}
        assert service("GET", "/v1/batches", headers=bob).json()["data"] == []
        done = ended(service, name, ada)
        assert done["state"] == "completed" and done["counts"]["samples"] == 3, done
        texts = ["a red circle", "a blue square", "dot"]
        codes = service("POST", "/v1/tokenize", json={"tokenizer": "words", "input": texts}, headers=ada).json()["data"]
        place = tmp_path / "ada" / name / "artifacts" / "tokens"
        (found,) = place.glob("*/tokens/train/words/shard-000000.tar")
        made = IndexedShard(found, found.with_suffix(".idx.npy"), "uint16")
        assert made.keys == ["a", "b", "d"] and [made.codes(row).tolist() for row in range(3)] == [one["codes"] for one in codes]
        ledger = next((tmp_path / "ada" / name / "artifacts" / "data").glob("*/rejects/train/shard-000000.jsonl")).read_text()
        assert [json.loads(line)["code"] for line in ledger.splitlines()] == ["key_invalid", "text_not_utf8"]


def written(place):
    """Shards of tokens so far; folders may go while they are counted, which a glob does not bear."""
    return sum(name.endswith(".idx.npy") for _, _, names in os.walk(place / "artifacts" / "tokens") for name in names)


def at_work(service, place):
    """The id of the process that runs a job for a service, once it has written more shards of tokens than there were."""
    until, found = time.monotonic() + 300, []
    while not found:
        assert time.monotonic() < until
        processes = [path for path in Path("/proc").glob("[0-9]*") if str(place).encode() in content(path / "cmdline")]
        found = [int(path.name) for path in processes if content(path / "stat").rpartition(b")")[2].split()[1:2] == [b"%d" % service]]
    before = written(place)
    while written(place) <= before:
        assert time.monotonic() < until
        time.sleep(0.002)
    return found[0]


def content(path):
    with suppress(OSError):
        return path.read_bytes()
    return b""


def test_a_job_whose_service_is_killed_twice_is_one_job_that_tokenizes_every_sample_once(plain, free_port, tiny_root, tmp_path):
    texts = {f"{number:05d}": f"a {('red', 'blue', 'green')[number % 3]} circle {number}" for number in range(SAMPLES)}
    pairs = [(f"{key}.txt", text.encode()) for key, text in texts.items()]
    uploads = [("shard", (f"{at}.tar", shard_of(*pairs[at : at + 50]))) for at in range(0, SAMPLES, 50)]
    asked = {"data": {"job": json.dumps({"tokenizers": {"words": "words_codes"}})}, "files": uploads}
    again = {**asked, "headers": {"idempotency-key": "killed"}}
    (tokenizer,) = tiny_root.glob("artifacts/words_codes/*/tokenizer")
    with plain(tokenizer, tmp_path, free_port) as (process, client):
        name = client.request("POST", "/v1/batches", **again).json()["id"]
        place = tmp_path / "local" / name
        at_work(process.pid, place)
        process.kill()  # the job hears of it, and stops where it loses nothing, perhaps while the next service begins
    with plain(tokenizer, tmp_path, free_port) as (process, client):
        assert client.request("POST", "/v1/batches", **again).json()["id"] == name
        for each in (at_work(process.pid, place), process.pid):
            os.kill(each, signal.SIGKILL)
        assert not list(place.glob("artifacts/tokens/*/DONE.json"))
    with plain(tokenizer, tmp_path, free_port) as (_, client):
        assert client.request("POST", "/v1/batches", **again).json()["id"] == name
        assert ended(client.request, name)["counts"]["samples"] == SAMPLES
        assert [one["id"] for one in client.request("GET", "/v1/batches").json()["data"]] == [name]
        other = client.request("POST", "/v1/batches", **asked).json()["id"]
        assert ended(client.request, other)["state"] == "completed" and other != name
        made, whole = (client.request("GET", f"/v1/batches/{which}/files").json()["data"] for which in (name, other))
    (tokens,) = place.glob("artifacts/tokens/*/tokens/train/words")
    keys = [key for tar in sorted(tokens.glob("*.tar")) for key in IndexedShard(tar, tar.with_suffix(".idx.npy"), "uint16").keys]
    assert sorted(keys) == sorted(texts)
    assert {one["name"]: one["sha256"] for one in made} == {one["name"]: one["sha256"] for one in whole}
    lines = [json.loads(line) for line in (place / "log.jsonl").read_text().splitlines() if line.startswith("{")]
    assert sorted(line["stage"] for line in lines if line["event"] == "finished") == ["data", "tokens", "words_codes_tokenizer"]


def test_a_job_whose_client_left_before_it_was_answered_runs_all_the_same(serve, tiny_root, tmp_path):
    with serve([str(tiny_root)], jobs=(jobs := jobs_in(tmp_path, tiny_root))) as service:
        create = jobs.create

        def late(*arguments):
            made = create(*arguments)
            time.sleep(1)  # twice as long as the client waits
            return made

        jobs.create = late
        answer = service("POST", "/v1/batches", json=ASKED, headers={"x-request-timeout": "0.5"})
        assert answer.status_code == 504, answer.text
        (job,) = service("GET", "/v1/batches").json()["data"]
        assert ended(service, job["id"], seconds=60)["state"] == "completed"


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_whose_process_ends_without_a_word_has_failed(serve, tiny_root, tmp_path, monkeypatch, code):
    silent = tmp_path / "silent"
    silent.write_text(f"#!/bin/sh\nexit {code}\n")
    silent.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(silent))
    with serve([str(tiny_root)], jobs=jobs_in(tmp_path / "jobs", tiny_root)) as service:
        job = ended(service, service("POST", "/v1/batches", json=ASKED).json()["id"])
    assert (job["state"], job["error"]) == ("failed", f"the process that ran it ended with {code}")


def test_a_job_that_cannot_be_begun_does_not_keep_the_others_from_running(serve, tiny_root, tmp_path, caplog):
    jobs, begun = jobs_in(tmp_path, tiny_root), []

    async def run(job):
        begun.append(job.id)
        if len(begun) == 1:
            raise OSError(28, "No space left on device")
        jobs._fail(job, "as it should")

    jobs._run = run
    with caplog.at_level(logging.ERROR), serve([str(tiny_root)], jobs=jobs) as service:
        names = [service("POST", "/v1/batches", json=ASKED).json()["id"] for _ in range(2)]
        assert [ended(service, name)["error"] for name in names] == ["it could not be run: OSError", "as it should"]
    assert begun == names and f'"job": "{names[0]}", "error": "OSError"' in caplog.text


def test_a_job_that_a_signal_has_stopped_goes_on_by_itself(serve, tiny_root, tmp_path):
    with serve([str(tiny_root)], jobs=(jobs := jobs_in(tmp_path, tiny_root))) as service:
        name = service("POST", "/v1/batches", json=ASKED).json()["id"]
        running(service, name)
        stopped = jobs._running[1]
        stopped.send_signal(signal.SIGTERM)
        assert ended(service, name)["state"] == "completed"
        assert stopped.returncode in STOPPED


def test_what_a_killed_service_had_begun_to_write_is_removed_by_the_next_but_not_what_another_writes(tiny, tiny_root, tmp_path):
    dead, alive = (tmp_path / name / "uploads" / "shard-000000.tar" for name in (".dead", ".alive"))
    for shard in (dead, alive):
        shard.parent.mkdir(parents=True)
        shard.write_bytes(b"x")
    (dead.parents[1] / LOCK).touch()
    lock = _locked(alive.parents[1])
    jobs = jobs_in(tmp_path, tiny_root)

    async def start():
        jobs.start()
        await jobs.stop()

    tiny.run(start())
    os.close(lock)
    assert [path.name for path in tmp_path.iterdir()] == [".alive"]


def test_a_job_that_cannot_be_is_refused_before_it_begins(serve, tiny_root, tmp_path):
    with serve([str(tiny_root)], jobs=jobs_in(tmp_path, tiny_root)) as service:
        unknown = service("POST", "/v1/batches", json={**ASKED, "tokenizers": {"view": "nothing"}})
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "tokenizer_unknown"
        text_only = service("POST", "/v1/batches", json={"source": "run/view_codes", "tokenizers": {"words": "words"}})
        assert text_only.status_code == 422 and text_only.json()["error"]["code"] == "batch_invalid"
        no_source = service("POST", "/v1/batches", json={"tokenizers": {"words": "words"}})
        assert no_source.status_code == 400 and no_source.json()["error"]["param"] == "source"
        assert not list(tmp_path.glob("*/*")) and not list(tmp_path.glob(".*"))


def test_without_a_folder_for_them_there_are_no_batches(tiny):
    answer = tiny("POST", "/v1/batches", json=ASKED)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "batches_off"


@pytest.fixture
def resting(tiny, tiny_root, tmp_path):
    """Jobs that nobody works on, and a way to make one."""
    jobs = jobs_in(tmp_path, tiny_root, most=2)
    places = {place.name: place for place in tiny.engine.served.tokenizers}

    def create(tenant="local", key=None, pay=lambda: None, **asked):
        return jobs.create(tenant, BatchRequest(**{**ASKED, **asked}), [], key, places, tiny.engine.tokenizers, pay)

    jobs._enqueue = lambda job: None
    return jobs, create


def test_a_cancelled_job_does_not_run_until_it_is_resumed(resting):
    jobs, create = resting
    job = create()
    assert jobs.about(job).state == "queued" and jobs.about(job).progress is None
    jobs.cancel(job)
    assert jobs.about(job).state == "cancelled"
    jobs.resume(job)
    assert jobs.about(job).state == "queued"


def test_unfinished_jobs_of_a_tenant_are_bounded(resting):
    jobs, create = resting
    first = create()
    create()
    with pytest.raises(ServiceError, match="2 jobs of this token are not finished"):
        create()
    create(tenant="other")
    jobs.cancel(first)
    create()


def test_the_same_key_gives_one_job_to_each_tenant(resting):
    _, create = resting
    one, two, other = create(key="k"), create(key="k"), create(tenant="other", key="k")
    assert one == two and one.id != other.id
    with pytest.raises(ServiceError, match="used for another request"):
        create(key="k", max_reject_share=0.25)


def test_of_requests_with_one_key_at_once_one_pays_for_the_one_job(resting, monkeypatch):
    _, create = resting
    paid, both = [], threading.Barrier(2)
    write = disk.write_file

    def together(path, content):
        if path.name == RECORD:
            both.wait(60)  # neither job is there, when the other is about to be
        write(path, content)

    monkeypatch.setattr(disk, "write_file", together)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda pay: create(key="k", pay=pay), [lambda: paid.append("one"), lambda: paid.append("two")])
    assert one.id == two.id and len(paid) == 1


def test_there_is_no_job_that_could_not_be_paid_for(resting):
    jobs, create = resting

    def broke():
        raise ServiceError("quota_exceeded", 429, "there is nothing left")

    with pytest.raises(ServiceError, match="there is nothing left"):
        create(key="k", pay=broke)
    assert jobs.of("local") == [] and not list(jobs.folder.glob(".*"))
    assert jobs.about(create(key="k")).state == "queued"


@pytest.mark.parametrize("unused", [{"caption": "none"}, {"validation_share": 0.5}, {"shard_size": 4}], ids=str)
def test_what_is_for_folders_of_files_is_refused_for_shards(resting, unused):
    _, create = resting
    with pytest.raises(ServiceError, match=f"batch_invalid: {next(iter(unused))} is for folders of files") as refused:
        create(**unused)
    assert refused.value.status == 422 and refused.value.param == next(iter(unused))


def test_what_is_for_folders_of_files_is_said_to_their_import(resting, tmp_path):
    jobs, create = resting
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").touch()
    jobs.sources.folders["mine"] = tmp_path
    job = create(source="mine/files", tokenizers={"view": "view"}, caption="none", validation_share=0.5, shard_size=4)
    data = json.loads((jobs.folder / "local" / job.id / PIPELINE).read_text())["stages"]["data"]
    assert (data["run"], data["caption"], data["validation_share"], data["shard_size"]) == ("import_folder", "none", 0.5, 4)


def test_a_job_is_found_by_its_folder_alone(resting, monkeypatch):
    jobs, create = resting
    job, _, _ = create(), create(), create(tenant="other")
    read = []
    monkeypatch.setattr("worldloom.pipeline.service.jobs._read", lambda place: read.append(place) or job)
    assert jobs.find("local", job.id) == job and read == [jobs.folder / "local" / job.id]
    for tenant, name in (("other", job.id), ("local", f"../local/{job.id}"), ("local", ".."), ("local", f"batch_{'0' * 32}")):
        with pytest.raises(ServiceError, match="there is no such batch"):
            jobs.find(tenant, name)
    assert len(read) == 1


def test_folders_of_jobs_are_read_beside_the_loop(serve, tiny_root, tmp_path, monkeypatch):
    jobs, threads = jobs_in(tmp_path, tiny_root), []
    jobs.start = lambda: None  # they are made, and not worked on

    def noted(does):
        return lambda *given: (threads.append(threading.current_thread()), does(*given))[1]

    for name in ("find", "about", "files", "file"):
        monkeypatch.setattr(jobs, name, noted(getattr(jobs, name)))
    with serve([str(tiny_root)], jobs=jobs) as service:
        job = service("POST", "/v1/batches", json=ASKED).json()["id"]
        for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/resume"), ("GET", "/files"), ("GET", "/files/x")):
            service(method, f"/v1/batches/{job}{path}")
        assert len(threads) == 11 and service._thread not in threads


def test_a_job_is_a_pipeline_file_that_says_where_everything_is(resting, tiny_root):
    jobs, create = resting
    job = create()
    pipeline = json.loads((jobs.folder / "local" / job.id / PIPELINE).read_text())
    assert pipeline["stages"]["data"]["run"] == "import_webdataset" and pipeline["stages"]["tokens"]["run"] == "encode_dataset"
    assert pipeline["stages"]["data"]["path"] == str(tiny_root / "artifacts" / "data" / "0123456789abcdef" / "data")
