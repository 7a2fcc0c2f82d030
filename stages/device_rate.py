"""How fast this device multiplies matrices: what the share that a training reaches of it (MFU) is measured against."""

import json
import time
from pathlib import Path

import torch

from worldloom.stages import disk
from worldloom.stages.learner import Precision

SIDES = {"cpu": 1_024, "cuda": 8_192}
SECONDS = 0.3  # spent on it, at most twice that


def product_rate(logs: Path, precision: Precision) -> float:
    """Operations a second of a large product in the format, measured at the first start and then read from `logs`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    here = f"{torch.cuda.get_device_name() if device == 'cuda' else device}, {torch.get_num_threads()} threads, {precision}"
    path = logs / "product-rate.json"
    known = json.loads(path.read_bytes()) if path.exists() else {}
    if here not in known:
        known[here] = _measured(device, torch.bfloat16 if precision == "bf16" else torch.float32)
        disk.write_file(path, disk.canonical_json(known))
    return float(known[here])


def _measured(device: str, dtype: torch.dtype) -> float:
    side = SIDES[device]
    # Not drawn: the generators of the training are left as they are.
    a = torch.linspace(-1, 1, side * side, device=device).view(side, side).to(dtype)
    out = a @ a
    best, until = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, a.t(), out=out)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
