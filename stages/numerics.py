"""What, besides settings and inputs, can move the last bit of a result: processor, threads, versions of the libraries.

It is no part of the fingerprint, so that a finished artifact outlives an upgrade; but what was begun under one block of these
is not continued under another.
"""

import json
import os
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from worldloom.stages import disk

LIBRARIES = ("torch", "numpy", "pillow", "sentencepiece", "deepspeed")
Numerics = dict[str, str | int | bool]


class NumericsChanged(ValueError):
    """An unfinished artifact was begun where numbers are rounded differently."""


def numerics_of_this_process(threads: int, device: Literal["cpu", "cuda"] = "cpu") -> Numerics:
    """The block for a worker with `threads` threads; cheap, and without importing any of the libraries it names."""
    if device == "cuda":
        return {"device": device, **_versions()}
    capability = os.environ.get("ATEN_CPU_CAPABILITY") or _cpu_capability()
    return {"device": device, "cpu_capability": capability, "bf16": _has_bf16(), "threads": threads, **_versions()}


def same_numerics(out: Path, block: Numerics) -> None:
    """Notes the block in out/numerics.json at the first start; NumericsChanged, naming the field, if another stands there."""
    path = out / "numerics.json"
    if not path.exists() and disk.write_new_file(path, disk.canonical_json(block) + b"\n"):
        return
    standing = json.loads(path.read_bytes())
    for field in sorted(block.keys() | standing.keys()):
        if standing.get(field) != block.get(field):
            raise NumericsChanged(
                f"{out} was begun with {field} = {standing.get(field)}, here it is {block.get(field)}, so the rest would be computed "
                f"differently; go on where {field} is the same, or remove the folder and start the stage again"
            )


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _cpu_capability() -> str:
    """The vector instructions that kernels choose by, named as torch names them; the machine's name where it is not x86."""
    try:
        flags = set(
            next(line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("flags")).split()
        )
    except (OSError, StopIteration):
        return os.uname().machine
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
        return "AVX512"
    return "AVX2" if {"avx2", "fma"} <= flags else "DEFAULT"


@lru_cache(maxsize=1)
def _has_bf16() -> bool:
    """Whether the processor multiplies bfloat16, which decides the precision that training chooses for itself."""
    try:
        return bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()))
    except OSError:
        return False
