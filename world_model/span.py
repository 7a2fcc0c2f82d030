"""Spans: some runs of codes of a segment are taken out and written at the end, behind the sentinels that stand where they were.

    <bos> <frame> 4 1 <span-0> 7 7 3 <span-1> </frame> <span-0> 9 2 5 <span-1> 8 <eos>

Rate and mean length are those of T5 (arXiv:1910.10683, section 3.1), the causal form that of CM3 (arXiv:2201.07520, section 3), so that a
plain causal model learns to write what lies between two things that it has seen. One segment of a document is cut; labels that count are
the codes at the end and what ends each span: the next sentinel or <eos>. Where a stream has levels, a span has whole places.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from worldloom.world_model.example import Choice, Example, runs_of
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.next_token import FULL_SHARE, choice_of, full_choice, uniform, weights_of
from worldloom.world_model.vocabulary import Vocabulary
from worldloom.world_model.weave import FORCED, Woven

RATE, MEAN_LENGTH = 0.15, 3
# What a draw is for: added to the seed, as those of masked are.
_SEGMENT, _KEPT, _TAKEN, _FULL = 4_000_037, 5_000_011, 6_000_011, 7_000_003


class Cut(NamedTuple):
    """A document in the form above."""

    tokens: np.ndarray  # int64 [T + 2 spans]
    tail: int  # where the first sentinel of the end stands


def span(
    woven: Woven,
    grammar: Grammar,
    numbers: np.ndarray,
    seed: int,
    full_share: float = FULL_SHARE,
    weights: Mapping[str, float] | None = None,
) -> Example:
    """The example of documents with spans taken out; without those that have no codes.

    `numbers` [B] are the samples' places in the training order: with the seed they alone decide what is taken out. `full_share` of the
    labels take the softmax over the whole vocabulary. `weights`: what a label of a stream counts, 1 where nothing is said.
    """
    ends = np.cumsum(woven.lengths)
    documents = [(woven.tokens[end - length : end], int(number)) for end, length, number in zip(ends, woven.lengths, numbers, strict=True)]
    cuts = [(made, number) for tokens, number in documents if (made := cut(tokens, grammar.vocabulary, number, seed)) is not None]
    cuts.sort(key=lambda one: len(one[0].tokens))
    lengths = np.array([len(made.tokens) - 1 for made, _ in cuts], dtype=np.int64)
    none = np.empty(0, np.int64)
    labelled = [_labelled(grammar.vocabulary, made, number, seed, full_share) for made, number in cuts]
    inputs, labels, legal, ending, full = (
        np.concatenate(parts) for parts in zip(_Labelled(none, none, none, none, none > 0), *labelled, strict=True)
    )
    return Example(
        inputs=torch.from_numpy(inputs),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *map(np.arange, lengths)])),
        weights=torch.from_numpy(weights_of(grammar, legal, weights or {})),
        legal=torch.from_numpy(legal),
        runs=runs_of(lengths),
        choices=_choices(grammar.vocabulary, labels, legal, ending, full, full_share),
    )


def cut(tokens: np.ndarray, ids: Vocabulary, number: int, seed: int) -> Cut | None:
    """A whole document with spans of one segment taken out, by `seed` and the document's `number`; None where it has no codes."""
    streams = streams_of(ids, tokens)
    codes = np.flatnonzero(streams >= 0)
    if not len(codes):
        return None
    begins = np.flatnonzero(np.diff(codes, prepend=-2) > 1)
    segments = np.split(codes, begins[1:])
    mine = segments[int(uniform(seed + _SEGMENT, np.array([number]), np.array([0]))[0] * len(segments))]
    levels = ids.streams[int(streams[mine[0]])].levels
    firsts, sizes = spans_of(len(mine) // levels, ids.sentinels, number, seed)
    return take_out(tokens, ids, [mine[0] + first * levels for first in firsts], [size * levels for size in sizes])


def take_out(tokens: np.ndarray, ids: Vocabulary, firsts: Sequence[int], sizes: Sequence[int]) -> Cut:
    """A whole document whose spans [first, first + size) of codes, in order and apart from each other, stand at its end."""
    kept, taken, at = list[np.ndarray](), list[np.ndarray](), 0
    for number, (first, size) in enumerate(zip(firsts, sizes, strict=True)):
        sentinel = np.array([ids.sentinel(number)])
        kept += [tokens[at:first], sentinel]
        taken += [sentinel, tokens[first : first + size]]
        at = first + size
    prefix = np.concatenate([*kept, tokens[at:-1]])
    return Cut(np.concatenate([prefix, *taken, tokens[-1:]]).astype(np.int64), len(prefix))


def put_back(tokens: np.ndarray, ids: Vocabulary) -> np.ndarray:
    """The document that `take_out` was given; ValueError for tokens that are not of that form."""
    at = np.flatnonzero((tokens >= ids.sentinel(0)) & (tokens < ids.sentinel(0) + ids.sentinels)) if ids.sentinels else np.empty(0, int)
    half = len(at) // 2
    if not half or not np.array_equal(tokens[at], [ids.sentinel(n) for n in range(half)] * 2) or tokens[-1] != ids.eos:
        raise ValueError(
            "a document with spans has each of its sentinels twice, in order, where it was and at the end, and ends with <eos>"
        )
    spans = np.split(tokens[:-1], at[half:])[1:]
    parts = np.split(tokens[: at[half]], at[:half])
    whole = [parts[0], *(piece for taken, part in zip(spans, parts[1:], strict=True) for piece in (taken[1:], part[1:]))]
    return np.concatenate([*whole, tokens[-1:]])


def spans_of(places: int, most: int, number: int, seed: int) -> tuple[list[int], list[int]]:
    """Where spans begin among `places`, and how long they are: at most `most` of them, nowhere side by side."""
    if not most:
        raise ValueError("this vocabulary has no sentinels; train with the objective span, which gives it some")
    taken = max(1, round(places * RATE))
    spans = min(max(1, round(taken / MEAN_LENGTH)), most, places - taken + 1)
    sizes = _parts(taken, spans, uniform(seed + _TAKEN, np.full(taken, number), np.arange(taken)))
    # What is kept has a part more; the outer two may be empty, so each is given one for the moment.
    kept = _parts(places - taken + 2, spans + 1, uniform(seed + _KEPT, np.full(places - taken + 2, number), np.arange(places - taken + 2)))
    firsts = np.cumsum(kept)[:-1] - 1 + np.cumsum(sizes) - sizes
    return firsts.tolist(), sizes.tolist()


def _parts(total: int, parts: int, draws: np.ndarray) -> np.ndarray:
    """Sizes of `parts` parts of at least 1 that make up `total`, any of them as likely as another."""
    dividers = np.sort(np.argsort(draws[: total - 1], kind="stable")[: parts - 1]) + 1
    sizes: np.ndarray = np.diff([0, *dividers, total])
    return sizes


def streams_of(ids: Vocabulary, tokens: np.ndarray) -> np.ndarray:
    """int64 [T]: which stream each token is a code of, by what opens its segment; -1 for controls."""
    found = np.full(len(tokens), -1, np.int64)
    opened = -1
    for at, token in enumerate(tokens.tolist()):
        if 0 <= token - ids.indicator(0) < 2 * len(ids.streams):
            stream, closes = divmod(token - ids.indicator(0), 2)
            opened = -1 if closes else stream
        elif opened >= 0:
            found[at] = opened
    return found


class _Labelled(NamedTuple):
    """A document's inputs with their labels, and how each label counts."""

    inputs: np.ndarray  # int64 [T]
    labels: np.ndarray  # int64 [T]
    legal: np.ndarray  # int64 [T]: the stream of a label that counts, else FORCED
    ending: np.ndarray  # int64 [T]: what may end the span there, -1 where nothing may
    full: np.ndarray  # bool [T]: whether the softmax is over all ids


def _labelled(ids: Vocabulary, made: Cut, number: int, seed: int, full_share: float) -> _Labelled:
    tokens, place = made.tokens, np.arange(len(made.tokens))
    sentinel = (tokens >= ids.sentinel(0)) & (tokens < ids.sentinel(0) + ids.sentinels)
    first = int(np.flatnonzero(sentinel)[0])
    # The segment that was cut is the one that holds the first sentinel: the last that opens before it.
    opening = tokens[:first][(tokens[:first] >= ids.indicator(0)) & (tokens[:first] < ids.indicator(len(ids.streams)))][-1]
    stream = (int(opening) - ids.indicator(0)) // 2
    # For what stands behind each token of the end: the span that it goes on with, and how many codes that has so far.
    begun = np.maximum.accumulate(np.where(sentinel, place, 0))
    span_number, codes = tokens[begun] - ids.sentinel(0), place - begun
    last = span_number == int(tokens[begun[-1]]) - ids.sentinel(0)
    ending = np.where(last, ids.eos, ids.sentinel(0) + span_number + 1)
    ending = np.where((codes > 0) & (codes % ids.streams[stream].levels == 0), ending, -1)
    counts = place >= made.tail
    full = counts & (uniform(seed + _FULL, np.full(len(tokens), number), place) < full_share)
    legal = np.where(counts, stream, FORCED)
    return _Labelled(tokens[:-1], tokens[1:], legal[:-1], ending[:-1], full[:-1])


def _choices(
    ids: Vocabulary, labels: np.ndarray, legal: np.ndarray, ending: np.ndarray, full: np.ndarray, full_share: float
) -> tuple[Choice, ...]:
    opened = _restricted(ids, labels, np.where(full, legal, FORCED), ending)
    none = np.empty(0, np.int64)
    return (
        *_restricted(ids, labels, np.where(full, FORCED, legal), ending),
        full_choice(opened, none, labels, ids.size, full_share),
    )


def _restricted(ids: Vocabulary, labels: np.ndarray, legal: np.ndarray, ending: np.ndarray) -> list[Choice]:
    """One for each level of each stream: its codes and, at level 0, every sentinel and <eos>, of which one may follow if any."""
    choices = []
    ends = [(ids.eos, ids.eos + 1), (ids.sentinel(0), ids.sentinel(0) + ids.sentinels)]
    columns = np.array([ids.eos, *range(ids.sentinel(0), ids.sentinel(0) + ids.sentinels)])
    for s, stream in enumerate(ids.streams):
        index = np.flatnonzero(legal == s)
        level = np.where(np.isin(labels[index], columns), 0, (labels[index] - ids.span(s).start) // stream.codebook_size)
        for each in range(stream.levels):
            mine, codes = index[level == each], ids.level(s, each)
            if each:
                choices.append(choice_of(stream.name, mine, [(codes.start, codes.stop)], labels, None))
                continue
            allowed = np.concatenate([np.ones((len(mine), len(codes)), bool), ending[mine, None] == columns], axis=1)
            choices.append(choice_of(stream.name, mine, [(codes.start, codes.stop), *ends], labels, allowed))
    return choices
