"""What happened in a run, one JSON object a line, in the shape of OpenLineage's run events."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

EventType = Literal["START", "COMPLETE", "ABORT", "FAIL", "OTHER"]  # ABORT: asked to stop, resumable; OTHER: nothing had to be done


class Events:
    """Appends to events.jsonl; several threads may write."""

    def __init__(self, path: Path, run: str, pipeline: str) -> None:
        self.path = path
        self.run = run
        self.pipeline = pipeline
        self._lock = threading.Lock()

    def write(
        self,
        event: EventType,
        job: str,
        inputs: dict[str, str] | None = None,
        outputs: dict[str, str] | None = None,
        **facts: Any,
    ) -> None:
        """One event of `job`, a stage or the pipeline itself; `inputs` and `outputs` are artifacts, name -> fingerprint."""
        line = {
            "eventType": event,
            "eventTime": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run": {"runId": self.run},
            "job": {"namespace": self.pipeline, "name": job},
            "inputs": [{"name": name, "fingerprint": fingerprint} for name, fingerprint in (inputs or {}).items()],
            "outputs": [{"name": name, "fingerprint": fingerprint} for name, fingerprint in (outputs or {}).items()],
            "facts": facts,
        }
        text = json.dumps(line, ensure_ascii=False) + "\n"
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(text)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a run; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
