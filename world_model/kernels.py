"""kernels.c, compiled where there is a compiler: once for a processor and a compiler, kept among the user's caches.

Where there is none, or the processor is another, everything goes on in torch's operations: slower, and rounded here and there differently.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_SOURCE = Path(__file__).with_name("kernels.c")
# Sums may be taken in another order than they are written in, or they would not vectorise. Not -ffast-math: linked into a library, that
# changes how the whole process rounds the smallest numbers.
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno")
_X86 = ("-mprefer-vector-width=512",)  # compilers for other processors refuse it
_SUMS = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_MOST_WIDTH = 512  # of a head, as in kernels.c
_log = logging.getLogger(__name__)


class Kernels:
    """The functions of kernels.c, for contiguous tensors on the CPU: bfloat16, weights and tables float32, positions int64."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._norm, self._gate, self._turn, self._attend = library.norm, library.gate, library.turn, library.attend
        self._draw = library.draw
        self._draw.argtypes, self._draw.restype = [pointer] * 3 + [number] * 2 + [real], ctypes.c_int
        for function, kinds in (
            (self._norm, [pointer] * 2 + [number] * 2 + [real]),
            (self._gate, [pointer] * 2 + [number] * 2),
            (self._turn, [pointer] * 5 + [number] * 4 + [real]),
            (self._attend, [pointer] * 5 + [number] * 6),
        ):
            function.argtypes, function.restype = kinds, None

    def norm(self, x: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) of [N, D]."""
        out = torch.empty_like(x)
        self._norm(x.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1], eps)
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) up, [N, F] from [N, 2F]."""
        N, both = gate_up.shape
        out = gate_up.new_empty(N, both // 2)
        self._gate(gate_up.data_ptr(), out.data_ptr(), N, both // 2)
        return out

    def turn(self, qkv: Tensor, weights: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, eps: float) -> None:
        """Norms the queries and keys of qkv [N, J + K, E], weighs them by `weights` [J, E] and turns them, in place; tables [.., E/2]."""
        N, heads, E = qkv.shape
        J = len(weights)
        places = qkv.data_ptr(), weights.data_ptr(), cos.data_ptr(), sin.data_ptr(), positions.data_ptr()
        self._turn(*places, N, J, heads - J, E, eps)

    def attend(self, qkv: Tensor, kept: Tensor, positions: Tensor, scores: Tensor) -> Tensor:
        """[N, H E]: keys and values of qkv [N, H + 2K, E] go into kept [2, B, K, T, E], and each query sees those of its row up to itself.

        `positions` [B, Q]; `scores`: float32, room for N H T.
        """
        (B, Q), (_, _, K, T, E) = positions.shape, kept.shape
        H = qkv.shape[1] - 2 * K
        out = qkv.new_empty(B * Q, H * E)
        places = qkv.data_ptr(), kept.data_ptr(), out.data_ptr(), scores.data_ptr(), positions.data_ptr()
        self._attend(*places, B, Q, H, K, E, T)
        return out

    def draw(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """A column, int64 [N], for every row of fp32 logits [N, C]: where the probability so far passes `noise`, float64 [N] in [0, 1)."""
        chosen = torch.empty(len(logits), dtype=torch.int64)
        if self._draw(logits.data_ptr(), noise.data_ptr(), chosen.data_ptr(), *logits.shape, temperature):
            raise MemoryError(f"there is no memory for the sums of {len(logits)} rows of {logits.shape[1]} logits; sample fewer at a time")
        return chosen


def kernels_for(dtype: torch.dtype, device: torch.device, head_width: int) -> Kernels | None:
    """None where there are none for such tensors."""
    fits = dtype == torch.bfloat16 and device.type == "cpu" and head_width <= _MOST_WIDTH
    return compiled() if fits else None


@cache
def compiled() -> Kernels | None:
    """The kernels, or None where they cannot be made."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    processor = Path("/proc/cpuinfo")
    if compiler is None or not processor.is_file():
        return None
    flags = next((line for line in processor.read_text(encoding="utf-8").splitlines() if line.startswith(("flags", "Features"))), "")
    made_of = (_SOURCE.read_bytes(), repr(_options()).encode(), compiler.encode(), flags.encode())
    name = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:32]
    try:
        # Path.home() raises RuntimeError for a user who has none.
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldloom"
        library = folder / f"kernels-{name}.so"
        if not library.is_file():
            _compile(compiler, library)
        return Kernels(ctypes.CDLL(str(library)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.info("sampling goes on without compiled kernels: %s", error)
        return None


def _options() -> tuple[str, ...]:
    """What the compiler is told, here."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    return (*_FLAGS, *(_X86 if x86 else ()), *_SUMS)


def _compile(compiler: str, library: Path) -> None:
    """Others may be compiling the same: each into a file of its own, and the last name is a link that either may set."""
    library.parent.mkdir(parents=True, exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    try:
        subprocess.run(
            [compiler, *_options(), "-o", str(unfinished), str(_SOURCE), "-lm"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        unfinished.replace(library)
    finally:
        unfinished.unlink(missing_ok=True)
