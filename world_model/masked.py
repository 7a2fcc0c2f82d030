"""Masked codes: some codes of a document are hidden and predicted from all that is left, before and behind (MaskGIT, arXiv:2202.04200).

Some segments of a document, at least one, have codes hidden: of N codes max(1, ceil(N cos(pi u / 2))), u uniform in [0, 1). A hidden code
is predicted at its own place, where next_token predicts the token behind. Control tokens are never hidden: how long a segment is, is known.
Of a stream on the clock, the codes of all steps count as one segment.
"""

from collections.abc import Mapping

import numpy as np
import torch

from worldloom.world_model.example import Choice, Example, runs_of
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.next_token import choice_of, uniform, weights_of
from worldloom.world_model.weave import FORCED, Woven, spread

SMOOTHING = 0.1
# What a draw is for: added to the seed, so that the three are independent of each other and of those of next_token.
_HIDDEN, _SHARE, _PLACE = 1_000_003, 2_000_003, 3_000_017


def masked(
    woven: Woven, grammar: Grammar, numbers: np.ndarray, seed: int, weights: Mapping[str, float] | None = None, smoothing: float = SMOOTHING
) -> Example:
    """The example of whole documents in which each position sees its whole document; without those that have no codes.

    `numbers` [B] are the samples' places in the training order: with the seed they alone decide what is hidden. `weights`: what a code of
    a stream counts, 1 where nothing is said.
    """
    ids = grammar.vocabulary
    starts = np.cumsum(woven.lengths) - woven.lengths
    of_code = _is_code(grammar, woven)
    has_codes = np.add.reduceat(of_code, starts) > 0 if len(starts) else np.zeros(0, bool)
    lengths = np.where(has_codes, woven.lengths, 0)
    by_length = np.argsort(lengths, kind="stable")
    at = spread(starts[by_length], lengths[by_length])
    document = np.repeat(np.arange(len(lengths)), lengths[by_length])
    number = np.asarray(numbers)[by_length][document] if len(document) else np.zeros(0, np.int64)
    places = spread(np.zeros_like(starts), lengths[by_length])
    tokens, of_code = woven.tokens[at], of_code[at]
    hidden = _hidden(of_code, np.where(np.isin(woven.legal[at], ids.clocked), woven.legal[at], -1), document, number, places, seed)
    inputs = np.where(hidden, ids.mask, tokens)
    legal = np.where(hidden, woven.legal[at], FORCED)
    return Example(
        inputs=torch.from_numpy(inputs),
        labels=torch.from_numpy(tokens),
        positions=torch.from_numpy(places),
        weights=torch.from_numpy(weights_of(grammar, legal, weights or {})),
        legal=torch.from_numpy(legal),
        runs=tuple(run._replace(causal=False) for run in runs_of(lengths[by_length])),
        choices=_choices(grammar, tokens, legal, smoothing),
    )


def _is_code(grammar: Grammar, woven: Woven) -> np.ndarray:
    """bool [N]: every token that is no control, nor ahead of the document."""
    ids = grammar.vocabulary
    is_code: np.ndarray = (woven.tokens < ids.text_size) | (woven.tokens >= ids.text_size + len(ids.controls)) & (woven.tokens < ids.size)
    return is_code


def _hidden(
    of_code: np.ndarray, clocked: np.ndarray, document: np.ndarray, number: np.ndarray, places: np.ndarray, seed: int
) -> np.ndarray:
    """bool [N]: which codes are hidden; `clocked` is the stream of a code on the clock, -1 elsewhere."""
    codes = np.flatnonzero(of_code)
    if not len(codes):
        return np.zeros(len(of_code), bool)
    # Between two segments there are control tokens, so a segment begins where the code before is not its neighbour.
    begins = np.diff(codes, prepend=-2) > 1
    segment = np.cumsum(begins) - 1
    first = codes[begins]
    if (clocked[first] >= 0).any():
        keys = np.where(clocked[first] >= 0, -1 - (document[first] * (clocked.max() + 1) + clocked[first]), np.arange(len(first)))
        _, index, joined = np.unique(keys, return_index=True, return_inverse=True)
        segment, first = joined[segment], first[index]
    counts = np.bincount(segment)
    luck = uniform(seed + _HIDDEN, number[first], places[first])
    most = np.zeros(int(document.max()) + 1)
    np.maximum.at(most, document[first], luck)
    chosen = (luck >= 0.5) | (luck == most[document[first]])
    u = uniform(seed + _SHARE, number[first], places[first])
    wanted = np.where(chosen, np.maximum(1, np.ceil(counts * np.cos(np.pi / 2 * u))), 0)
    # Of every segment, as many codes as wanted with the smallest draws.
    draws = uniform(seed + _PLACE, number[codes], places[codes])
    by_draw = np.lexsort((draws, segment))
    rank = np.empty(len(codes), np.int64)
    rank[by_draw] = spread(np.zeros_like(counts), counts)
    hidden = np.zeros(len(of_code), bool)
    hidden[codes] = rank < wanted[segment]
    return hidden


def _choices(grammar: Grammar, tokens: np.ndarray, legal: np.ndarray, smoothing: float) -> tuple[Choice, ...]:
    """One for each level of each stream: its codes, and not its closing token."""
    ids = grammar.vocabulary
    choices = []
    for s, stream in enumerate(ids.streams):
        index = np.flatnonzero(legal == s)
        level = (tokens[index] - ids.span(s).start) // stream.codebook_size
        for each in range(stream.levels):
            span = ids.level(s, each)
            choice = choice_of(stream.name, index[level == each], [(span.start, span.stop)], tokens, None)
            choices.append(choice._replace(smoothing=smoothing))
    return tuple(choices)
