"""Next token: every position predicts the token behind it, from the ids that the grammar allows there.

Most positions take the softmax over the legal ids only, which is cheap and learns fast; a token that nothing could replace costs nothing.
That leaves illegal logits untrained, so a small share of positions, forced ones among them, takes the softmax over the whole vocabulary.
There -log of the probability that the legal ids have together counts 1 / share times, as if every position had it: on average the loss is
the cross-entropy over the whole vocabulary.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from worldloom.world_model.example import Choice, Example, Legal, runs_of
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.weave import FORCED, Woven, spread

FULL_SHARE = 1 / 16
ORDER = "order"
FULL = "full"


def next_token(
    woven: Woven,
    grammar: Grammar,
    numbers: np.ndarray,
    seed: int,
    full_share: float = FULL_SHARE,
    weights: Mapping[str, float] | None = None,
) -> Example:
    """The example of `woven` documents, each without what stands behind its last choice.

    `numbers` [B] are the samples' places in the training order, over all epochs:
    (seed, number, position) alone decide whether a position takes the full softmax, whatever batch or rank the document is in.
    `weights`: what a label of a stream (its codes and its closing token) or of "order" counts, 1 where nothing is said.
    """
    starts = np.cumsum(woven.lengths) - woven.lengths
    places = spread(np.zeros_like(starts), woven.lengths)
    # `full` of a token says that the position before it, which predicts it, takes the full softmax.
    full = (uniform(seed, np.repeat(np.asarray(numbers), woven.lengths), places) < full_share) & (places > grammar.vocabulary.ahead)
    # Nothing is to be learnt behind the last label that costs anything, so the document ends there.
    lengths = _last(places * (full | (woven.legal != FORCED)), starts)
    by_length = np.argsort(lengths, kind="stable")
    lengths, starts = lengths[by_length], starts[by_length]
    at = spread(starts, lengths)
    labels, legal, full = woven.tokens[at + 1], woven.legal[at + 1], full[at + 1]
    return Example(
        inputs=torch.from_numpy(woven.tokens[at]),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(places[at]),
        weights=torch.from_numpy(weights_of(grammar, legal, weights or {})),
        legal=torch.from_numpy(legal),
        runs=runs_of(lengths),
        choices=_choices(grammar, labels, legal, full, full_share),
    )


def uniform(seed: int, numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Independent draws in [0, 1), float64, each a function of (seed, number, position) only: two rounds of SplitMix64.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        key = _mix(np.asarray(numbers).astype(np.uint64) + _mix(np.array([seed], dtype=np.uint64)))
        key = _mix(key + np.asarray(positions).astype(np.uint64))
    drawn: np.ndarray = (key >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn


def _last(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The largest of every document's values."""
    return np.maximum.reduceat(values, starts) if len(starts) else np.zeros(0, dtype=np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def check_weights(grammar: Grammar, weights: Mapping[str, float]) -> None:
    """ValueError for a name that is neither a stream nor "order"."""
    known = {*(stream.name for stream in grammar.vocabulary.streams), ORDER}
    if unknown := set(weights) - known:
        raise ValueError(f"weights for {sorted(unknown)}, but there are only {sorted(known)}")


def weights_of(grammar: Grammar, legal: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """float32 [N]: what the label of each legal set counts; ValueError as `check_weights`."""
    check_weights(grammar, weights)
    ids = grammar.vocabulary
    S = len(ids.streams)
    table = np.ones(S + 2, dtype=np.float32)  # forced tokens keep weight 1 where they take the full softmax
    for s, stream in enumerate(ids.streams):
        table[s] = weights.get(stream.name, 1.0)
    table[S] = weights.get(ORDER, 1.0)
    result: np.ndarray = table[np.where(legal < 0, S + 1, np.minimum(legal, S))]
    return result


def _choices(grammar: Grammar, labels: np.ndarray, legal: np.ndarray, full: np.ndarray, full_share: float) -> tuple[Choice, ...]:
    opened = _restricted(grammar, labels, np.where(full, legal, FORCED))
    forced = np.flatnonzero(full & (legal == FORCED))
    return (
        *_restricted(grammar, labels, np.where(full, FORCED, legal)),
        full_choice(opened, forced, labels, grammar.vocabulary.size, full_share),
    )


def _restricted(grammar: Grammar, labels: np.ndarray, legal: np.ndarray) -> list[Choice]:
    """Every position, but forced ones, among the choices of its own legal set."""
    ids = grammar.vocabulary
    S = len(ids.streams)
    choices = []
    for s, stream in enumerate(ids.streams):
        index = np.flatnonzero(legal == s)
        level = (labels[index] - ids.span(s).start) // stream.codebook_size  # of one level only, the closing token counts to it
        for number in range(stream.levels):
            span = ids.level(s, number)
            ranges = [(span.start, span.stop)]
            if not stream.fixed:
                ranges.append((ids.closing(s), ids.closing(s) + 1))
            choices.append(choice_of(stream.name, index if stream.levels == 1 else index[level == number], ranges, labels, None))
    index = np.flatnonzero(legal >= S)
    bits = legal[index] - S
    indicators = [(ids.indicator(s), ids.indicator(s) + 1) for s in range(S)]
    openable = (bits[:, None] >> np.arange(S)) & 1 > 0
    may_end = (bits[:, None] >> S) & 1 == 0
    allowed = np.concatenate([may_end, openable], axis=1)
    return [*choices, choice_of(ORDER, index, [(ids.eos, ids.eos + 1), *indicators], labels, allowed)]


def full_choice(opened: Sequence[Choice], forced: np.ndarray, labels: np.ndarray, size: int, share: float) -> Choice:
    """The places of restricted choices, and `forced` ones, with the softmax over all `size` ids; they are a `share` of all."""
    places = torch.cat([*(choice.places for choice in opened), torch.from_numpy(forced)])
    legal = tuple(Legal(len(choice.places), choice.ranges, choice.allowed) for choice in opened if len(choice.places))
    return Choice(
        FULL,
        places,
        ((0, size),),
        torch.from_numpy(labels)[places],
        None,
        legal=(*legal, Legal(len(forced), (), None)),
        legality=1 / share if share else 1.0,
    )


def choice_of(name: str, index: np.ndarray, ranges: list[tuple[int, int]], labels: np.ndarray, allowed: np.ndarray | None) -> Choice:
    """The labels at `index` as columns of the `ranges` of ids that they were chosen from."""
    first = np.cumsum([0, *(last - first for first, last in ranges)])
    mine, columns = labels[index], np.full(len(index), -1, dtype=np.int64)
    for offset, (start, stop) in zip(first, ranges, strict=False):
        inside = (mine >= start) & (mine < stop)
        columns[inside] = mine[inside] - start + offset
    assert (columns >= 0).all(), "a label lies outside its legal set"
    return Choice(
        name,
        torch.from_numpy(index),
        tuple(ranges),
        torch.from_numpy(columns),
        None if allowed is None else torch.from_numpy(allowed),
    )
