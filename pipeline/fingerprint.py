"""The name of an artifact: a hash of everything that can change what the stage leaves, and of nothing else.

Not of the source text: a changed log line must not train a model again. A stage's version, raised by hand, stands for it.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from worldloom.pipeline.marks import output_settings
from worldloom.stages.disk import canonical_json, digest, write_file
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import StageSettings

# A file may change again within one tick of its clock; what changed this many seconds ago or less is hashed anew next time.
SETTLED = 2.0


def fingerprint(name: str, kind: StageKind, settings: StageSettings, inputs: Mapping[str, str], outside: Mapping[str, str]) -> str:
    """sha256, hexadecimal. `inputs` maps fields to fingerprints, `outside` names of data from outside to their digests."""
    identity = {
        "stage": name,
        "kind": kind.name,
        "version": kind.version,
        "settings": output_settings(settings),
        "inputs": dict(inputs),
        "outside": dict(outside),
    }
    return hashlib.sha256(canonical_json(identity)).hexdigest()


class Digests:
    """sha256 of files from outside, each computed again only when the file's size, times or inode have changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, list[Any]] = _read(path)
        self._changed = False

    def __call__(self, path: Path) -> str:
        """The digest of a file's content."""
        key, stamp = str(path.absolute()), _stamp(path)
        known = self._known.get(key)
        if known is not None and known[:-1] == stamp:
            return str(known[-1])
        sha256 = digest(path)
        if stamp == _stamp(path) and time.time() - max(stamp[1], stamp[2]) / 1e9 > SETTLED:
            self._known[key] = [*stamp, sha256]
            self._changed = True
        return sha256

    def save(self) -> None:
        """Keeps what was computed for the next time."""
        if self._changed:
            with suppress(OSError):  # whoever may only read a run, or has a full disk, can still look at it
                write_file(self.path, json.dumps(self._known, sort_keys=True, indent=0).encode())
            self._changed = False


def _stamp(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}  # a cache: what is lost is computed again
    return known if isinstance(known, dict) else {}
