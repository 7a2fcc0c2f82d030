"""What a stage leaves: a folder `<root>/artifacts/<stage>/<fingerprint>`, immutable once DONE.json stands in it.

stage.json says what is being made and is created first; DONE.json names every file with its size and sha256 and is created
last. Both are created once and never changed. Nothing in DONE.json differs between two runs of the same stage.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from worldloom.stages import disk
from worldloom.stages.kind import StageKind
from worldloom.stages.numerics import numerics_of_this_process, same_numerics
from worldloom.stages.settings import StageSettings, dump
from worldloom.stages.worker import Worker

FORMAT = 1
WORKING = ("staging", "objects", "logs", "checkpoints")  # folders that may differ between runs
RECORDS = ("stage.json", "numerics.json", "DONE.json")


class ArtifactError(ValueError):
    """An artifact that is not there, not finished or not whole."""


class InputChanged(ArtifactError):
    """An input holds other bytes than its DONE.json says."""


class Busy(RuntimeError):
    """Another run works on the same artifact."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. Only what DONE.json names is part of it."""

    folder: Path
    name: str  # the stage that left it
    kind: str  # that stage's verb
    produces: str
    fingerprint: str
    settings: dict[str, Any]
    counts: dict[str, Any]
    inputs: dict[str, dict[str, str]]  # field -> {"stage", "fingerprint"}
    manifest: dict[str, dict[str, Any]]  # file -> {"bytes", "sha256"}

    @classmethod
    def open(cls, folder: Path) -> "Artifact":
        """Reads stage.json and DONE.json; ArtifactError if the artifact is missing, unfinished or damaged."""
        folder = Path(folder).absolute()
        stage = _record(folder, "stage.json", "it was never begun")
        done = _record(folder, "DONE.json", "the stage has not finished: run the pipeline again, it goes on where it stopped")
        begun = cls._of(folder, stage)
        if done.get("fingerprint") != begun.fingerprint:
            raise ArtifactError(f"{folder}: DONE.json and stage.json speak of different artifacts; remove the folder and run again")
        return replace(begun, counts=done["counts"], manifest=done["files"])

    @classmethod
    def begun(cls, folder: Path) -> "Artifact":
        """Reads stage.json alone, of a stage that may still be at work: settings and inputs, no files yet; ArtifactError without one."""
        folder = Path(folder).absolute()
        return cls._of(folder, _record(folder, "stage.json", "it was never begun"))

    @classmethod
    def _of(cls, folder: Path, stage: Mapping[str, Any]) -> "Artifact":
        return cls(
            folder=folder,
            name=stage["stage"],
            kind=stage["kind"],
            produces=stage["produces"],
            fingerprint=stage["fingerprint"],
            settings=stage["settings"],
            counts={},
            inputs=stage["inputs"],
            manifest={},
        )

    def input(self, field: str) -> "Artifact":
        """The artifact that `field` of this one's settings referred to: "data", "tokenizers.frame"."""
        if field not in self.inputs:
            raise ArtifactError(f"{self.name} ({self.kind}) has no input {field!r}; it has {', '.join(sorted(self.inputs)) or 'none'}")
        place = self.inputs[field]
        return Artifact.open(self.folder.parent.parent / place["stage"] / place["fingerprint"])

    def files(self) -> tuple[str, ...]:
        """Every file of the artifact, by its name below `folder`, sorted."""
        return tuple(sorted(self.manifest))

    def path(self, name: str) -> Path:
        """A file that DONE.json names; its size is checked, its content is not (`content` does)."""
        if name not in self.manifest:
            raise ArtifactError(f"{self.name} has no file {name!r}")
        path = self.folder / name
        expected = self.manifest[name]["bytes"]
        try:
            actual = path.stat().st_size
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing; remove {self.folder} and run again") from None
        if actual != expected:
            raise ArtifactError(f"{path} has {actual} bytes, DONE.json says {expected}; remove {self.folder} and run again")
        return path

    def content(self, name: str) -> bytes:
        """A whole file, its sha256 checked; InputChanged if it holds other bytes than when the artifact was finished."""
        data = self.path(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.manifest[name]["sha256"]:
            raise InputChanged(f"{self.folder / name} is not what was committed; remove {self.folder} and run again")
        return data

    @cached_property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(entry["bytes"] for entry in self.manifest.values())


def begin(
    out: Path,
    kind: StageKind,
    name: str,
    settings: StageSettings,
    inputs: Mapping[str, Artifact],
    fingerprint: str,
    outside: Mapping[str, str] | None = None,
) -> None:
    """Creates the artifact's folders and its stage.json; called again for the same stage it changes nothing.

    `outside` holds the digests of data from outside as they went into the fingerprint: the stage compares what it really read.
    """
    for folder in ("staging/attempts", "staging/commits", "staging/progress", "objects", "logs"):
        disk.make_folder(out / folder)
    identity = {
        "format": FORMAT,
        "stage": name,
        "kind": kind.name,
        "version": kind.version,
        "produces": kind.produces,
        "fingerprint": fingerprint,
        "inputs": {field: {"stage": given.name, "fingerprint": given.fingerprint} for field, given in inputs.items()},
        "outside": dict(outside or {}),
    }
    if disk.write_new_file(out / "stage.json", _readable({**identity, "settings": dump(settings)})):
        return
    standing = _record(out, "stage.json", "it was never begun")
    for field, value in identity.items():
        if standing.get(field) != value:
            raise ArtifactError(
                f"{out} was begun with {field} = {standing.get(field)!r}, now it is {value!r}; remove the folder and run again"
            )


def complete(out: Path, counts: dict[str, Any]) -> None:
    """Makes every file of the artifact durable and writes DONE.json; ArtifactError if it stands there with another content."""
    stage = _record(out, "stage.json", "it was never begun")
    known = _committed_digests(out)
    manifest: dict[str, dict[str, Any]] = {}
    folders = {out}
    for path in content_files(out):
        name = path.relative_to(out).as_posix()
        folders.add(path.parent)
        if (sha256 := known.get(name)) is None or not path.samefile(out / "objects" / sha256):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            sha256 = disk.digest(path)
        manifest[name] = {"bytes": path.stat().st_size, "sha256": sha256}
    for folder in sorted(folders):
        disk.fsync_folder(folder)
    done = _readable({"format": FORMAT, "fingerprint": stage["fingerprint"], "counts": counts, "files": manifest})
    if not disk.write_new_file(out / "DONE.json", done) and (out / "DONE.json").read_bytes() != done:
        raise ArtifactError(f"{out}: the stage finished before with another result; remove the folder and run again")


def content_files(out: Path) -> Iterator[Path]:
    """Every file that belongs to the artifact's content."""
    for path in sorted(out.rglob("*")):
        top = path.relative_to(out).parts[0]
        if top not in WORKING and top not in RECORDS and not path.name.startswith(".") and path.is_file():
            yield path


def clean(out: Path) -> None:
    """Removes what a finished artifact no longer needs; the final names keep the bytes."""
    assert (out / "DONE.json").exists()
    for folder in ("objects", "staging"):
        shutil.rmtree(out / folder, ignore_errors=True)


def discard(out: Path) -> None:
    """Empties an artifact that is to be made again; only under its lock. Killed on the way, it is an unfinished one."""
    disk.unlink(out / "DONE.json")
    disk.fsync_folder(out)
    for path in out.iterdir():
        if path.is_dir() and path.name != "staging":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Holds the artifact for this process; Busy, naming the holder, if another run works on it. The kernel frees it at death."""
    disk.make_folder(out / "staging")
    path = out / "staging" / "run.lock"
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held beyond this function's own block
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise Busy(f"{out} is being worked on by {holder}; wait for it or stop it") from None
        if _same(file.fileno(), path):  # else its folder was cleaned between opening and locking: lock the new one
            break
        file.close()
        disk.make_folder(path.parent)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield
    finally:
        file.close()


def execute(kind: StageKind, name: str, settings: StageSettings, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> Artifact:
    """Begins, runs, finishes and completes a stage in this process, whose folder `out` is named by the fingerprint."""
    if not (out / "DONE.json").exists():
        begin(out, kind, name, settings, inputs, fingerprint=out.name)
        with lock(out):
            same_numerics(out, numerics_of_this_process(worker.threads))
            kind.run(settings, inputs, out, worker)
            complete(out, kind.finish(settings, inputs, out))
            clean(out)
    return Artifact.open(out)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _committed_digests(out: Path) -> dict[str, str]:
    """Final name -> sha256, for the files that shard commits have hashed already."""
    digests: dict[str, str] = {}
    for path in sorted((out / "staging" / "commits").rglob("*.json")):
        digests.update({name: entry["sha256"] for name, entry in json.loads(path.read_bytes())["files"].items()})
    return digests


def _record(folder: Path, name: str, missing: str) -> dict[str, Any]:
    try:
        record = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{folder} has no {name}: {missing}") from None
    except ValueError:
        raise ArtifactError(f"{folder / name} is damaged; remove the folder and run again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ArtifactError(f"{folder / name} is not of format {FORMAT}; it was written by another version of worldloom")
    return record


def _readable(value: dict[str, Any]) -> bytes:
    """JSON for people and diff: sorted keys, indented, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
