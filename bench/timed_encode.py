"""The encode stage, saying how long its run took. Apart from encode.py, because a worker imports this: as light as the stage itself."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldloom.stages import encode_dataset
from worldloom.stages.worker import Worker


def _timed(settings: encode_dataset.EncodeDataset, inputs: Mapping[str, Any], out: Path, worker: Worker) -> None:
    start = time.perf_counter()
    encode_dataset.run(settings, inputs, out, worker)
    (out / "logs" / f"worker-{worker.rank}.txt").write_text(str(time.perf_counter() - start))


TIMED = replace(encode_dataset.STAGE, name="encode_timed", run=_timed)
