"""One batch as a process of its own: `python -m worldloom.pipeline.service.job FOLDER` runs the pipeline that lies in the folder.

The kernel holds the folder's lock for it: a second one waits, and finds everything done. It stops, resumable, when whoever started it dies.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys
from pathlib import Path
from typing import IO

from worldloom.pipeline.reporter import JsonReporter
from worldloom.stages import disk

PIPELINE, FAILURE, LOCK = "pipeline.yaml", "failed.json", "job.lock"
TOKENS = "tokens"  # the stage whose artifact is the result
_PR_SET_PDEATHSIG = 1
FAILED = 1


def main(folder: Path, parent: int) -> int:
    """The exit code of the run: 0 complete, 1 failed (failed.json says why), 3 stopped and resumable."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before this process could ask to hear of it
        return 3
    with open(folder / LOCK, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        from worldloom.pipeline.config import read_pipeline
        from worldloom.pipeline.engine import run_pipeline
        from worldloom.pipeline.inline_executor import InlineExecutor
        from worldloom.pipeline.plan import make_plan

        reporter = Failures(sys.stdout)
        try:
            plan = make_plan(read_pipeline(folder / PIPELINE), (), (), (), ())
            code = run_pipeline(plan, InlineExecutor(threads=1), reporter)
        except (ValueError, OSError) as error:
            reporter.messages.append(str(error))
            code = FAILED
        if code == FAILED:
            message = "; ".join(reporter.messages).replace(f"{folder}/", "")
            disk.write_file(folder / FAILURE, json.dumps({"message": message}).encode())
    return code


class Failures(JsonReporter):
    """Remembers why stages failed."""

    def __init__(self, out: IO[str]) -> None:
        super().__init__(out)  # type: ignore[arg-type]
        self.messages: list[str] = []

    def failed(self, stage: str, message: str) -> None:
        self.messages.append(f"{stage}: {message}")
        super().failed(stage, message)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
