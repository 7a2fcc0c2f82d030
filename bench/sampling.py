"""Sampling beside `generate` of transformers on the exported model, which is of 16.9 million parameters with 8,192 ids, in bfloat16.

The peer runs plain, with its static cache and, where there is a C++ compiler, with its step compiled; ours must beat the best of them.
All ids but the controls are codes of one stream, so that nothing is gained by what the grammar rules out. Contestants take turns in one
process.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.figure import Figure, at_least, at_most, seconds_of
from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.image_settings import VqGan
from worldloom.world_model.decoder import Cache, Decoder
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.parallel import fill_in
from worldloom.world_model.qwen3 import save_qwen3
from worldloom.world_model.rollout import Rollout, roll
from worldloom.world_model.sampling import generate, prompt
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary, code_stream

ROUNDS = 3
CODES, STEPS = 256, 12
SHAPE: dict[str, Any] = {"width": 384, "depth": 6, "heads": 6, "kv_heads": 6, "ff": 1024, "head_width": 64}
GOALS = {8: (2.0, 2.6), 1: (2.5, 2.5), 32: (1.5, 1.5)}  # batch: over the best peer, over the plain one
FRAMES, WINDOW, ASKED = 20, 7, 10.0  # of a rollout: how many are timed, steps in sight, frames a second that a person calls moving
NEAR, FAR, TOKENS = 64, 1024, 32  # how a step grows: tokens already there, and how many are timed


def figures() -> Iterator[Figure]:
    """Tokens a second for three sizes of batch; what a long past costs; a frame by hidden codes against one code at a time; rollouts."""
    grammar = Grammar(Vocabulary((code_stream("frame", "image", 8_192 - 6, shape=(16, 16)),), 0))
    model = WorldModel(Shape(grammar.vocabulary.size, **SHAPE), torch.Generator().manual_seed(0)).eval()
    decoder = Decoder(model, torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_qwen3(Path(folder), model, grammar)
        peers = _peers(Path(folder), grammar)
        for batch, (best, plain) in GOALS.items():
            yield from _race(decoder, grammar, peers, batch, best, plain)
    yield _growth(decoder)
    yield _hidden_codes(decoder, grammar)
    yield _rollout()


def _race(
    decoder: Decoder, grammar: Grammar, peers: dict[str, Callable[[int], object]], batch: int, best_goal: float, plain_goal: float
) -> Iterator[Figure]:
    start = prompt(grammar, [])
    taken = seconds_of(
        {"ours": lambda: generate(decoder, grammar, [start] * batch, ["frame"], seeds=range(batch))}
        | {name: lambda peer=peer: peer(batch) for name, peer in peers.items()},  # type: ignore[misc]
        ROUNDS,
    )
    rate = {name: batch * CODES / seconds for name, seconds in taken.items()}
    best = max(peers, key=lambda name: rate[name])
    yield at_least(f"sampling.batch_{batch}", rate["ours"], "tokens/s", f"generate, {best}", rate[best], best_goal)
    yield at_least(f"sampling.batch_{batch}_of_plain", rate["ours"], "tokens/s", "generate, plain", rate["plain"], plain_goal)


def _growth(decoder: Decoder) -> Figure:
    """A step far into a sample may cost what a step near its start does, and the time to read the cache that it has in addition."""
    caches = {name: _filled(decoder, length) for name, length in (("near", NEAR), ("far", FAR))}
    more = 8 * (FAR - NEAR) * 2 * decoder.shape.kv_heads * decoder.shape.head_width * decoder.shape.depth
    there = torch.ones(more, dtype=torch.bfloat16)
    steps = {name: (lambda cache=cache, at=at: _steps(cache, at)) for (name, cache), at in zip(caches.items(), (NEAR, FAR), strict=True)}
    taken = seconds_of({**steps, "bytes": lambda: there.view(torch.int16).max()}, ROUNDS)
    allowed = taken["near"] / TOKENS + taken["bytes"]
    return at_most("sampling.growth", taken["far"] / TOKENS, f"s a step at {FAR} tokens", f"at {NEAR}, and the bytes", allowed, goal=1.25)


def _filled(decoder: Decoder, length: int) -> Cache:
    cache = Cache(decoder, 8)
    with torch.inference_mode():
        cache.begin([[8] * length] * 8)
    return cache


@torch.inference_mode()
def _steps(cache: Cache, at: int) -> None:
    for place in range(at, at + TOKENS):
        cache.step(torch.full((8,), 8), torch.full((8,), place))


def _hidden_codes(decoder: Decoder, grammar: Grammar) -> Figure:
    start = prompt(grammar, [])
    taken = seconds_of(
        {
            "steps": lambda: fill_in(decoder, grammar, [start], ["frame"], seeds=[0], steps=STEPS),
            "codes": lambda: generate(decoder, grammar, [start], ["frame"], seeds=[0]),
        },
        ROUNDS,
    )
    return at_least(f"sampling.frame_in_{STEPS}_steps", 1 / taken["steps"], "frames/s", "one code at a time", 1 / taken["codes"], 5.0)


def _rollout() -> Figure:
    """Frames of 32 x 32 pixels, 64 codes each, from actions, of a world of some 6 million parameters, decoded one by one.

    The window is full from the first frame that is timed, so that it slides with every step.
    """
    streams = {
        "clip": {"kind": "video", "codebook_size": 512, "shape": [WINDOW, 8, 8], "steps": WINDOW},
        "push": {"kind": "action", "codebook_size": 5, "shape": [WINDOW - 1], "steps": WINDOW - 1},
    }
    grammar = Grammar(Vocabulary.of(streams, {"name": "step", "streams": ["clip", "push"], "given": ["push"]}))
    shape = Shape(grammar.vocabulary.size, width=256, depth=6, heads=8, kv_heads=8, ff=704, head_width=32)
    model = WorldModel(shape, torch.Generator().manual_seed(0)).eval()
    parts = VqGan(codebook_size=512, downsample=4)
    pictures = ImageTokenizer(build_autoencoder(parts, seed=0).eval(), parts, 32, 32)
    rollout = Rollout(Decoder(model, torch.bfloat16), grammar, [prompt(grammar, [])], ["clip", "push"], seeds=[0])
    going = roll(rollout, {"clip": np.zeros((1, 1, 64), np.int64)}, lambda last: {"push": np.zeros((1, 1), np.int64)})

    def frames(count: int) -> None:
        for step in islice(going, count):
            pictures.decode(step["clip"].reshape(1, 8, 8))

    frames(WINDOW)
    taken = seconds_of({"ours": lambda: frames(FRAMES)}, ROUNDS)
    return at_least("sampling.rollout", FRAMES / taken["ours"], "frames/s", "asked for", ASKED, 1.0)


def _peers(folder: Path, grammar: Grammar) -> dict[str, Callable[[int], object]]:
    """Ways to call `generate`, each with its own model, by name."""
    peers: dict[str, Callable[[int], object]] = {
        "plain": _peer(folder, grammar, {}),
        "static cache": _peer(folder, grammar, {"cache_implementation": "static", "disable_compile": True}),
    }
    if shutil.which("c++") or shutil.which("g++"):
        peers["compiled"] = _compiled(folder, grammar)
    return peers


def _peer(folder: Path, grammar: Grammar, settings: dict[str, Any]) -> Callable[[int], object]:
    from transformers import AutoModelForCausalLM

    ids = grammar.vocabulary
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.generation_config.max_length = None

    @torch.inference_mode()
    def work(batch: int) -> object:
        start = torch.tensor(np.array([[ids.bos, ids.indicator(0)]] * batch))
        return model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=CODES,
            min_new_tokens=CODES,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            **settings,
        )

    return work


def _compiled(folder: Path, grammar: Grammar) -> Callable[[int], object]:
    """With a static cache, and the model's forward compiled once for each batch."""
    from transformers import CompileConfig

    return _peer(folder, grammar, {"cache_implementation": "static", "compile_config": CompileConfig(mode="default", dynamic=False)})
