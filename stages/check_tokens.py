"""Checks a set of tokens with the grammar: each sample, woven as training weaves it, must be a sequence that the automaton allows.

Weaving refuses codes outside their codebook, lengths that a stream's shape does not allow, and steps that its clock does not have.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.dataset import Tokens
from worldloom.stages.shards import IndexedShard, ShardDamaged
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.vocabulary import Vocabulary
from worldloom.world_model.weave import Codes, spread, weave

AT_ONCE = 1024  # samples


class Illegal(NamedTuple):
    """What is wrong with a shard's first sample that is no sequence of the grammar."""

    split: str
    shard: str
    problem: str


def illegal_shards(tokens: Tokens) -> Iterator[Illegal]:
    """Reads every code; ValueError where dataset.json itself describes no vocabulary."""
    about = {name: stream._asdict() for name, stream in tokens.streams.items()}
    grammar = Grammar(Vocabulary.of(about, tokens.clock))
    for split in tokens.splits:
        for shard in tokens.shards(split):
            try:
                readers = {name: tokens.reader(split, shard, name) for name in grammar.streams}
            except ShardDamaged as damaged:
                yield Illegal(split, shard, str(damaged))
                continue
            if (found := _first_illegal(readers, grammar, tokens.shard_samples(split, shard))) is not None:
                yield Illegal(split, shard, found)


def _first_illegal(readers: Mapping[str, IndexedShard], grammar: Grammar, samples: int) -> str | None:
    """Its key, and what the grammar says of it."""
    for at in range(0, samples, AT_ONCE):
        rows = np.arange(at, min(at + AT_ONCE, samples))
        while (problem := _problem(readers, grammar, rows)) is not None:
            if len(rows) == 1:
                return f"sample {next(iter(readers.values())).key(int(rows[0]))!r} is not legal: {problem}"
            half = len(rows) // 2
            rows = rows[:half] if _problem(readers, grammar, rows[:half]) is not None else rows[half:]
    return None


def _problem(readers: Mapping[str, IndexedShard], grammar: Grammar, rows: NDArray[np.int64]) -> str | None:
    """What the grammar says of some samples of a shard; None where all are legal."""
    ids, codes = grammar.vocabulary, dict[str, Codes]()
    for name, reader in readers.items():
        lengths = reader.lengths[rows]
        codes[name] = Codes(reader.elements[spread(reader.starts[rows], lengths)], lengths)
    numbers = np.array([ids.index(name) for name in grammar.arranged(grammar.streams)])
    there = np.stack([codes[ids.streams[number].name].lengths > 0 for number in numbers], axis=1)
    packed = np.argsort(~there, axis=1, kind="stable")
    order = np.where(np.take_along_axis(there, packed, axis=1), numbers[packed], -1)
    try:
        weave(grammar, order, codes)
    except ValueError as error:
        return str(error)
    return None
