"""torch in the state in which the same input gives the same codes, and back."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """`settled`, and no gradients in this thread."""
    with settled(threads), torch.inference_mode():
        yield


@contextmanager
def settled(threads: int) -> Iterator[None]:
    """Deterministic algorithms, no autotuning, no TF32, `threads` CPU threads; what was set before returns at the end.

    All of it is the process's, so that another thread may end it.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when its first handle is made
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.backends.cudnn.allow_tf32 = before[3]
        torch.set_float32_matmul_precision(before[4])
        torch.set_num_threads(before[5])
