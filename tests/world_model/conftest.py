"""Tiny worlds and what the plain way makes of them, for the tests beside this file."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from worldloom.world_model.grammar import Grammar
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary
from worldloom.world_model.weave import Codes, Woven, weave

STREAMS = {
    "caption": {"kind": "text", "codebook_size": 13, "shape": None, "max_length": 6},
    "frame": {"kind": "image", "codebook_size": 17, "shape": [2, 3], "max_length": 6},
    "sound": {"kind": "audio", "codebook_size": 5, "shape": None, "max_length": 4},
    "push": {"kind": "action", "codebook_size": 7, "shape": [3, 2], "max_length": 6, "levels": 2},
}
IDS = Vocabulary.of(STREAMS)
GRAMMAR = Grammar(IDS)


@pytest.fixture
def worlds() -> ModuleType:
    """This file, for tests to call."""
    return sys.modules[__name__]


def tiny_model(seed: int = 0, **changes) -> WorldModel:
    """fp32, two layers, every parameter drawn anew, norms included."""
    settings = {"width": 24, "depth": 2, "heads": 4, "kv_heads": 2, "ff": 40, "head_width": 6, **changes}
    generator = torch.Generator().manual_seed(seed)
    model = WorldModel(Shape(IDS.size, **settings), generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def some_documents(count: int, seed: int = 0) -> Woven:
    """Random samples; any of their streams may be missing, in any order."""
    generator = np.random.default_rng(seed)
    order = np.full((count, len(STREAMS)), -1)
    for row in order:
        kept = generator.permutation(len(STREAMS))[: generator.integers(0, len(STREAMS) + 1)]
        row[: len(kept)] = kept
    codes = {}
    for number, stream in enumerate(IDS.streams):
        lengths = np.where((order == number).any(axis=1), generator.integers(stream.min_length, stream.max_length + 1, count), 0)
        codes[stream.name] = Codes(generator.integers(0, stream.codebook_size, lengths.sum()), lengths)
    return weave(GRAMMAR, order, codes)


def documents_of(woven: Woven) -> list[np.ndarray]:
    return np.split(woven.tokens, np.cumsum(woven.lengths)[:-1])


class AloneAttention:
    """One document, by the words of the paper: softmax of the causal scores in the type of the inputs."""

    def __call__(self, layer: int, qkv: Tensor, kv_heads: int) -> Tensor:
        heads = qkv.shape[1] - 2 * kv_heads
        query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
        key, value = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (key, value))
        scores = torch.einsum("qhe,khe->hqk", query, key) / qkv.shape[2] ** 0.5
        scores = scores.masked_fill(torch.ones(len(qkv), len(qkv), dtype=torch.bool).triu(1), -torch.inf)
        return torch.einsum("hqk,khe->qhe", scores.softmax(-1), value)


def plain_logits(model: WorldModel, tokens: np.ndarray) -> Tensor:
    """The full logits of one document."""
    ids = torch.from_numpy(np.asarray(tokens))
    return model.logits(model(ids, torch.arange(len(ids)), AloneAttention()))


def legal_masks(tokens: np.ndarray, grammar: Grammar = GRAMMAR) -> Tensor:
    """bool [T, V]: what may stand at every place, from the automaton step by step."""
    masks = torch.zeros(len(tokens), grammar.vocabulary.size, dtype=torch.bool)
    state = grammar.start()
    for at, token in enumerate(tokens):
        for ids in grammar.legal(state):
            masks[at, ids.start : ids.stop] = True
        state = grammar.step(state, int(token))
    return masks
