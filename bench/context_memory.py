"""A process of its own that prints the bytes by which one training step of a single document raised its peak.

python -m bench.context_memory TOKENS
"""

import sys
from pathlib import Path

import numpy as np
import torch

from worldloom.world_model.grammar import Grammar
from worldloom.world_model.next_token import next_token
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary
from worldloom.world_model.weave import weave_one

CODES = 8_186
WRAPPING = 4  # tokens of a document that are not codes


def main(tokens: int) -> int:
    """Bytes; a short document comes first, so that what a library sets up once, and gradients, are not counted."""
    torch.set_num_threads(1)
    grammar = Grammar(Vocabulary.of({"words": {"kind": "text", "codebook_size": CODES, "max_length": 1 << 20}}))
    shape = Shape(grammar.vocabulary.size, width=384, depth=6, heads=6, kv_heads=6, ff=1_024, head_width=64)
    model = WorldModel(shape, torch.Generator().manual_seed(0)).bfloat16()
    _step(model, grammar, 64)
    before = _peak()
    _step(model, grammar, tokens)
    return _peak() - before


def _step(model: WorldModel, grammar: Grammar, tokens: int) -> None:
    codes = np.random.default_rng(0).integers(CODES, size=tokens - WRAPPING)
    example = next_token(weave_one(grammar, [("words", codes)]), grammar, np.zeros(1, np.int64), seed=0)
    (model.losses(example).total / tokens).backward()  # type: ignore[no-untyped-call]


def _peak() -> int:
    """Not from getrusage: a process begins there with the peak of the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    sys.stdout.write(f"{main(int(sys.argv[1]))}\n")
