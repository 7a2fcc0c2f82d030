"""The automaton against a regular expression that knows nothing of it."""

import re
from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
import pytest

from worldloom.world_model.grammar import BETWEEN, Grammar, IllegalToken, State
from worldloom.world_model.vocabulary import Vocabulary, code_stream
from worldloom.world_model.weave import FORCED, weave_one

IDS = Vocabulary((code_stream("words", "text", 2, max_length=2), code_stream("view", "image", 2, shape=(1, 2))), 2)
GRAMMAR = Grammar(IDS)
# Ids in turn: text pieces, <bos> <eos> <pad> <mask>, <words> </words> <view> </view>, codes.
LETTERS = "ttBE--wWvVcc"
WORDS, VIEW = "wt{0,2}W", "vccV"
LANGUAGE = re.compile(f"B(?:{WORDS}(?:{VIEW})?|{VIEW}(?:{WORDS})?)?E")


def belongs(tokens: Sequence[int]) -> bool:
    return bool(LANGUAGE.fullmatch("".join(LETTERS[token] for token in tokens)))


def walks(state: State, before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Every way through the automaton to where nothing may follow."""
    may = [token for ids in GRAMMAR.legal(state) for token in ids]
    if not may:
        yield before
    for token in may:
        yield from walks(GRAMMAR.step(state, token), (*before, token))


WHOLE = set(walks(GRAMMAR.start()))


def test_the_automaton_writes_the_language_and_nothing_else() -> None:
    # No segment, 7 texts, 4 views, and both in both orders.
    assert len(WHOLE) == 1 + 7 + 4 + 2 * 7 * 4
    assert all(belongs(tokens) for tokens in WHOLE)


@pytest.mark.parametrize("length", range(2, 11))
def test_within_a_budget_it_writes_what_fits_and_never_gets_stuck(length: int) -> None:
    assert set(walks(GRAMMAR.start(length))) == {tokens for tokens in WHOLE if len(tokens) <= length}


def test_what_is_read_is_the_language_and_nothing_else() -> None:
    for tokens in WHOLE:
        for at in range(len(tokens)):
            for token in range(IDS.size):
                for wrong in (
                    (*tokens[:at], token, *tokens[at + 1 :]),
                    (*tokens[:at], token, *tokens[at:]),
                    tokens[:at] + tokens[at + 1 :],
                ):
                    if belongs(wrong):
                        GRAMMAR.parse(wrong)
                    else:
                        with pytest.raises(IllegalToken):
                            GRAMMAR.parse(wrong)


@pytest.mark.parametrize("words", [[], [1], [0, 1]], ids=len)
def test_what_is_woven_is_read_back_and_its_legal_sets_are_the_automatons(words: list[int]) -> None:
    for order in (*permutations([("words", words), ("view", [1, 0])]), [("view", [0, 0])], [("words", words)], []):
        woven = weave_one(GRAMMAR, list(order))
        read = [(segment.stream, segment.codes.tolist()) for segment in GRAMMAR.parse(woven.tokens)]
        assert read == list(order) and belongs(woven.tokens.tolist())
        state = GRAMMAR.start()
        for token, legal in zip(woven.tokens.tolist(), woven.legal.tolist(), strict=True):
            may = [i for ids in GRAMMAR.legal(state) for i in ids]
            if len(may) == 1:
                expected = FORCED
            elif state.stream == BETWEEN:
                expected = len(IDS.streams) + sum(1 << stream for stream in GRAMMAR.openable(state))
            else:
                expected = state.stream
            assert legal == expected
            state = GRAMMAR.step(state, token)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([("view", [0])], "1 codes of stream 'view', it must have exactly 2"),
        ([("words", [0, 1, 0])], "3 codes of stream 'words', it must have at most 2"),
        ([("view", [0, 2])], "codes of stream 'view' run from 0 to 2"),
        ([("words", [IDS.eos])], "codes of stream 'words' run from 3 to 3"),
        ([("view", [0, 1]), ("view", [0, 1])], "stream 'view' stands 2 times"),
    ],
)
def test_samples_that_are_none_of_the_grammar_are_refused(segments: list[tuple[str, list[int]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weave_one(GRAMMAR, segments)


def test_a_stream_called_like_a_control_has_ids_of_its_own() -> None:
    ids = Vocabulary(tuple(code_stream(name, "image", 3, shape=(1,)) for name in ("bos", "pad", "eos", "mask")), 0)
    grammar = Grammar(ids)
    woven = weave_one(grammar, [(name, [2]) for name in ("eos", "bos", "mask", "pad")])
    assert [segment.stream for segment in grammar.parse(woven.tokens)] == ["eos", "bos", "mask", "pad"]
    assert len(set(woven.tokens.tolist())) == len(woven.tokens) == 14
    assert sorted(np.concatenate([list(ids.span(s)) for s in range(4)])) == list(range(ids.size - 12, ids.size))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3], "<eos> may not follow the start"),
        ([2, 1], "text piece 1 may not follow a closed segment"),
        ([2, 8, 9], "</view> may not follow 0 codes of <view>"),
        ([2, 6, 0, 1, 1], "text piece 1 may not follow 2 codes of <words>"),
        ([2, 6, 11], "code 1 of <view> may not follow 0 codes of <words>"),
        ([2, 3, 3], "<eos> may not follow <eos>"),
        ([2, 99], "id 99, which is not in the vocabulary of 12"),
        ([2, 6, 1], "the sample ends 1 codes of <words>, without <eos>"),
    ],
)
def test_an_illegal_token_is_named_with_its_place(tokens: list[int], message: str) -> None:
    with pytest.raises(IllegalToken, match=message):
        GRAMMAR.parse(tokens)


def test_a_sample_longer_than_its_budget_is_not_read() -> None:
    tokens = [2, 6, 0, 1, 7, 3]
    assert len(GRAMMAR.parse(tokens, length=6)) == 1
    with pytest.raises(IllegalToken, match="text piece 1 may not follow"):
        GRAMMAR.parse(tokens, length=5)
    with pytest.raises(ValueError, match="length must be at least 2, got 1"):
        GRAMMAR.start(1)


def test_a_grammar_comes_back_from_json_and_other_rules_than_the_vocabularys_are_refused() -> None:
    assert Grammar.from_json(IDS, GRAMMAR.to_json()).to_json() == GRAMMAR.to_json()
    for other in ({"streams": ["words"], "repeats": {"words": 1}}, GRAMMAR.to_json() | {"steps": 3}):
        with pytest.raises(ValueError, match="every stream of a vocabulary may stand once in a sample, so its grammar is"):
            Grammar.from_json(IDS, other)
