"""Checkpoints of a training: written aside, hashed, renamed; the newest that is whole is the one to go on from.

A checkpoint is a folder `checkpoints/step-00001200/`: masters and optimizer of each player in `engines/`, one JSON and one safetensors
file of everything else for each rank, and MANIFEST.json, written last, with the digest of every file and of itself.
"""

import fcntl
import hashlib
import json
import logging
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.stages import disk
from worldloom.stages.deepspeed_engine import Engine
from worldloom.stages.numerics import Numerics
from worldloom.stages.spike_guard import LEAPS, WITHIN, Spike
from worldloom.stages.tallies import Diverged, merged
from worldloom.stages.worker import Worker

FORMAT = 2
MANIFEST = "MANIFEST.json"
ROLL_BACK_FILE = "roll-backs.jsonl"
ROLL_BACKS, ROLL_BACK_STEPS = 2, 10_000  # so many roll-backs in so many steps, then a training is given up
LOCK_SECONDS = 60.0  # how long the ranks of a killed run may take to die

log = logging.getLogger(__name__)


class RollBack(NamedTuple):
    """A spike at step `at` that was answered by going back to the checkpoint of step `to`."""

    at: int
    to: int
    positions: list[dict[str, Any]]  # behind the batches that are passed over


class CheckpointError(ValueError):
    """There are checkpoints, and none that this training can go on from."""


@dataclass(frozen=True)
class Saved:
    """What a rank gets back from a checkpoint, engines and generators being restored already."""

    step: int
    position: dict[str, Any] | None  # None before the first batch
    learner: dict[str, Any]
    tallies: dict[str, Any]  # what the loop itself counts and watches


class Checkpoints:
    """The checkpoints of one training. Every rank calls every method, at the same step."""

    def __init__(self, folder: Path, worker: Worker, fingerprint: str, numerics: Numerics, keep: int, guarded: bool = False) -> None:
        """`keep` newest checkpoints stay; `guarded`: and those that a roll-back may need."""
        self.folder = folder
        self.worker = worker
        self.fingerprint = fingerprint
        self.numerics = numerics
        self.keep = keep
        self.guarded = guarded
        self.roll_backs: list[RollBack] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Rank 0 holds a lock on the folder, because ranks can outlive the driver that started them."""
        if self.worker.rank > 0:
            yield
            return
        disk.make_folder(self.folder)
        with open(self.folder / ".lock", "wb") as file:
            _lock(file.fileno(), self.folder)
            for leftover in [*self.folder.glob(".partial-*"), *self.folder.glob(".trash-*")]:
                shutil.rmtree(leftover)
            yield

    def save(
        self, engines: Mapping[str, Engine], step: int, position: dict[str, Any] | None, learner: dict[str, Any], tallies: dict[str, Any]
    ) -> None:
        """Writes `step-<step>`, or nothing at all; a value that is not finite cannot be saved."""
        rank = self.worker.rank
        broken = _gathered([name for name, engine in engines.items() if not engine.finite()])
        if broken:
            raise FloatingPointError(
                f"step {step}: parameters of {', '.join(sorted(set(broken)))} are not finite and cannot be saved; lower learning_rate"
            )
        aside = self.folder / _agreed(f".partial-{step:08d}-{uuid.uuid4().hex}")
        if rank == 0:
            for name in engines:
                disk.make_folder(aside / "engines" / name)
        _barrier()
        for name, engine in engines.items():
            engine.save(aside / "engines" / name)
        plain, tensors = _split({"generators": _generators(), "learner": learner})
        digests = {name: _summed(engine.digest()) for name, engine in engines.items()}
        state = {"step": step, "position": position, "tallies": tallies, "state": plain, "digests": digests}
        disk.write_file(aside / f"rank-{rank}.json", disk.canonical_json(state))
        save_file(tensors, aside / f"rank-{rank}.safetensors")
        _barrier()
        files = self._hash(aside)
        if rank == 0:
            self._publish(aside, step, files)
        _barrier()

    def restore(self, engines: Mapping[str, Engine]) -> Saved | None:
        """Loads the newest whole checkpoint, None if there never was one; sets this process's generators too."""
        if self.worker.rank == 0:
            self.roll_backs = _read_roll_backs(self.folder)
            self._abandon()
        self.roll_backs = _agreed(self.roll_backs)
        name, problem = _agreed(self._judged() if self.worker.rank == 0 else None)
        if problem is not None:
            raise CheckpointError(problem)
        if name is None:
            return None
        return self.load(self.folder / name, engines)

    def roll_back(self, engines: Mapping[str, Engine], spike: Spike) -> Saved:
        """Loads the newest checkpoint from before the spike; those behind it are put aside and its batches passed over from now on.

        That is on the disk before training goes on, or the next start would take the bad branch, whose step is higher.
        """
        recent = [one for one in self.roll_backs if one.at > spike.last - ROLL_BACK_STEPS]
        if len(recent) >= ROLL_BACKS:
            raise Diverged(
                f"{spike.name} leapt {LEAPS} times between steps {spike.first} and {spike.last}, after {len(recent)} roll-backs "
                f"in the last {ROLL_BACK_STEPS} steps; lower learning_rate, lengthen warmup, look at the data at {spike.positions}, "
                "or set spike_guard: false"
            )
        if self.worker.rank == 0:
            to = max(step for step in map(_step, self._candidates()) if step <= spike.first)
            self.roll_backs.append(RollBack(spike.last, to, spike.positions))
            log.warning("%s leapt at steps %s to %s; going back to step %s", spike.name, spike.first, spike.last, to)
            lines = b"".join(disk.canonical_json(one._asdict()) + b"\n" for one in self.roll_backs)
            disk.write_file(self.folder / ROLL_BACK_FILE, lines)
        saved = self.restore(engines)
        assert saved is not None
        return saved

    def passed_over(self) -> list[dict[str, Any]]:
        """The positions behind batches that no step is to be taken on."""
        return [position for one in self.roll_backs for position in one.positions]

    def _abandon(self) -> None:
        """Puts aside the checkpoints that lie on a branch which was left."""
        for folder in self._candidates():
            try:
                known = json.loads((folder / MANIFEST).read_bytes())["roll_backs"]
            except (OSError, ValueError, KeyError, TypeError):  # damaged, which is judged elsewhere
                continue
            if any(_step(folder) > later.to for later in self.roll_backs[known:]):
                disk.replace(folder, folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.abandoned"))
        disk.fsync_folder(self.folder)

    def load(self, folder: Path, engines: Mapping[str, Engine]) -> Saved:
        """Restores a checkpoint that is known to be whole. By another number of ranks than wrote it, what is hidden in a rank's process
        comes from one of those that there were, and what the ranks counted goes to rank 0."""
        states = sorted(folder.glob("rank-*.json"), key=_rank)
        shares = [json.loads(path.read_bytes()) for path in states]
        mine = self.worker.rank % len(states)
        saved = shares[mine]
        for player, engine in engines.items():
            engine.load(folder / "engines" / player)
            if _summed(engine.digest()) != saved["digests"][player]:
                raise CheckpointError(f"{folder}: what was restored of {player} is not what was saved")
        state = _join(saved["state"], load_file(states[mine].with_suffix(".safetensors")))
        _set_generators(state["generators"])
        tallies = saved["tallies"]
        if len(states) != self.worker.world_size:
            counted = merged([share["tallies"]["tallies"] for share in shares], self.worker.rank)
            tallies = {**tallies, "tallies": counted}
        return Saved(saved["step"], saved["position"], state["learner"], tallies)

    def _hash(self, aside: Path) -> dict[str, dict[str, Any]]:
        """Digests of all files; each rank syncs and reads its share."""
        names = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
        mine = {}
        for name in self.worker.share(names):
            path = aside / name
            _sync(path)
            mine[name] = {"bytes": path.stat().st_size, "sha256": disk.digest(path)}
        return dict(_gathered(list(mine.items())))

    def _publish(self, aside: Path, step: int, files: dict[str, dict[str, Any]]) -> None:
        body = {
            "format": FORMAT,
            "step": step,
            "world_size": self.worker.world_size,
            "fingerprint": self.fingerprint,
            "numerics": self.numerics,
            "roll_backs": len(self.roll_backs),
            "files": files,
        }
        manifest = {**body, "sha256": hashlib.sha256(disk.canonical_json(body)).hexdigest()}
        disk.write_file(aside / MANIFEST, disk.canonical_json(manifest))
        for folder in [path for path in aside.rglob("*") if path.is_dir()]:
            disk.fsync_folder(folder)
        target = self.folder / f"step-{step:08d}"
        if target.exists():  # saved before, and found damaged or not looked at: the new one has the same content
            self._remove(target)
        disk.replace(aside, target)
        disk.fsync_folder(self.folder)
        candidates = self._candidates()
        spared = _spared(candidates, step) if self.guarded else []
        for old in candidates[self.keep :]:
            if old not in spared:
                self._remove(old)

    def _remove(self, folder: Path) -> None:
        trash = self.folder / f".trash-{uuid.uuid4().hex}"
        disk.replace(folder, trash)
        shutil.rmtree(trash)

    def _candidates(self) -> list[Path]:
        """Newest first."""
        return sorted((path for path in self.folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name)), key=_step, reverse=True)

    def _judged(self) -> tuple[str | None, str | None]:
        """The newest checkpoint, or why there is none to go on from: an error on rank 0 alone would leave the others waiting."""
        try:
            return self._newest(), None
        except CheckpointError as error:
            return None, str(error)

    def _newest(self) -> str | None:
        """The name of the newest checkpoint that is whole; damaged ones are put aside."""
        for folder in self._candidates():
            fault = damage(folder)
            if fault is None:
                self._fits(folder)
                return folder.name
            log.warning("checkpoint %s is damaged (%s); trying the one before", folder, fault)
            disk.replace(folder, folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.corrupt"))
            disk.fsync_folder(self.folder)
        corrupt = sorted(path.name for path in self.folder.glob("*.corrupt"))
        if corrupt:
            raise CheckpointError(
                f"{self.folder}: every checkpoint is damaged ({', '.join(corrupt)}), and training does not begin again by itself; "
                "put a good copy back, or remove that folder to start at step 0"
            )
        return None

    def _fits(self, folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} has format {manifest['format']}, this version writes {FORMAT}; remove {self.folder} to start at step 0"
            )
        if manifest["fingerprint"] != self.fingerprint:
            raise CheckpointError(f"{folder} belongs to {manifest['fingerprint']}, not to {self.fingerprint}: was it copied here?")
        if manifest["world_size"] != self.worker.world_size:
            log.warning(
                "training goes on with %s workers, it was %s: losses will differ in their last digits",
                self.worker.world_size,
                manifest["world_size"],
            )
        for field in sorted(self.numerics.keys() | manifest["numerics"].keys()):
            before, now = manifest["numerics"].get(field), self.numerics.get(field)
            if before != now:
                log.warning("training goes on with %s = %s, it was %s: losses will differ in their last bits", field, now, before)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        body = {name: value for name, value in manifest.items() if name != "sha256"}
        if hashlib.sha256(disk.canonical_json(body)).hexdigest() != manifest["sha256"]:
            return f"{MANIFEST} does not match its own digest"
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        for name, entry in manifest["files"].items():
            if disk.digest(folder / name) != entry["sha256"]:
                return f"the content of {name} has changed"
    except FileNotFoundError as missing:
        return f"{Path(missing.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def _spared(candidates: Sequence[Path], step: int) -> list[Path]:
    """Of checkpoints, newest first: one from before any leap that may yet turn out to be part of a spike, and the one to follow it."""
    old = next((at for at, folder in enumerate(candidates) if _step(folder) <= step - WITHIN), len(candidates) - 1)
    return list(candidates[max(0, old - 1) : old + 1])


def _read_roll_backs(folder: Path) -> list[RollBack]:
    path = folder / ROLL_BACK_FILE
    return [RollBack(**json.loads(line)) for line in path.read_bytes().splitlines()] if path.exists() else []


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _rank(path: Path) -> int:
    return int(path.stem.removeprefix("rank-"))


def _summed(digests: dict[str, int]) -> dict[str, int]:
    """Checksums of all ranks added up, modulo 2^64."""
    total: dict[str, int] = {}
    for name, value in _gathered(list(digests.items())):
        total[name] = (total.get(name, 0) + value) % 2**64
    return total


def _barrier() -> None:
    if dist.get_world_size() > 1:
        dist.barrier()


def _agreed(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def _gathered(mine: list[Any]) -> list[Any]:
    """The items of all ranks, on every rank."""
    if dist.get_world_size() == 1:
        return mine
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, mine)
    return [item for share in shares for item in share]


def _lock(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as held:
            if time.monotonic() > deadline:
                raise CheckpointError(f"{folder}: another process trains here; stop it first") from held
            time.sleep(0.2)


def _sync(path: Path) -> None:
    """Brings to the disk what another library wrote."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _generators() -> dict[str, Any]:
    """The state of every generator that has one hidden in the process."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), [int(rest[0]), int(rest[1]), float(rest[2])]],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def _set_generators(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _split(state: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """A tree of JSON values and tensors, as JSON that names the tensors, and the tensors by name."""
    if isinstance(state, Tensor):
        return {"tensor": path}, {path: state.detach().cpu().contiguous().clone()}
    tensors: dict[str, Tensor] = {}
    if isinstance(state, Mapping):
        assert set(state) != {"tensor"}, "a learner's state may not be a single entry called `tensor`"
        plain: Any = {}
        for key, value in state.items():
            plain[key], below = _split(value, f"{path}/{key}")
            tensors |= below
        return plain, tensors
    if isinstance(state, Sequence) and not isinstance(state, str):
        plain = []
        for index, value in enumerate(state):
            item, below = _split(value, f"{path}/{index}")
            plain.append(item)
            tensors |= below
        return plain, tensors
    return state, tensors


def _join(plain: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(plain, dict):
        return tensors[plain["tensor"]] if set(plain) == {"tensor"} else {key: _join(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_join(value, tensors) for value in plain]
    return plain
