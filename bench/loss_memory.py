"""A process of its own that prints the bytes by which one linear layer with cross-entropy, forward and backward, raised its peak.

python -m bench.loss_memory ours|plain
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from worldloom.world_model.example import Choice
from worldloom.world_model.loss import cross_entropy

POSITIONS, WIDTH, VOCABULARY = 2_048, 384, 65_536


def main(way: str) -> int:
    """Bytes; a small pass comes first, so that what a library sets up once is not counted."""
    _pass(way, 64, 512)
    before = _peak()
    _pass(way, POSITIONS, VOCABULARY)
    return _peak() - before


def _pass(way: str, positions: int, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((positions, WIDTH), generator=generator).bfloat16().requires_grad_()
    weight = (0.02 * torch.randn((vocabulary, WIDTH), generator=generator).bfloat16()).requires_grad_()
    labels = torch.randint(vocabulary, (positions,), generator=generator)
    if way == "ours":
        choice = Choice("all", torch.arange(positions), ((0, vocabulary),), labels, None)
        loss = cross_entropy(hidden, weight, [choice], torch.ones(positions)).total / positions
    else:
        loss = F.cross_entropy(F.linear(hidden, weight).float(), labels)
    loss.backward()  # type: ignore[no-untyped-call]


def _peak() -> int:
    """Not from getrusage: a process begins there with the peak of the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.stdout.write(f"{main(sys.argv[1])}\n")
