"""Training of the world model, by the product's own loop, beside transformers' Llama under DeepSpeed.

The race's size: 16.9 M parameters, a vocabulary of 8,192, steps of 2,048 tokens. All contestants take turns in one process, on the same
documents. Ours makes its batches, guards its losses and writes its metrics at every step; the others find their batches ready in memory.
What comes seldom, starting and saving, is in no one's time.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.datasets import make_tokens
from bench.figure import Figure, at_least, at_most, median_of, seconds_for
from bench.llama_peer import LlamaPeer, can_compile, padded
from worldloom.stages.dataset import Tokens, TokenStream
from worldloom.stages.deepspeed_engine import gather_gang
from worldloom.stages.learner import Player
from worldloom.stages.token_batches import TokenBatch, TokenBatches
from worldloom.stages.training import train
from worldloom.stages.training_settings import TrainingSettings
from worldloom.stages.worker import Worker
from worldloom.stages.world_model_learner import WorldModelLearner, objectives
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary

ROUNDS = 5
STEPS = 3  # updates of one round that are timed; ours takes one before them
TOKENS = 2_048  # of a step
VOCABULARY = 8_192
CONTROLS = 6  # begin, end, padding, mask; a stream's indicator and its end
WRAPPING = 4  # tokens of a document that are not codes
SHORTEST, LONGEST = 40, 400  # tokens of a document where they differ


def figures() -> Iterator[Figure]:
    """Whole rows, documents that differ in length, DeepSpeed's share, growth with the context, and the memory of loss and context."""
    threads = torch.get_num_threads()
    gather_gang(Worker())
    with tempfile.TemporaryDirectory() as folder:
        yield from _races(Path(folder), threads)
    yield from _loss_memory()
    yield from _context_memory()


class Ours:
    """The product's training, started anew in every round, and the batches that it learns from."""

    def __init__(self, root: Path, lengths: tuple[int, int], row_length: int, threads: int) -> None:
        """Documents have `lengths[0]` to `lengths[1]` tokens, uniformly."""
        self.lengths = np.random.default_rng(0).integers(lengths[0], lengths[1] + 1, size=512)
        stream = TokenStream("text", VOCABULARY - CONTROLS, None, "uint16", "", lengths[1] - WRAPPING)
        name = f"tokens-{lengths[0]}-{lengths[1]}"
        tokens = Tokens(make_tokens(root, name, {"words": stream}, self._codes, shards=1, samples=len(self.lengths)))
        self.grammar = Grammar(Vocabulary.of({"words": stream._asdict()}))
        assert self.grammar.vocabulary.size == VOCABULARY
        self.source = TokenBatches(tokens, self.grammar, "train", TOKENS // row_length, row_length, seed=0)
        with closing(self.source.after(None)) as batches:
            self.batches: list[TokenBatch] = [batch for batch, _ in islice(batches, 1, 1 + STEPS)]  # those of the steps that are timed
        self.shape = Shape(vocab_size=VOCABULARY, width=384, depth=6, heads=6, kv_heads=6, ff=1_024, head_width=64)
        self.threads = threads

    def _codes(self, stream: str, sample: int) -> np.ndarray:
        return np.random.default_rng(sample).integers(0, VOCABULARY - CONTROLS, size=self.lengths[sample] - WRAPPING).astype(np.uint16)

    def learner(self) -> WorldModelLearner:
        """A fresh one, in fp32."""
        model = WorldModel(self.shape, torch.Generator().manual_seed(0))
        player = Player("world", model, 1e-3, weight_decay=0.05, precision="bf16")
        return WorldModelLearner(model, self.grammar, player, objectives({"next_token": 1.0}, 1 / 16, {}), seed=0, parts=1)

    def train(self) -> float:
        """Seconds from the end of a first step to the end of the last, as the loop reports them."""
        ends: list[float] = []
        worker = Worker(threads=self.threads, report=lambda *_: ends.append(time.perf_counter()))
        settings = TrainingSettings(run="bench", steps=1 + STEPS, spike_guard=True, log_every=1)
        with tempfile.TemporaryDirectory() as folder:
            train(self.learner(), settings, self.source, Path(folder), worker, "bench")
        return ends[-1] - ends[0]

    @property
    def tokens(self) -> int:
        """Of the documents that are learnt from in a round."""
        return sum(int(batch.woven.lengths.sum()) for batch in self.batches)

    def by_hand(self) -> Callable[[], None]:
        """One update without DeepSpeed: bf16 weights, fp32 masters, clipping and torch's fused AdamW."""
        learner = self.learner()
        masters = [parameter.detach().clone() for parameter in learner.model.parameters()]
        learner.model.bfloat16()
        weights = list(learner.model.parameters())
        optimizer = torch.optim.AdamW(masters, lr=1e-3, weight_decay=0.05, fused=True)
        batches = cycle(self.batches)

        def step() -> None:
            for turn in learner.turns(next(batches), 0):
                loss = sum(turn.losses.values(), start=torch.zeros(()))
                assert bool(torch.isfinite(loss.detach()))
                loss.backward()  # type: ignore[no-untyped-call]
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                master.grad, weight.grad = weight.grad.float(), None
            nn.utils.clip_grad_norm_(masters, 1.0)
            optimizer.step()
            torch._foreach_copy_([weight.data for weight in weights], masters)

        return step

    def documents(self, batch: TokenBatch) -> list[Tensor]:
        """The documents of a batch, one by one."""
        return list(torch.split(torch.from_numpy(batch.woven.tokens), batch.woven.lengths.tolist()))


def _races(root: Path, threads: int) -> Iterator[Figure]:
    rows, mixed, long = (
        Ours(root, (length, length) if length else (SHORTEST, LONGEST), length or 512, threads) for length in (512, 0, TOKENS)
    )
    eager = LlamaPeer(rows.shape, TOKENS, compiled=False)
    whole = cycle([torch.stack(rows.documents(batch)) for batch in rows.batches])
    ragged = cycle([padded(mixed.documents(batch)) for batch in mixed.batches])
    contestants: dict[str, Callable[[], float]] = {
        "ours": rows.train,
        "by hand": _several(rows.by_hand()),
        "eager": _several(lambda: eager.step(*[next(whole)] * 2)),
        "packed": mixed.train,
        "padded": _several(lambda: eager.step(*next(ragged))),
        "long": long.train,
    }
    if can_compile():
        compiled = LlamaPeer(rows.shape, TOKENS, compiled=True)
        contestants["compiled"] = _several(lambda: compiled.step(*[next(whole)] * 2))
    else:
        sys.stderr.write("world_model.train_compiled: left out, there is no C++ compiler for torch.compile\n")
    taken = median_of(contestants, ROUNDS)
    tokens = dict.fromkeys(contestants, rows.tokens) | dict.fromkeys(("packed", "padded"), mixed.tokens) | {"long": long.tokens}
    rate = {name: tokens[name] / seconds for name, seconds in taken.items()}
    yield at_least("world_model.train", rate["ours"], "tokens/s", "Llama, DeepSpeed ZeRO 1, eager", rate["eager"], 1.9)
    if "compiled" in rate:
        yield at_least("world_model.train_compiled", rate["ours"], "tokens/s", "Llama, ZeRO 1, compiled", rate["compiled"], 1.4)
    yield at_least("world_model.train_packed", rate["packed"], "tokens/s", "Llama, ZeRO 1, eager, padded", rate["padded"], 2.5)
    share = taken["ours"] / taken["by hand"] - 1
    yield at_most("world_model.deepspeed", share * taken["ours"] / STEPS, "s more than by hand", "a step", taken["ours"] / STEPS, 0.1)
    yield at_least("world_model.long_context", rate["long"], "tokens/s at T 2,048", "at T 512", rate["ours"], 0.75)


def _several(step: Callable[[], object]) -> Callable[[], float]:
    def several() -> None:
        for _ in range(STEPS):
            step()

    return partial(seconds_for, several)


def _loss_memory() -> Iterator[Figure]:
    ours, plain = (_printed("loss_memory", way) for way in ("ours", "plain"))
    yield at_most("world_model.loss_memory", ours / 2**20, "MiB at a vocabulary of 65,536", "full logits", plain / 2**20, 0.25)


def _context_memory() -> Iterator[Figure]:
    """A document of so many tokens, beside one of 1,024 and as many times its memory: 1 where that grows linearly."""
    short = _printed("context_memory", "1024")
    for times in (2, 4, 8):
        whole = _printed("context_memory", str(1024 * times))
        yield at_most(f"world_model.context_memory_{times}k", whole / 2**20, "MiB", f"{times} of 1,024 tokens", times * short / 2**20, 1.25)


def _printed(module: str, argument: str) -> int:
    """What a process of its own says."""
    command = [sys.executable, "-m", f"bench.{module}", argument]
    return int(subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True).stdout)
