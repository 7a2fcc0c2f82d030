"""Batches: datasets tokenized by a pipeline of their own, whose folder is all there is to know of them, so that they outlive the service.

    <jobs>/<tenant>/<id>/   job.json        what was asked, made once
                            pipeline.yaml   import, tokenizers, encode_dataset: `worldloom run` and `status` work on it, too
                            uploads/        shards that came with the request
                            cancelled, failed.json, artifacts/, runs/ ...

A job is made by renaming a whole folder to its final name, which follows from the Idempotency-Key: whoever asks twice has one job.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from pydantic import JsonValue

from worldloom.pipeline.config import parse_pipeline
from worldloom.pipeline.locate import locate
from worldloom.pipeline.overview import overview
from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.service.contract import BatchFile, BatchInfo, BatchProgress, BatchRequest, TokenizerInfo
from worldloom.pipeline.service.errors import ServiceError, not_found
from worldloom.pipeline.service.job import FAILURE, LOCK, PIPELINE, TOKENS
from worldloom.pipeline.service.served import TokenizerPlace
from worldloom.pipeline.service.sources import Sources
from worldloom.stages import disk
from worldloom.stages.artifact import Artifact, ArtifactError
from worldloom.stages.rejects import InputRejected
from worldloom.stages.tar_members import members_of

log = logging.getLogger("worldloom.service")

RECORD, CANCELLED, UPLOADS = "job.json", "cancelled", "uploads"
MANIFEST = "DONE.json"
State = Literal["queued", "running", "completed", "failed", "cancelling", "cancelled"]
GRACE = 20.0  # seconds from asking a job to stop to making it
STOPPED = (3, -signal.SIGTERM, -signal.SIGINT)  # before its end, by a signal that meant the service, too, or it alone
_NAME = re.compile(r"batch_[0-9a-f]{32}")
OF_FOLDERS = ("caption", "validation_share", "shard_size")  # of a request: what shards have already


class Job(NamedTuple):
    """What job.json says."""

    id: str
    tenant: str
    created: float
    digest: str  # sha256 of the request
    request: BatchRequest


class Jobs:
    """All jobs of a service; one runs at a time, the others wait in the order in which they came."""

    def __init__(self, folder: Path | None, sources: Sources, most: int) -> None:
        """Without a folder there are no batches. `most` unfinished ones a tenant."""
        self.folder, self.sources, self.most = folder, sources, most
        self._waiting: asyncio.Queue[Job] = asyncio.Queue()
        self._queued: set[str] = set()
        self._running: tuple[str, asyncio.subprocess.Process] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._making = threading.Lock()  # of several requests with one key, one pays

    def start(self) -> None:
        """Goes on with what is unfinished, and removes what requests of a killed service had begun to write."""
        if self.folder is None:
            return
        disk.make_folder(self.folder)
        for draft in self.folder.glob(".*"):
            _remove_orphan(draft)
        for path in sorted(self.folder.glob(f"*/*/{RECORD}"), key=lambda path: json.loads(path.read_bytes())["created"]):
            job = _read(path.parent)
            if self._state(job) in ("queued", "cancelling"):
                self._enqueue(job)
        self._loop = asyncio.get_running_loop()
        self._worker = self._loop.create_task(self._work())

    async def stop(self) -> None:
        """Stops what runs where it loses nothing; the next service goes on with it."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
            self._worker = None

    def create(
        self,
        tenant: str,
        request: BatchRequest,
        uploads: Sequence[BinaryIO],
        key: str | None,
        places: Mapping[str, TokenizerPlace],
        known: Mapping[str, TokenizerInfo],
        pay: Callable[[], None],
    ) -> Job:
        """A new job, which runs when its turn comes, or the one that was made of the same Idempotency-Key. ServiceError.

        A new one is paid for before it is there: where `pay` raises, there is none.
        Blocks while it writes; for a thread.
        """
        root = self._root()
        name = f"batch_{uuid.uuid4().hex if key is None else hashlib.sha256(f'{tenant} {key}'.encode()).hexdigest()[:32]}"
        digest = hashlib.sha256(request.model_dump_json().encode())
        place = root / tenant / name
        draft = root / f".{uuid.uuid4().hex}"
        (draft / UPLOADS).mkdir(parents=True)
        lock = _locked(draft)
        try:
            for number, upload in enumerate(uploads):
                digest.update(_store(upload, draft / UPLOADS / f"shard-{number:06d}.tar", number))
            disk.fsync_folder(draft / UPLOADS)
            if place.exists():
                return self._same(place, digest.hexdigest())
            if sum(self._state(job) in ("queued", "running") for job in self._jobs(tenant)) >= self.most:
                raise ServiceError("busy", 429, f"{self.most} jobs of this token are not finished; wait for one, or cancel it", None, 30.0)
            data = place / UPLOADS if uploads else self._source(request)
            text = pipeline_of(name, place, request, data, places, known)
            job = Job(name, tenant, time.time(), digest.hexdigest(), request)
            disk.write_file(draft / PIPELINE, text.encode())
            record = {"id": name, "created": job.created, "digest": job.digest, "request": request.model_dump(mode="json")}
            disk.write_file(draft / RECORD, disk.canonical_json(record))
            disk.make_folder(place.parent)
            with self._making:
                if place.exists():  # another request with the same key was faster
                    return self._same(place, digest.hexdigest())
                pay()
                try:
                    os.rename(draft, place)
                except OSError:  # another service's was
                    return self._same(place, digest.hexdigest())
            disk.fsync_folder(place.parent)
            if self._loop is not None:  # from here, since whoever asked may have left meanwhile: the job is made all the same
                self._loop.call_soon_threadsafe(self._enqueue, job)
            return job
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(lock)

    def of(self, tenant: str) -> list[BatchInfo]:
        """A tenant's jobs, newest first."""
        return [self.about(job) for job in self._jobs(tenant)]

    def find(self, tenant: str, name: str) -> Job:
        """ServiceError(not_found), the same for another tenant's."""
        place = self._root() / tenant / name
        if not _NAME.fullmatch(name) or not (place / RECORD).is_file():
            raise not_found("batch")
        return _read(place)

    def cancel(self, job: Job) -> None:
        """It stops where it loses nothing; a finished one stays as it is."""
        if self._state(job) in ("queued", "running"):
            disk.write_new_file(self._place(job) / CANCELLED, b"")
            if self._running is not None and self._running[0] == job.id:
                with contextlib.suppress(ProcessLookupError):
                    self._running[1].send_signal(signal.SIGTERM)

    def resume(self, job: Job) -> None:
        """A failed, cancelled or stopped one goes on where it stopped."""
        if self._state(job) in ("failed", "cancelled", "queued"):
            disk.unlink(self._place(job) / CANCELLED)
            disk.unlink(self._place(job) / FAILURE)
            self._enqueue(job)

    def about(self, job: Job) -> BatchInfo:
        """How it stands."""
        place, state = self._place(job), self._state(job)
        progress, counts = None, dict[str, JsonValue]()
        with contextlib.suppress(ConfigError, ArtifactError, OSError):
            for view in overview(locate(place)):
                if view.progress is not None:
                    progress = BatchProgress(stage=view.name, done=view.progress.done, total=view.progress.total, unit=view.progress.unit)
                if view.name == TOKENS and view.artifact is not None:
                    counts = dict(view.artifact.counts)
        return BatchInfo(
            id=job.id,
            state=state,
            created=job.created,
            request=job.request,
            progress=progress if state != "completed" else None,
            counts=counts,
            error=json.loads((place / FAILURE).read_bytes())["message"] if state == "failed" else None,
        )

    def files(self, job: Job) -> list[BatchFile]:
        """The files of the result; ServiceError(batch_unfinished) before there is one."""
        artifact = self._result(job)
        about = [
            BatchFile(name=name, bytes=artifact.manifest[name]["bytes"], sha256=artifact.manifest[name]["sha256"])
            for name in artifact.files()
        ]
        manifest = artifact.folder / MANIFEST
        return [*about, BatchFile(name=MANIFEST, bytes=manifest.stat().st_size, sha256=disk.digest(manifest))]

    def file(self, job: Job, name: str) -> Path:
        """The path of one of them: a name is looked up in the manifest, never on the disk."""
        artifact = self._result(job)
        if name == MANIFEST:
            return artifact.folder / MANIFEST
        if name not in artifact.manifest:
            raise not_found("file")
        return artifact.path(name)

    def _result(self, job: Job) -> Artifact:
        if self._state(job) != "completed":
            raise ServiceError("batch_unfinished", 409, "the job has no result yet; ask for its state, and come again")
        return Artifact.open(_tokens(self._place(job)))

    def _root(self) -> Path:
        if self.folder is None:
            raise ServiceError("batches_off", 404, "this service makes no batches; start it with --jobs FOLDER")
        return self.folder

    def _place(self, job: Job) -> Path:
        return self._root() / job.tenant / job.id

    def _jobs(self, tenant: str) -> list[Job]:
        found = [_read(path.parent) for path in (self._root() / tenant).glob(f"*/{RECORD}")]
        return sorted(found, key=lambda job: job.created, reverse=True)

    def _same(self, place: Path, digest: str) -> Job:
        job = _read(place)
        if job.digest != digest:
            raise ServiceError(
                "idempotency_conflict", 409, "this Idempotency-Key was used for another request; use a new one", "Idempotency-Key"
            )
        return job

    def _source(self, request: BatchRequest) -> Path:
        if request.source is None:
            raise ServiceError("request_invalid", 400, "a batch needs a source, or uploaded shards", "source")
        folder = self.sources.find(request.source)
        return folder / "data" if (folder / "dataset.json").is_file() else folder

    def _state(self, job: Job) -> State:
        place, at_work = self._place(job), self._running  # read once: threads ask, too
        running = at_work is not None and at_work[0] == job.id
        if not running and _is_complete(place):
            return "completed"
        if (place / CANCELLED).exists():
            return "cancelling" if running else "cancelled"
        if (place / FAILURE).exists() and not running:
            return "failed"
        return "running" if running else "queued"

    def _enqueue(self, job: Job) -> None:
        if job.id not in self._queued:
            self._queued.add(job.id)
            self._waiting.put_nowait(job)

    async def _work(self) -> None:
        while True:
            job = await self._waiting.get()
            self._queued.discard(job.id)
            try:
                if self._state(job) == "queued":
                    await self._run(job)
            except Exception as error:  # whatever is wrong with one job, the others are run
                log.error(json.dumps({"event": "job_failed", "job": job.id, "error": type(error).__name__}))
                with contextlib.suppress(OSError):
                    self._fail(job, f"it could not be run: {type(error).__name__}")

    async def _run(self, job: Job) -> None:
        place = self._place(job)
        with open(place / "log.jsonl", "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worldloom.pipeline.service.job", str(place), str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._running = (job.id, process)
        try:
            if (place / CANCELLED).exists():  # while the process began, when there was none to signal yet
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            code = await process.wait()
            if (place / CANCELLED).exists():
                return
            if code in STOPPED:
                self._enqueue(job)
            elif not _is_complete(place) and not (place / FAILURE).exists():
                self._fail(job, f"the process that ran it ended with {code}")
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), GRACE)
            except TimeoutError:
                process.kill()
                await process.wait()
            raise
        finally:
            self._running = None

    def _fail(self, job: Job, message: str) -> None:
        disk.write_file(self._place(job) / FAILURE, json.dumps({"message": message}).encode())


def pipeline_of(
    name: str, root: Path, request: BatchRequest, data: Path, places: Mapping[str, TokenizerPlace], known: Mapping[str, TokenizerInfo]
) -> str:
    """The job as a pipeline file; ServiceError(batch_invalid) where there can be none."""
    for stream, tokenizer in request.tokenizers.items():
        if tokenizer not in known:
            raise ServiceError(
                "tokenizer_unknown", 404, f"there is no such tokenizer; there are {', '.join(known)}", f"tokenizers.{stream}"
            )
    stages: dict[str, Any] = {}
    tars = next((True for _ in data.rglob("*.tar")), False) or data.name == UPLOADS
    if tars and (unused := next((field for field in OF_FOLDERS if field in request.model_fields_set), None)):
        raise ServiceError("batch_invalid", 422, f"{unused} is for folders of files; shards are taken as they are: leave it out", unused)
    stages["data"] = (
        {"run": "import_webdataset", "path": str(data), "max_reject_share": request.max_reject_share}
        if tars
        else {
            "run": "import_folder",
            "path": str(data),
            "caption": request.caption,
            "validation_share": request.validation_share,
            "max_reject_share": request.max_reject_share,
            "shard_size": request.shard_size,
        }
    )
    for tokenizer in sorted(set(request.tokenizers.values())):
        stages[f"{tokenizer}_tokenizer"] = {"run": "import_tokenizer", "layout": "worldloom", "checkpoint": str(places[tokenizer].folder)}
    encoders = {stream: f"{tokenizer}_tokenizer" for stream, tokenizer in request.tokenizers.items()}
    stages[TOKENS] = {"run": "encode_dataset", "data": "data", "tokenizers": encoders, "max_reject_share": request.max_reject_share}
    streams = {stream: known[tokenizer].stream.model_dump(mode="json") for stream, tokenizer in request.tokenizers.items()}
    clocks = [about.get("clock") for about in streams.values()]
    for about in streams.values():
        if about.get("clock") is not None and clocks.count(about["clock"]) < 2:
            about["clock"] = None  # nothing is left that its steps could be woven with
    tree = {"name": name.replace("_", "-"), "root": str(root), "streams": streams, "stages": stages}
    text = json.dumps(tree, indent=1)
    try:
        parse_pipeline(text, "the job")
    except ConfigError as error:
        raise ServiceError("batch_invalid", 422, "; ".join(error.problems)) from None
    return text


def _is_complete(place: Path) -> bool:
    tokens = _tokens(place)
    return tokens is not None and (tokens / MANIFEST).is_file()


def _tokens(place: Path) -> Any:
    """Where the result is, or will be; None before the first run has settled it."""
    try:
        return locate(place).artifacts[TOKENS]
    except (ConfigError, KeyError):
        return None


def _locked(draft: Path) -> int:
    """A descriptor with the lock of a job's folder: it says that somebody still writes there, under either name."""
    lock = os.open(draft / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _remove_orphan(draft: Path) -> None:
    """Removes a draft whose service died; another service may be writing into its own."""
    with contextlib.suppress(OSError), open(draft / LOCK, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(draft, ignore_errors=True)


def _read(place: Path) -> Job:
    record = json.loads((place / RECORD).read_bytes())
    request = BatchRequest.model_validate_json(json.dumps(record["request"]))
    return Job(record["id"], place.parent.name, record["created"], record["digest"], request)


def _store(upload: BinaryIO, path: Path, number: int) -> bytes:
    """Writes a shard; its sha256. ServiceError where it is no tar that could be read."""
    sha256 = hashlib.sha256()
    with open(path, "wb") as file:
        while chunk := upload.read(1 << 20):
            sha256.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    try:
        members_of(path)
    except InputRejected as refused:
        raise ServiceError.of(refused, f"shard[{number}]") from None
    return sha256.digest()
