"""kill -9 of a whole run in the middle of every stage, each time followed by the same command: what is different in the end?

An uninterrupted run of examples/tiny.yaml is the reference: all files of all artifacts, and the loss of every training step. The second
run is killed once in every stage, at a random moment of the time that the stage took before. Nothing may differ.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figure import Figure, at_least

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "examples" / "tiny.yaml"
PATIENCE = 300  # seconds for one run


def figures() -> Iterator[Figure]:
    """Artifacts and losses that are the same, as shares of all."""
    generator = random.Random(7)
    with tempfile.TemporaryDirectory(prefix="worldloom-kills-") as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        _finish(whole)
        seconds = _seconds(whole)
        struck = sum(_kill_in(killed, stage, after=generator.uniform(0, taken)) for stage, taken in seconds.items())
        _finish(killed)
        pairs = [(_manifests(root), _losses(root)) for root in (whole, killed)]
    yield at_least("kills.struck", struck, "kills", "stages", len(seconds), 1.0)
    for name, unit, (expected, got) in zip(("kills.files", "kills.losses"), ("files", "steps"), zip(*pairs, strict=True), strict=True):
        same = sum(got.get(key) == value for key, value in expected.items())
        yield at_least(name, same, unit, "the run that was never killed", max(len(expected), len(got)), 1.0)


def _start(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worldloom.pipeline", "run", str(PIPELINE), f"root={root}", "--output", "json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def _finish(root: Path) -> None:
    process = _start(root)
    _, said = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise RuntimeError(f"the run in {root} ended with {process.returncode}: {said.decode()[-500:]}")


def _kill_in(root: Path, stage: str, after: float) -> bool:
    """Starts a run, waits until `stage` has been at work for `after` seconds, and kills its process group; False if it ended before."""
    began = time.time()
    process = _start(root)
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if any(event["job"]["name"] == stage and event["eventType"] == "START" for event in _events(root, since=began)):
            time.sleep(after)
            break
        time.sleep(0.05)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    return alive


def _events(root: Path, since: float) -> list[dict[str, dict[str, str]]]:
    """What the newest run has said, if it began after `since`."""
    runs = [run for run in (root / "runs").glob("*/events.jsonl") if not run.parent.is_symlink() and run.stat().st_mtime >= since - 1]
    if not runs:
        return []
    newest = max(runs, key=lambda run: run.stat().st_ctime)
    lines = newest.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _seconds(root: Path) -> dict[str, float]:
    ended = [event for event in _events(root, since=0) if event["eventType"] == "COMPLETE" and "seconds" in event["facts"]]
    return {event["job"]["name"]: float(event["facts"]["seconds"]) for event in ended if event["job"]["name"] != PIPELINE.stem}


def _manifests(root: Path) -> dict[str, str]:
    """Every file of every artifact, with its digest."""
    files: dict[str, str] = {}
    for done in sorted(root.glob("artifacts/*/*/DONE.json")):
        entries = json.loads(done.read_bytes())["files"]
        files.update({f"{done.parent.parent.name}/{name}": entry["sha256"] for name, entry in entries.items()})
    return files


def _losses(root: Path) -> dict[str, float]:
    """Every loss that was logged, by stage, step and name."""
    losses: dict[str, float] = {}
    for path in sorted(root.glob("artifacts/*/*/logs/metrics.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            stage = path.parents[2].name
            losses.update({f"{stage}/{values['step']}/{name}": value for name, value in values.items() if name.startswith("loss")})
    return losses
