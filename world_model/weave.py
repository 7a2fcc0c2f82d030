"""Samples -> documents: the codes of every stream, in the order that the caller chose, between their control tokens.

All documents of a batch are written at once, without a Python step for a document or a token. Beside every token stands the number of the
legal set that it was chosen from, so that the loss need not run the automaton:

    FORCED                nothing else could stand there
    s                     inside a segment of stream s: its span (of the level whose turn it is) and, where its length varies, its closing
                          token
    S + bits              between segments, S streams in all: <eos>, and the indicator of every stream s with bit s set
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from worldloom.world_model.grammar import Grammar

FORCED = -1


class Codes(NamedTuple):
    """The codes of one stream for B samples, one behind the other."""

    values: np.ndarray  # integers, [sum(lengths)]; where there are levels, those of a place side by side
    lengths: np.ndarray  # integers, [B]; 0 for a sample without this stream


class Woven(NamedTuple):
    """B documents, one behind the other."""

    tokens: np.ndarray  # int64 [N]
    legal: np.ndarray  # int64 [N], the legal set that the token at this place was chosen from
    lengths: np.ndarray  # int64 [B], tokens of every document


def spread(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[i], starts[i] + 1, ... lengths[i] of them, for every i in turn: the indices of ragged rows, int64."""
    lengths = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    indices: np.ndarray = np.arange(total, dtype=np.int64) + np.repeat(np.asarray(starts, dtype=np.int64) - (ends - lengths), lengths)
    return indices


def document_lengths(order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tokens of every document, for `order` [B, K] as in `weave` and code counts `lengths` [B, S]."""
    counts = np.take_along_axis(np.asarray(lengths, dtype=np.int64), np.maximum(order, 0), axis=1) + 2
    result: np.ndarray = 2 + np.where(order >= 0, counts, 0).sum(axis=1)
    return result


def weave(grammar: Grammar, order: np.ndarray, codes: Mapping[str, Codes]) -> Woven:
    """Writes B documents; row b of `order` [B, K] holds the numbers of its streams (in `grammar.vocabulary`), in turn, -1 behind the last.

    ValueError for a stream that the grammar does not allow, one that comes too often, a code outside its codebook, a length that the
    stream's shape or `max_length` does not allow.
    """
    ids = grammar.vocabulary
    order = np.asarray(order, dtype=np.int64)
    B, S = len(order), len(ids.streams)
    lengths_BS = np.zeros((B, S), dtype=np.int64)
    for name, (_, lengths) in codes.items():
        lengths_BS[:, ids.index(name)] = lengths
    _check_order(grammar, order)
    # Where every segment begins, with its indicator.
    counts_BK = np.where(order >= 0, np.take_along_axis(lengths_BS, np.maximum(order, 0), axis=1) + 2, 0)
    lengths_B = 2 + counts_BK.sum(axis=1)
    ends_B = np.cumsum(lengths_B)
    opens_BK = (ends_B - lengths_B + 1)[:, None] + np.cumsum(counts_BK, axis=1) - counts_BK
    tokens = np.empty(int(ends_B[-1]) if B else 0, dtype=np.int64)
    legal = np.full(len(tokens), FORCED, dtype=np.int64)
    tokens[ends_B - lengths_B] = ids.bos
    tokens[ends_B - 1] = ids.eos
    choices_BK, choice_at_end_B = _choices(grammar, order)
    legal[ends_B - 1] = choice_at_end_B
    for s, stream in enumerate(ids.streams):
        b, k = np.nonzero(order == s)
        if not len(b):
            continue
        values, lengths = codes[stream.name]
        span, opens, counts = ids.span(s), opens_BK[b, k], lengths_BS[b, s]
        _check_lengths(stream.name, counts, stream.min_length, stream.max_length)
        tokens[opens] = ids.indicator(s)
        legal[opens] = choices_BK[b, k]
        source = spread((np.cumsum(lengths_BS[:, s]) - lengths_BS[:, s])[b], counts)
        target = spread(opens + 1, counts)
        woven = np.asarray(values)[source].astype(np.int64)
        _check_codes(stream.name, woven, stream.codebook_size)
        level = spread(np.zeros_like(opens), counts) % stream.levels
        tokens[target] = woven + level * stream.codebook_size + span.start
        legal[target] = s
        closes = opens + counts + 1
        tokens[closes] = ids.closing(s)
        if not stream.fixed:
            legal[closes] = np.where(counts < stream.max_length, s, FORCED)
    return Woven(tokens, legal, lengths_B)


def weave_one(grammar: Grammar, segments: Sequence[tuple[str, Sequence[int] | np.ndarray]]) -> Woven:
    """The document of one sample, its segments in the order given."""
    order = np.array([[grammar.vocabulary.index(name) for name, _ in segments]], dtype=np.int64).reshape(1, -1)
    codes = {name: Codes(np.asarray(values, dtype=np.int64), np.array([len(values)])) for name, values in segments}
    return weave(grammar, order, codes)


def _choices(grammar: Grammar, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The legal sets of every indicator, [B, K], and of <eos>, [B]."""
    B, K = order.shape
    S = len(grammar.vocabulary.streams)
    assert S < 56, "bits of a legal set are kept in an int64"
    repeats = np.array(grammar.repeats, dtype=np.int64)
    opened_BS = np.zeros((B, S), dtype=np.int64)
    bits = np.int64(1) << np.arange(S, dtype=np.int64)
    choices_BK = np.empty((B, K), dtype=np.int64)
    for k in range(K):
        choices_BK[:, k] = S + ((opened_BS < repeats) * bits).sum(axis=1)
        there = np.nonzero(order[:, k] >= 0)[0]
        opened_BS[there, order[there, k]] += 1
    open_B = ((opened_BS < repeats) * bits).sum(axis=1)
    return choices_BK, np.where(open_B > 0, S + open_B, FORCED)


def _check_order(grammar: Grammar, order: np.ndarray) -> None:
    S = len(grammar.vocabulary.streams)
    if order.size and not (order.min() >= -1 and order.max() < S):
        raise ValueError(f"the order of streams must hold numbers 0..{S - 1} or -1, got {order.min()}..{order.max()}")
    if ((order[:, 1:] >= 0) & (order[:, :-1] < 0)).any():
        raise ValueError("in an order of streams, -1 may only stand behind the last stream")
    for s, repeats in enumerate(grammar.repeats):
        if order.size and (seen := int((order == s).sum(axis=1).max())) > min(repeats, 1):
            name = grammar.vocabulary.streams[s].name
            raise ValueError(f"stream {name!r} stands {seen} times in a sample, it may stand at most {min(repeats, 1)} times")


def _check_lengths(name: str, lengths: np.ndarray, least: int, most: int) -> None:
    if (lengths < least).any() or (lengths > most).any():
        wrong = int(lengths[(lengths < least) | (lengths > most)][0])
        rule = f"exactly {most}" if least == most else f"at most {most}"
        raise ValueError(f"a sample has {wrong} codes of stream {name!r}, it must have {rule}")


def _check_codes(name: str, codes: np.ndarray, codebook_size: int) -> None:
    if len(codes) and not (codes.min() >= 0 and codes.max() < codebook_size):
        raise ValueError(f"codes of stream {name!r} run from {codes.min()} to {codes.max()}, its codebook from 0 to {codebook_size - 1}")
