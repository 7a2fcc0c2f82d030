"""What a person, or a program, is told while a pipeline runs: plain lines and JSON lines. Bars are in terminal.py."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

LINE_EVERY = 5.0  # seconds between two plain lines of one stage

ENDINGS = {0: "complete", 1: "failed", 3: "interrupted; the same command goes on from here"}


class Reporter(Protocol):
    """The engine speaks to one of these, from one thread at a time."""

    def started(self, stage: str, reason: str) -> None:
        """A stage begins or goes on."""

    def progress(self, stage: str, done: int, total: int, unit: str, notes: Mapping[str, float]) -> None:
        """A stage has done so much; `notes` are numbers worth showing, such as losses."""

    def finished(self, stage: str, seconds: float) -> None:
        """A stage is complete."""

    def skipped(self, stage: str) -> None:
        """A stage was complete already."""

    def failed(self, stage: str, message: str) -> None:
        """A stage failed; one line says why."""

    def message(self, text: str) -> None:
        """Something else worth a line."""

    def ended(self, exit_code: int, report: Path | None) -> None:
        """The run is over."""


class LineReporter:
    """One line a thing, and of one stage's progress at most one every LINE_EVERY seconds: for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._spoke: dict[str, float] = {}

    def started(self, stage: str, reason: str) -> None:
        self._spoke[stage] = time.monotonic()
        self._say(f"{stage}: started" + (f" ({reason})" if reason else ""))

    def progress(self, stage: str, done: int, total: int, unit: str, notes: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._spoke.get(stage, now) < LINE_EVERY:
            return
        self._spoke[stage] = now
        self._say(f"{stage}: {done} of {total} {unit}" + "".join(f", {note}" for note in said(notes)))

    def finished(self, stage: str, seconds: float) -> None:
        self._say(f"{stage}: done in {duration(seconds)}")

    def skipped(self, stage: str) -> None:
        self._say(f"{stage}: done before")

    def failed(self, stage: str, message: str) -> None:
        self._say(f"{stage}: failed: {message}")

    def message(self, text: str) -> None:
        self._say(text)

    def ended(self, exit_code: int, report: Path | None) -> None:
        self._say(ENDINGS[exit_code] + (f"; report: {report}" if report else ""))

    def _say(self, text: str) -> None:
        write_line(self._out, text)


class JsonReporter:
    """One JSON object a line, with "event" and "time" (seconds since 1970): for programs. Nothing is left out."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def started(self, stage: str, reason: str) -> None:
        self._say("started", stage=stage, reason=reason)

    def progress(self, stage: str, done: int, total: int, unit: str, notes: Mapping[str, float]) -> None:
        self._say("progress", stage=stage, done=done, total=total, unit=unit, notes=dict(notes))

    def finished(self, stage: str, seconds: float) -> None:
        self._say("finished", stage=stage, seconds=round(seconds, 3))

    def skipped(self, stage: str) -> None:
        self._say("skipped", stage=stage)

    def failed(self, stage: str, message: str) -> None:
        self._say("failed", stage=stage, message=message)

    def message(self, text: str) -> None:
        self._say("message", text=text)

    def ended(self, exit_code: int, report: Path | None) -> None:
        self._say("ended", exit_code=exit_code, report=None if report is None else str(report))

    def _say(self, event: str, **facts: Any) -> None:
        write_line(self._out, json.dumps({"event": event, "time": round(time.time(), 3), **facts}, ensure_ascii=False))


def write_line(out: TextIO, text: str) -> None:
    """Writes a line at once. A reader that has gone does not stop a run: what follows is written to nobody."""
    try:
        out.write(text + "\n")
        out.flush()
    except BrokenPipeError:
        nobody_reads(out)


def nobody_reads(out: TextIO) -> None:
    """Leads a pipe whose reader has gone to nowhere, so that neither a later line nor the exit fails on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, out.fileno())
    os.close(nowhere)


def said(notes: Mapping[str, float]) -> list[str]:
    """Notes as people read them: `loss 1.234`."""
    return [f"{name} {number(value)}" for name, value in notes.items()]


def number(value: float) -> str:
    """A number as people read it: four digits, or whole thousands."""
    return f"{value:,.0f}" if isinstance(value, int) or 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `4.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
