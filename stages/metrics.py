"""What a training measures, as lines of logs/metrics.jsonl and for TensorBoard; rank 0 alone writes."""

import json
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from worldloom.stages import disk


class Metrics:
    """Appends to the metrics of the folder `logs`; what an interrupted run wrote after `step` is dropped, since it will come again."""

    def __init__(self, logs: Path, step: int) -> None:
        self.path = logs / "metrics.jsonl"
        kept = [line for line in read(self.path, torn=True) if line["step"] <= step]
        disk.write_file(self.path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  open for the whole training
        self._board = SummaryWriter(str(logs / "tensorboard"), purge_step=step + 1 if step else None, flush_secs=10)

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """One line: `values` at `step`, after `seconds` of training."""
        self._file.write(json.dumps({"step": step, "time": round(seconds, 3), **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read(path: Path, torn: bool = False) -> list[dict[str, float]]:
    """The lines of a metrics file, none if there is no file; `torn` forgives a last line that was not finished."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    if torn and not text.endswith("\n"):
        lines = lines[:-1]
    return [json.loads(line) for line in lines if line]
