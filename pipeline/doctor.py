"""What this machine has, against what worldloom needs. Imports none of the libraries that it looks at."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from worldloom.pipeline.machine import cpu_count

# Below these a library has a known hole, or reads and writes other formats; "<" bounds a version from above.
FLOORS = {
    "torch": "2.10",
    "ray": "2.60",
    "deepspeed": "0.19",
    "webdataset": "1.0.2",
    "sentencepiece": "0.2.1.1",  # above 0.2.1
    "transformers": "5",
    "safetensors": "0.5",
    "numpy": "2",
    "pillow": "12.3",
    "pydantic": "2.10",
    "PyYAML": "6",
    "typer": "0.15",
    "rich": "13",
    "tensorboardX": "2.6",
    "soundfile": "0.13",
    "soxr": "1.0",
}
ONLY_IF_THERE = {"starlette": "0.49.1", "h11": "0.16"}  # other packages bring them
CEILINGS = {"transformers": "6"}
PYTHON = {(3, 11): 14, (3, 12): 12, (3, 13): 6}  # the patch release from which tar files are read safely
FREE_GIB = 5  # of disk, for the demo with room to spare
MEMORY_GIB = 4

Verdict = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """`problem`: worldloom will not work; `warning`: it works, but read this."""

    what: str
    verdict: Verdict
    detail: str


def examine(folder: Path) -> list[Finding]:
    """Everything there is to say; `folder` is where runs will be written."""
    return [_python(), *_libraries(), *_processor(), _memory(), _disk(folder), _compilers(), _gpus()]


def _python() -> Finding:
    release = platform.python_version()
    floor = PYTHON.get(sys.version_info[:2])
    if floor is not None and sys.version_info.micro < floor:
        wanted = f"{sys.version_info.major}.{sys.version_info.minor}.{floor}"
        return Finding("Python", "warning", f"{release}, below {wanted}: its tarfile can be made to hang (CVE-2025-8194); upgrade")
    return Finding("Python", "ok", release)


def _libraries() -> Iterator[Finding]:
    for name, floor in {**FLOORS, **ONLY_IF_THERE}.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            if name in FLOORS:
                yield Finding(name, "problem", f"not installed; pip install '{name}>={floor}'")
            continue
        if parts(installed) < parts(floor):
            yield Finding(name, "warning", f"{installed}, below {floor}: upgrade")
        elif name in CEILINGS and parts(installed) >= parts(CEILINGS[name]):
            yield Finding(name, "warning", f"{installed}, tested below {CEILINGS[name]}")
        else:
            yield Finding(name, "ok", installed)


def parts(release: str) -> tuple[int, ...]:
    """The numbers of a release, to compare: 2.13.0+cpu is (2, 13, 0). What follows them is passed over."""
    found = re.match(r"\d+(?:\.\d+)*", release)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _processor() -> Iterator[Finding]:
    cpus = cpu_count()
    yield Finding("CPUs", "ok" if cpus > 1 else "warning", f"{cpus} of {os.cpu_count()}, {platform.machine()}")
    flags = _cpu_flags()
    if flags is None:
        yield Finding("vector instructions", "warning", "unknown on this system")
        return
    have = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve") if flag in flags]
    fast = {"avx2", "asimd"} & flags
    yield Finding("vector instructions", "ok" if fast else "warning", ", ".join(have) or "none that torch is fast with")
    bf16 = {"avx512_bf16", "amx_bf16", "bf16"} & flags
    yield Finding("bf16 on the CPU", "ok", "yes" if bf16 else "no: training on the CPU computes in fp32")


def _cpu_flags() -> set[str] | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.lower().startswith(("flags", "features"))), None)
    return None if found is None else set(found.partition(":")[2].split())


def _memory() -> Finding:
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding("memory", "ok" if gibibytes >= MEMORY_GIB else "warning", f"{gibibytes:.1f} GiB")


def _disk(folder: Path) -> Finding:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free / 2**30
    writable = os.access(there, os.W_OK)
    if not writable:
        return Finding("disk", "problem", f"{there} cannot be written to")
    return Finding("disk", "ok" if free >= FREE_GIB else "warning", f"{free:.1f} GiB free at {there}")


def _compilers() -> Finding:
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool, path=search) is None]
    if missing:
        return Finding("compilers", "ok", f"no {' and no '.join(missing)}: gangs on one machine exchange gradients through gloo alone")
    return Finding("compilers", "ok", "g++, ninja")


def _gpus() -> Finding:
    devices = sorted(Path("/dev").glob("nvidia[0-9]*"))
    return Finding("GPUs", "ok", f"{len(devices)} by NVIDIA" if devices else "none: everything runs on the CPU")
