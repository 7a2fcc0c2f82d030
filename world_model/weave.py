"""Samples -> documents: the codes of every stream, in the order that the caller chose, between their control tokens.

All documents of a batch are written at once, without a Python step for a document or a token. Beside every token stands the number of the
legal set that it was chosen from, so that the loss need not run the automaton:

    FORCED                nothing else could stand there
    s                     inside a segment of stream s: its span (of the level whose turn it is) and, where its length varies, its closing
                          token
    S + bits              between segments, S streams in all: the indicator of every stream s with bit s set, and <eos> unless bit S is set

Streams on the clock stand side by side in the order that the caller chose, and are written step by step.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from worldloom.world_model.grammar import Grammar
from worldloom.world_model.vocabulary import Vocabulary

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


def document_lengths(grammar: Grammar, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Tokens of every document, for `order` [B, K] as in `weave` and code counts `lengths` [B, S]."""
    result: np.ndarray = 2 + np.where(order >= 0, _tokens_of(grammar, order, lengths), 0).sum(axis=1)
    return result


def weave(grammar: Grammar, order: np.ndarray, codes: Mapping[str, Codes]) -> Woven:
    """Writes B documents; row b of `order` [B, K] holds the numbers of its streams (in `grammar.vocabulary`), in turn, -1 behind the last.

    ValueError for a stream that the grammar does not allow, one that comes too often, streams of the clock that do not stand together in
    its order, a code outside its codebook, a length that the stream's shape or `max_length` does not allow.
    """
    ids = grammar.vocabulary
    order = np.asarray(order, dtype=np.int64)
    B, S = len(order), len(ids.streams)
    lengths_BS = np.zeros((B, S), dtype=np.int64)
    for name, (_, lengths) in codes.items():
        lengths_BS[:, ids.index(name)] = lengths
    _check_order(grammar, order)
    # Where every stream begins, with its first indicator.
    counts_BK = np.where(order >= 0, _tokens_of(grammar, order, lengths_BS), 0)
    lengths_B = 2 + counts_BK.sum(axis=1)
    ends_B = np.cumsum(lengths_B)
    opens_BK = (ends_B - lengths_B + 1)[:, None] + np.cumsum(counts_BK, axis=1) - counts_BK
    tokens = np.empty(int(ends_B[-1]) if B else 0, dtype=np.int64)
    legal = np.full(len(tokens), FORCED, dtype=np.int64)
    tokens[ends_B - lengths_B] = ids.bos
    tokens[ends_B - 1] = ids.eos
    choices = _choices(grammar, order)
    legal[ends_B - 1] = choices.end_B
    for s, stream in enumerate(ids.streams):
        b, k = np.nonzero(order == s)
        if not len(b):
            continue
        values = codes[stream.name].values
        span, counts = ids.span(s), lengths_BS[b, s]
        _check_lengths(grammar, s, counts)
        opens = opens_BK[b, k][:, None]
        if stream.steps:
            group = np.where(np.isin(order[b], ids.clocked), opens_BK[b], len(tokens)).min(axis=1)
            opens = group[:, None] + _steps(grammar, order[b], s)
            begins = choices.begins_B[b] == s
            legal[opens[begins, 1:2]] = choices.second_B[b[begins], None]
        # Segments, those of all steps one behind the other.
        tokens[opens] = ids.indicator(s)
        legal[opens[:, 0]] = choices.first_BK[b, k]
        each = np.repeat(counts // opens.shape[1], opens.shape[1])
        starts = opens.ravel() + 1
        source = spread((np.cumsum(lengths_BS[:, s]) - lengths_BS[:, s])[b], counts)
        target = spread(starts, each)
        woven = np.asarray(values)[source].astype(np.int64)
        _check_codes(stream.name, woven, stream.codebook_size)
        level = spread(np.zeros_like(starts), each) % stream.levels
        tokens[target] = woven + level * stream.codebook_size + span.start
        legal[target] = s
        closes = starts + each
        tokens[closes] = ids.closing(s)
        if not stream.fixed:
            legal[closes] = np.where(each < stream.max_length, s, FORCED)
    return Woven(tokens, legal, lengths_B)


def reserve(woven: Woven, ids: Vocabulary) -> Woven:
    """The same documents with the reserved places ahead of each: document b has the ids size + b * ahead on, rows of what is seen."""
    B, T = len(woven.lengths), ids.ahead
    if not T:
        return woven
    lengths = woven.lengths + T
    starts = np.cumsum(lengths) - lengths
    tokens, legal = np.empty(len(woven.tokens) + B * T, np.int64), np.full(len(woven.tokens) + B * T, FORCED, np.int64)
    ahead, behind = spread(starts, np.full(B, T)), spread(starts + T, woven.lengths)
    tokens[ahead], tokens[behind] = ids.size + np.arange(B * T), woven.tokens
    legal[behind] = woven.legal
    return Woven(tokens, legal, lengths)


def weave_one(grammar: Grammar, segments: Sequence[tuple[str, Sequence[int] | np.ndarray]]) -> Woven:
    """The document of one sample, its segments in the order given."""
    order = np.array([[grammar.vocabulary.index(name) for name, _ in segments]], dtype=np.int64).reshape(1, -1)
    codes = {name: Codes(np.asarray(values, dtype=np.int64), np.array([len(values)])) for name, values in segments}
    return weave(grammar, order, codes)


def _tokens_of(grammar: Grammar, order: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[B, K] tokens of each stream with its indicators and closing tokens; anything where there is none."""
    segments = np.array([max(stream.steps, 1) for stream in grammar.vocabulary.streams] or [1])
    there = np.maximum(order, 0)
    counts: np.ndarray = np.take_along_axis(np.asarray(lengths, dtype=np.int64), there, axis=1) + 2 * segments[there]
    return counts


def _steps(grammar: Grammar, order: np.ndarray, stream: int) -> np.ndarray:
    """[B, steps] where a stream's segment of each step opens, counted from where the first step of all begins."""
    ids = grammar.vocabulary
    steps = np.arange(ids.streams[stream].steps)
    opens, before = np.zeros((len(order), len(steps)), np.int64), True
    for other in ids.clocked:
        before = before and other != stream
        there = (order == other).any(axis=1)[:, None] * (ids.streams[other].step_length + 2)
        opens += there * np.minimum(steps + before, ids.streams[other].steps)
    return opens


class _Choices(NamedTuple):
    """The legal sets of what is chosen between segments."""

    first_BK: np.ndarray  # of every stream's first indicator
    second_B: np.ndarray  # of the indicator that begins the second step of the clock
    begins_B: np.ndarray  # the stream that this is of, -1 where there is none
    end_B: np.ndarray  # of <eos>


def _choices(grammar: Grammar, order: np.ndarray) -> _Choices:
    """Column by column as the automaton would. `joining`: the clock's streams that may open now; `onward`: the one that it goes on with."""
    B, K = order.shape
    ids = grammar.vocabulary
    S = len(ids.streams)
    assert S < 55, "bits of a legal set are kept in an int64"
    bits = np.int64(1) << np.arange(S + 1, dtype=np.int64)
    on_clock = np.isin(np.arange(-1, S), ids.clocked)  # by number + 1
    opened_BS = np.zeros((B, S), dtype=np.int64)
    joining_B = np.full(B, bits[list(ids.clocked)].sum(), dtype=np.int64)
    onward_B, begun_B = np.full(B, -1, dtype=np.int64), np.zeros(B, dtype=bool)
    first_BK = np.empty((B, K), dtype=np.int64)
    second_B, begins_B = np.full(B, FORCED, dtype=np.int64), np.full(B, -1, dtype=np.int64)

    def inside() -> np.ndarray:
        """Within the first step, when there is another: <eos> is not among them."""
        return np.where(joining_B > 0, S + (joining_B | bits[onward_B] | bits[S]), FORCED)

    def between() -> np.ndarray:
        free_B = ((~on_clock[1:] & (opened_BS == 0)) * bits[:S]).sum(axis=1) | joining_B
        return np.where(onward_B >= 0, inside(), np.where(free_B > 0, S + free_B, FORCED))

    for k in range(K + 1):
        stream_B = order[:, k] if k < K else np.full(B, -1)
        clocked_B = on_clock[stream_B + 1]
        steps_B = (onward_B >= 0) & ~clocked_B  # the later steps are written here
        second_B[steps_B], begins_B[steps_B] = inside()[steps_B], onward_B[steps_B]
        joining_B[steps_B], onward_B[steps_B] = 0, -1
        if k == K:
            break
        first_BK[:, k] = between()
        there = np.flatnonzero(stream_B >= 0)
        opened_BS[there, stream_B[there]] += 1
        joining_B[begun_B & ~clocked_B & (stream_B >= 0)] = 0
        begun_B |= clocked_B
        for place, s in enumerate(ids.clocked):
            here = stream_B == s
            joining_B[here] = bits[list(ids.clocked[place + 1 :])].sum()
            onward_B[here & (onward_B < 0) & (ids.streams[s].steps > 1)] = s
    return _Choices(first_BK, second_B, begins_B, between())


def _check_order(grammar: Grammar, order: np.ndarray) -> None:
    S = len(grammar.vocabulary.streams)
    if order.size and not (order.min() >= -1 and order.max() < S):
        raise ValueError(f"the order of streams must hold numbers 0..{S - 1} or -1, got {order.min()}..{order.max()}")
    if ((order[:, 1:] >= 0) & (order[:, :-1] < 0)).any():
        raise ValueError("in an order of streams, -1 may only stand behind the last stream")
    for s, stream in enumerate(grammar.vocabulary.streams):
        if order.size and (seen := int((order == s).sum(axis=1).max())) > 1:
            raise ValueError(f"stream {stream.name!r} stands {seen} times in a sample, it may stand at most once")
    _check_clock(grammar, order)


def _check_clock(grammar: Grammar, order: np.ndarray) -> None:
    places = np.full(len(grammar.vocabulary.streams) + 1, -1)
    places[[s + 1 for s in grammar.vocabulary.clocked]] = np.arange(len(grammar.vocabulary.clocked))
    place_BK = places[order + 1]
    clocked_BK = np.pad(place_BK >= 0, ((0, 0), (1, 0)))
    groups_B = (clocked_BK[:, 1:] & ~clocked_BK[:, :-1]).sum(axis=1)
    backwards = (place_BK[:, 1:] >= 0) & (place_BK[:, 1:] <= place_BK[:, :-1])
    if (groups_B > 1).any() or backwards.any():
        names = ", ".join(grammar.vocabulary.clock.streams) if grammar.vocabulary.clock else ""
        raise ValueError(f"streams on the clock stand side by side in an order of streams, and in the clock's own: {names}")


def _check_lengths(grammar: Grammar, stream: int, lengths: np.ndarray) -> None:
    about = grammar.vocabulary.streams[stream]
    name, least, most = about.name, about.min_length, about.max_length
    if (lengths < least).any() or (lengths > most).any():
        wrong = int(lengths[(lengths < least) | (lengths > most)][0])
        rule = f"exactly {most}" if least == most else f"at most {most}"
        raise ValueError(f"a sample has {wrong} codes of stream {name!r}, it must have {rule}")


def _check_codes(name: str, codes: np.ndarray, codebook_size: int) -> None:
    if len(codes) and not (codes.min() >= 0 and codes.max() < codebook_size):
        raise ValueError(f"codes of stream {name!r} run from {codes.min()} to {codes.max()}, its codebook from 0 to {codebook_size - 1}")
