"""Imports tars in WebDataset layout, `<key>.<field>`; every sample that is refused is listed with the reason.

A field is a stream's name with an ending (`rgb.png`), or an ending alone (`png`) where one stream only has files of it. Contents are kept
as they came, once it is seen that they can be read. Keys stand in one tar in any order, but all members of a key together.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, StageSettings, Stream

if TYPE_CHECKING:
    from worldloom.stages.artifact import Artifact
    from worldloom.stages.commit import Commits
    from worldloom.stages.tar_members import Member
    from worldloom.stages.worker import Worker

SPLITS = ("train", "validation", "held_out")
FORBIDDEN = frozenset({"pkl", "pickle", "pth", "pt", "pyd"})  # endings of what runs code when it is read
LISTED = 50  # refused samples on the card


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


class ImportWebdataset(StageSettings):
    """Tars of samples: those in train/, validation/ and held_out/ are these splits, all others are training."""

    run: Literal["import_webdataset"]
    # Where the folder lies cannot change the output; what is in it is part of the fingerprint by its digest.
    path: Annotated[str, AfterValidator(_absolute), NOT_IN_OUTPUT, Field(description="folder with the tars, below it too")]
    streams: dict[str, Stream] = Field(default={}, description="filled from the pipeline's own streams")
    max_reject_share: Annotated[float, Field(ge=0, le=1, description="share of samples that may be refused before the stage fails")] = 0.1


class Shard(NamedTuple):
    """One tar, and the shard that is made of it."""

    split: str
    name: str
    tar: Path

    @property
    def task(self) -> str:
        return f"{self.split}/{self.name}"


class Sample(NamedTuple):
    """One key's members, by stream, and what is wrong with it by its names alone: code and detail."""

    key: str
    members: dict[str, tuple["Member", str]]  # stream -> member and its ending
    refused: tuple[str, str] | None


def run(settings: ImportWebdataset, inputs: Mapping[str, "Artifact"], out: Path, worker: "Worker") -> None:
    """Imports this worker's shards that are not committed yet."""
    from worldloom.stages.commit import Commits

    commits, shards = Commits.of(out), plan(settings)
    for done, shard in enumerate(worker.share(shards), 1):
        if commits.find(shard.task) is None:
            import_tar(settings, shard, commits)
        worker.report(done, len(shards), "shards", {})
        worker.check()


def finish(settings: ImportWebdataset, inputs: Mapping[str, "Artifact"], out: Path) -> dict[str, Any]:
    """Names the shards and writes dataset.json and the card."""
    from worldloom.stages.card import Card, Table, Text, write_card
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset_writer import write_dataset_json

    shards = plan(settings)
    totals = Commits.of(out).finish([shard.task for shard in shards], settings.max_reject_share)
    if not totals.n_out:
        raise ValueError(f"none of the {totals.n_in} samples in {settings.path} could be read; see {out / 'rejects'}")
    splits = {
        split: [(shard.name, totals.shards[shard.task].n_out) for shard in shards if shard.split == split]
        for split in dict.fromkeys(shard.split for shard in shards)
    }
    write_dataset_json(out, settings.streams, splits)
    rows = tuple((split, len(members), sum(count for _, count in members)) for split, members in splits.items())
    blocks = (
        Text(text=f"{totals.n_out:,} samples from {len(shards):,} tars; {totals.n_rejected:,} refused."),
        Table(columns=("split", "shards", "samples"), rows=rows, title="Samples"),
        Table(columns=("sample", "code", "why"), rows=_refused(shards, out), title=f"Refused, the first {LISTED}; all are in rejects/"),
    )
    write_card(out, Card(title="Imported tars", blocks=blocks if totals.n_rejected else blocks[:2]))
    return {"samples": totals.n_out, "rejected": totals.n_rejected, **totals.counts}


def plan(settings: ImportWebdataset) -> list[Shard]:
    """Every tar below the folder, in order of their names; FileNotFoundError, or ValueError where there is none."""
    root = Path(settings.path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the path of a folder with tars in it")
    found = sorted(path for path in root.rglob("*.tar") if path.is_file() and not path.is_symlink())
    if not found:
        raise ValueError(f"{root} holds no file that ends in .tar, folders below included")
    splits: dict[str, list[Path]] = {}
    for path in found:
        first = path.relative_to(root).parts[0]
        splits.setdefault(first if first in SPLITS else "train", []).append(path)
    return [Shard(split, f"shard-{number:06d}", path) for split in SPLITS for number, path in enumerate(splits.get(split, []))]


def import_tar(settings: ImportWebdataset, shard: Shard, commits: "Commits") -> None:
    """Imports and commits one shard; ValueError, with the tar's name, for one that is damaged or holds what no tar of samples does."""
    import hashlib

    from worldloom.stages.dataset_writer import RawShard
    from worldloom.stages.rejects import InputRejected, Rejected
    from worldloom.stages.streams import kind_of
    from worldloom.stages.tar_members import members_of

    try:
        members = members_of(shard.tar)
    except InputRejected as error:
        raise ValueError(f"{shard.tar}: {error}; mend it or take it out of the folder") from None
    rejects: list[Rejected] = []
    with open(shard.tar, "rb") as tar, commits.attempt(shard.task) as attempt:
        with RawShard(attempt, shard.split, shard.name, settings.streams) as raw:
            for sample in samples_of(members, settings.streams):
                values: dict[str, bytes] = {}
                content = b""
                try:
                    if sample.refused is not None:
                        raise InputRejected(*sample.refused)
                    for stream, (member, _) in sample.members.items():
                        tar.seek(member.offset)
                        content = tar.read(min(member.bytes, kind_of(settings.streams[stream].kind).most_bytes + 1))
                        kind_of(settings.streams[stream].kind).decode(content, settings.streams[stream])
                        values[stream] = content
                    raw.add(sample.key, values, {stream: ending for stream, (_, ending) in sample.members.items()})
                except InputRejected as error:
                    rejects.append(Rejected(sample.key[:200], error.code, error.detail, hashlib.sha256(content).hexdigest()))
        attempt.commit(raw.keys, rejects, raw.counts)


def samples_of(members: Sequence["Member"], streams: Mapping[str, Stream]) -> list[Sample]:
    """The samples, in order of their keys; members that are of no stream are passed over."""
    from worldloom.stages.keys import is_key

    fields = fields_of(streams)
    found: dict[str, Sample] = {}
    twice: list[Sample] = []
    last = ""
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, _, field = base.partition(".")
        key, ending = f"{folder}{slash}{stem}", field.rpartition(".")[2].lower()
        stream = fields.get(field.lower())
        if key != last and key in found:
            twice.append(Sample(key, {}, ("key_not_contiguous", f"{member.name[:80]!r} stands apart from the other members of its key")))
        last = key
        sample = found.setdefault(key, Sample(key, {}, None if is_key(key) else ("key_invalid", f"{key[:80]!r} is no sample key")))
        if ending in FORBIDDEN:
            found[key] = sample._replace(refused=("ext_forbidden", f"{member.name[:80]!r} may run code when it is read"))
        elif stream is not None and stream in sample.members:
            found[key] = sample._replace(refused=("key_duplicate", f"{stream} stands there twice"))
        elif stream is not None:
            sample.members[stream] = (member, ending)
    refused_apart = {sample.key: sample.refused for sample in twice}
    return [
        sample._replace(
            refused=sample.refused or refused_apart.get(key) or (None if sample.members else ("empty_input", "no stream in it"))
        )
        for key, sample in sorted(found.items())
    ]


def fields_of(streams: Mapping[str, Stream]) -> dict[str, str]:
    """Field of a member, in lower case -> stream."""
    from worldloom.stages.streams import kind_of

    named = {f"{name}.{ending}": name for name, stream in streams.items() for ending in kind_of(stream.kind).extensions}
    owners: dict[str, set[str]] = {}
    for field, name in named.items():
        owners.setdefault(field.rpartition(".")[2], set()).add(name)
    return named | {ending: next(iter(names)) for ending, names in owners.items() if len(names) == 1}


def outside(settings: ImportWebdataset, digest: Callable[[Path], str]) -> dict[str, str]:
    """One digest of all tars."""
    from worldloom.stages.folder import combine

    root = Path(settings.path)
    return {"folder": combine({shard.tar.relative_to(root).as_posix(): digest(shard.tar) for shard in plan(settings)})}


def parallelism(settings: ImportWebdataset, inputs: Mapping[str, "Artifact"]) -> int:
    return len(plan(settings))


def _refused(shards: Sequence[Shard], out: Path) -> tuple[tuple[str, str, str], ...]:
    import json

    rows: list[tuple[str, str, str]] = []
    for shard in shards:
        ledger = out / f"rejects/{shard.task}.jsonl"
        for line in ledger.read_bytes().splitlines() if ledger.exists() else ():
            entry = json.loads(line)
            rows.append((entry["key"], entry["code"], entry["detail"]))
    return tuple(rows[:LISTED])


STAGE = StageKind(
    name="import_webdataset",
    settings=ImportWebdataset,
    run=run,
    finish=finish,
    produces="dataset",
    version=1,
    placement="shards",
    parallelism=parallelism,
    outside=outside,
)
