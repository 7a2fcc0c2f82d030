"""How far the workers of a stage are: each keeps one small file in staging/progress/, whoever watches adds them up."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

WRITE_EVERY = 0.5  # seconds


class Progress(NamedTuple):
    """All workers of a stage together."""

    done: int
    total: int
    unit: str
    notes: dict[str, float]


class ProgressFile:
    """A worker's file; called as `Worker.report`. Replaced whole, never synced: nothing depends on it after a crash."""

    def __init__(self, out: Path, rank: int) -> None:
        self.path = folder(out) / f"{rank}.json"
        self._written = -WRITE_EVERY

    def __call__(self, done: int, total: int, unit: str, notes: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._written < WRITE_EVERY and done < total:
            return
        self._written = now
        temporary = self.path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps({"done": done, "total": total, "unit": unit, "notes": notes}), encoding="utf-8")
            os.replace(temporary, self.path)
        except FileNotFoundError:
            return  # a worker that outlived its run: the stage was finished, and cleaned up, by another


def read_progress(out: Path) -> Progress | None:
    """What the workers of the stage in `out` have done so far: their parts added up; None before the first word."""
    parts = [part for part in map(_part, sorted(folder(out).glob("*.json"))) if part is not None]
    if not parts:
        return None
    notes = {name: value for part in parts for name, value in part.notes.items()}
    return Progress(sum(part.done for part in parts), max(part.total for part in parts), parts[0].unit, notes)


def clear_progress(out: Path) -> None:
    """Forgets what an earlier run said."""
    shutil.rmtree(folder(out), ignore_errors=True)
    folder(out).mkdir(parents=True)


def folder(out: Path) -> Path:
    """Where the workers of the artifact in `out` say how far they are."""
    return out / "staging" / "progress"


def _part(path: Path) -> Progress | None:
    try:
        return Progress(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
