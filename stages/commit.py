"""Exactly-once shards on a local disk: any code may run any number of times, and one exclusive link decides.

A shard's files are written in a private attempt, hashed while written, linked to `objects/<sha256>`, and named by a commit
record that is itself linked, exclusively, to `staging/commits/<shard>.json`. Only then is the shard done. The final names
are links made at the finish. Whoever dies anywhere leaves rubbish or a valid commit, nothing between.
"""

import hashlib
import io
import itertools
import json
import logging
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from worldloom.stages import disk

if TYPE_CHECKING:
    from worldloom.stages.rejects import Rejected

log = logging.getLogger(__name__)

REJECTS_IN_MESSAGE = 3  # codes named when too many samples were refused


class CommitError(RuntimeError):
    """The shards of an artifact cannot be made into a finished whole."""


class NonDeterministicOutput(CommitError):
    """A shard was made twice, with different bytes."""


class TooManyRejects(CommitError):
    """More samples were refused than the stage allows."""


class StoredFile(NamedTuple):
    sha256: str
    bytes: int


class Commit(NamedTuple):
    """What is durably known of one shard."""

    shard: str
    files: dict[str, StoredFile]  # final name -> object
    keys: StoredFile  # the shard's keys, sorted, one a line
    n_in: int
    n_out: int
    n_rejected: int
    first_key: str  # "" where there are none
    last_key: str
    counts: dict[str, int]


class Totals(NamedTuple):
    """All shards together."""

    n_in: int
    n_out: int
    n_rejected: int
    counts: dict[str, int]
    shards: dict[str, Commit]


class Commits:
    """The commits of one artifact."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out = out
        self.fingerprint = fingerprint
        self.objects = out / "objects"
        self.records = out / "staging" / "commits"
        self.attempts = out / "staging" / "attempts"
        self.quarantine = out / "staging" / "quarantine"

    @classmethod
    def of(cls, out: Path) -> "Commits":
        """The commits of the artifact that stage.json in `out` began."""
        return cls(out, json.loads((out / "stage.json").read_bytes())["fingerprint"])

    def find(self, shard: str) -> Commit | None:
        """The shard's commit, or None; one that is damaged goes to quarantine, and the shard counts as missing."""
        path = self._record(shard)
        if not path.exists():
            return None
        commit = self.read(shard)
        if commit is None:
            self._set_aside(path, "its record is damaged", shard)
            return None
        for name, stored in [*commit.files.items(), ("keys", commit.keys)]:
            if _size(self.objects / stored.sha256) != stored.bytes:
                self._set_aside(self.objects / stored.sha256, f"{name} is not whole", shard)
                self._set_aside(path, f"{name} is not whole", shard)
                return None
        return commit

    def read(self, shard: str) -> Commit | None:
        """What the shard's record says, or None where there is none that is whole; its files are not looked at."""
        try:
            return self._parse(shard, self._record(shard).read_bytes())
        except FileNotFoundError:
            return None

    @contextmanager
    def attempt(self, shard: str) -> Iterator["Attempt"]:
        """One try at a shard, in a folder that nobody else reads and that is removed at the end, however it ends."""
        identity = uuid.uuid4().hex
        folder = self.attempts / identity
        folder.mkdir()
        trying = Attempt(self, shard, identity, folder)
        try:
            yield trying
        finally:
            trying.close()
            shutil.rmtree(folder, ignore_errors=True)

    def clear_attempts(self) -> None:
        """Removes what dead tries left; only for the holder of the artifact's lock, before any worker starts."""
        for folder in self.attempts.iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    def forget(self, shards: Sequence[str]) -> None:
        """Takes commits back, so that their shards are made again; only for the holder of the artifact's lock, when no worker runs."""
        for shard in shards:
            disk.unlink(self._record(shard))
        for folder in sorted({self._record(shard).parent for shard in shards}):
            disk.fsync_folder(folder)

    def finish(self, planned: Sequence[str], max_reject_share: float = 0.01, planned_samples: int | None = None) -> Totals:
        """Checks that every planned shard is there and adds up, and gives all files their final names; may be repeated.

        CommitError: a shard is missing, a key stands twice, the samples are not `planned_samples`. TooManyRejects.
        """
        commits = {shard: self._must_have(shard) for shard in planned}
        totals = Totals(
            n_in=sum(commit.n_in for commit in commits.values()),
            n_out=sum(commit.n_out for commit in commits.values()),
            n_rejected=sum(commit.n_rejected for commit in commits.values()),
            counts=dict(sum((Counter(commit.counts) for commit in commits.values()), Counter[str]())),
            shards=commits,
        )
        if planned_samples is not None and totals.n_in != planned_samples:
            raise CommitError(f"{self.out}: {planned_samples} samples were planned, the shards account for {totals.n_in}")
        self._no_key_twice(commits.values())
        # A commit found on resume is visible, which does not make it durable.
        for folder in (self.objects, self.records, *sorted({self._record(shard).parent for shard in planned})):
            disk.fsync_folder(folder)
        self._name_files(commits.values())
        self._few_rejects(totals, max_reject_share)
        return totals

    def _must_have(self, shard: str) -> Commit:
        commit = self.find(shard)
        if commit is None:
            raise CommitError(f"{self.out}: shard {shard} was never committed; run again, it goes on where it stopped")
        return commit

    def _name_files(self, commits: Iterable[Commit]) -> None:
        folders: set[Path] = set()
        for commit in commits:
            for name, stored in commit.files.items():
                final, made = self.out / name, self.objects / stored.sha256
                if final.parent not in folders:
                    disk.make_folder(final.parent)
                    folders.add(final.parent)
                try:
                    disk.link_new(made, final)
                except FileExistsError:
                    if not final.samefile(made) and disk.digest(final) != stored.sha256:
                        self._set_aside(final, "a final name was taken by other bytes", commit.shard)
                        disk.link_new(made, final)
        for folder in sorted(folders):
            disk.fsync_folder(folder)

    def _no_key_twice(self, commits: Iterable[Commit]) -> None:
        """Within a split. Shards whose key ranges are apart cannot share one, so keys are read only where ranges overlap."""
        splits: dict[str, list[Commit]] = {}
        for commit in commits:
            if commit.n_out:
                splits.setdefault(commit.shard.rpartition("/")[0], []).append(commit)
        for members in splits.values():
            members.sort(key=lambda commit: commit.first_key)
            if all(one.last_key < following.first_key for one, following in itertools.pairwise(members)):
                continue
            seen: dict[str, str] = {}
            for commit in members:
                for key in (self.objects / commit.keys.sha256).read_text(encoding="utf-8").splitlines():
                    if key in seen:
                        raise CommitError(f"{self.out}: key {key!r} stands in {seen[key]} and again in {commit.shard}")
                    seen[key] = commit.shard

    def _few_rejects(self, totals: Totals, max_reject_share: float) -> None:
        if totals.n_rejected <= max_reject_share * totals.n_in:
            return
        codes: Counter[str] = Counter()
        for shard in totals.shards:
            ledger = self.out / _ledger(shard)
            if ledger.exists():
                codes.update(json.loads(line)["code"] for line in ledger.read_text(encoding="utf-8").splitlines())
        worst = ", ".join(f"{code} ({count})" for code, count in codes.most_common(REJECTS_IN_MESSAGE))
        raise TooManyRejects(
            f"{totals.n_rejected} of {totals.n_in} samples were refused, more than the {max_reject_share:.2%} allowed: {worst}; "
            f"every one is listed below {self.out / 'rejects'}; mend or remove them, or set max_reject_share to allow more"
        )

    def _record(self, shard: str) -> Path:
        return self.records / f"{shard}.json"

    def _parse(self, shard: str, content: bytes) -> Commit | None:
        try:
            record = json.loads(content)
            claimed = record.pop("sha256")
            if claimed != hashlib.sha256(disk.canonical_json(record)).hexdigest():
                return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if record["fingerprint"] != self.fingerprint or record["shard"] != shard:
            return None
        return Commit(
            shard=shard,
            files={name: StoredFile(**stored) for name, stored in record["files"].items()},
            keys=StoredFile(**record["keys"]),
            **{name: record[name] for name in ("n_in", "n_out", "n_rejected", "first_key", "last_key", "counts")},
        )

    def _set_aside(self, path: Path, why: str, shard: str) -> None:
        """Moves what failed a check out of the way, kept for diagnosis."""
        disk.make_folder(self.quarantine)
        log.warning("%s: %s; it goes to %s and shard %s is made again", path, why, self.quarantine, shard)
        try:
            disk.replace(path, self.quarantine / f"{uuid.uuid4().hex}-{path.name}")
        except FileNotFoundError:
            return
        disk.fsync_folder(path.parent)


class Attempt:
    """One try at one shard; everything is private to it until `commit`."""

    def __init__(self, commits: Commits, shard: str, identity: str, folder: Path) -> None:
        self.commits = commits
        self.shard = shard
        self.identity = identity
        self.folder = folder
        self._files: dict[str, _HashedFile] = {}

    def create(self, name: str) -> BinaryIO:
        """A new file, hashed while it is written; `name` is its final name inside the artifact."""
        path = self.folder / f"{len(self._files):03d}-{Path(name).name}"
        self._files[name] = _HashedFile(path)
        return cast(BinaryIO, self._files[name])

    def commit(self, keys: Sequence[str], rejects: Sequence["Rejected"] = (), counts: Mapping[str, int] | None = None) -> Commit:
        """Makes the shard done, with what it holds; NonDeterministicOutput if it was done before with other bytes.

        Any OSError on the way means no commit: the try is over and the shard is still to be made.
        """
        ordered = sorted(keys)
        doubled = [key for key, following in itertools.pairwise(ordered) if key == following]
        if doubled:
            raise CommitError(f"shard {self.shard} holds key {doubled[0]!r} twice")
        if rejects:
            ledger = self.create(_ledger(self.shard))
            for reject in rejects:
                ledger.write(disk.canonical_json(reject._asdict()) + b"\n")
        finals = list(self._files)
        listing = self.create("keys")
        listing.write("".join(f"{key}\n" for key in ordered).encode())
        stored = {name: self._store(file) for name, file in self._files.items()}
        record = {
            "fingerprint": self.commits.fingerprint,
            "shard": self.shard,
            "files": {name: stored[name]._asdict() for name in finals},
            "keys": stored["keys"]._asdict(),
            "n_in": len(keys) + len(rejects),
            "n_out": len(keys),
            "n_rejected": len(rejects),
            "first_key": ordered[0] if ordered else "",
            "last_key": ordered[-1] if ordered else "",
            "counts": dict(counts or {}),
        }
        return self._record(record)

    def close(self) -> None:
        """Closes what was left open by a try that did not commit."""
        for file in self._files.values():
            file.give_up()

    def _store(self, file: "_HashedFile") -> StoredFile:
        file.make_durable()
        target = self.commits.objects / file.sha256
        if not disk.publish(file.path, target) and disk.digest(target) != file.sha256:
            self.commits._set_aside(target, "its content is not what its name says", self.shard)
            disk.publish(file.path, target)
        return StoredFile(file.sha256, file.bytes)

    def _record(self, record: dict[str, Any]) -> Commit:
        target = self.commits._record(self.shard)
        disk.make_folder(target.parent)
        record["attempt"] = self.identity
        record["sha256"] = hashlib.sha256(disk.canonical_json(record)).hexdigest()
        draft = self.folder / "commit.json"
        disk.write_file(draft, disk.canonical_json(record))
        if disk.publish(draft, target):
            return self.commits._must_have(self.shard)
        winner = self.commits.find(self.shard)
        if winner is None:  # what stood there was damaged and is in quarantine now
            disk.publish(draft, target)
            return self.commits._must_have(self.shard)
        mine = {"the list of keys": record["keys"], **record["files"]}
        theirs = {"the list of keys": winner.keys._asdict(), **{name: file._asdict() for name, file in winner.files.items()}}
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                raise NonDeterministicOutput(
                    f"shard {self.shard} was made twice and {name} differs; the first is kept. The stage must give the same bytes "
                    f"for the same settings and inputs, and both results are below {self.commits.objects}"
                )
        return winner


class _HashedFile(io.RawIOBase):
    """A new file that knows the sha256 of what was written to it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.bytes = 0
        self._sha256 = hashlib.sha256()
        self._file = disk.create(path)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.bytes

    def write(self, data: Any) -> int:
        disk.write(self._file, data)
        self._sha256.update(data)
        size = memoryview(data).nbytes
        self.bytes += size
        return size

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        """Leaves the file itself open: it is still to be synced, by the commit."""

    def make_durable(self) -> None:
        disk.fsync(self._file)
        self._file.close()

    def give_up(self) -> None:
        disk.give_up(self._file)


def _ledger(shard: str) -> str:
    return f"rejects/{shard}.jsonl"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
