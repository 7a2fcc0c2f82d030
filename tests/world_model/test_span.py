"""Spans at the end: what was taken out comes back, how much and where, what counts, and what a model may see."""

import numpy as np
import pytest
import torch

from worldloom.world_model.example import join
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.infill import infill
from worldloom.world_model.next_token import next_token
from worldloom.world_model.qwen3 import _spans
from worldloom.world_model.span import cut, put_back, span, spans_of, take_out
from worldloom.world_model.vocabulary import Vocabulary, code_stream

LONG = Grammar(
    Vocabulary((code_stream("a", "image", 5, shape=(50,)), code_stream("b", "action", 4, shape=(20, 2), levels=2)), 0, sentinels=3)
)


def long_documents(worlds, count):
    codes = np.random.default_rng(1)
    made = {name: worlds.Codes(codes.integers(0, 4, count * size), np.full(count, size)) for name, size in (("a", 50), ("b", 40))}
    return worlds.weave(LONG, np.tile([1, 0], (count, 1)), made)


@pytest.fixture
def words_of_tiny(words):
    return words


@pytest.fixture
def words(worlds):
    return Grammar(Vocabulary.of(worlds.STREAMS, sentinels=3))


def test_what_was_taken_out_comes_back_for_a_thousand_seeds(worlds, words_of_tiny):
    documents = [*worlds.documents_of(worlds.some_documents(20, seed=3)), *worlds.documents_of(long_documents(worlds, 5))]
    spans = 0
    for seed in range(1_000):
        tokens = documents[seed % 25]
        words = LONG if seed % 25 >= 20 else words_of_tiny
        made = cut(tokens, words.vocabulary, number=seed, seed=seed)
        if made is None:
            assert not [segment for segment in words.parse(tokens) if len(segment.codes)]
            continue
        assert np.array_equal(put_back(made.tokens, words.vocabulary), tokens)
        taken = (len(made.tokens) - len(tokens)) // 2
        assert (made.tokens >= words.vocabulary.sentinel(0)).sum() == 2 * taken and 1 <= taken <= 3
        spans += taken
    assert spans > 900


def test_fifteen_of_a_hundred_places_are_taken_in_spans_of_three_on_average_and_all_places_alike():
    hidden = np.zeros((4_000, 60), bool)
    for number in range(4_000):
        firsts, sizes = spans_of(60, 32, number, seed=5)
        assert sum(sizes) == 9 and len(sizes) == 3
        assert all(first + size < behind for first, size, behind in zip(firsts, sizes, firsts[1:], strict=False))
        for first, size in zip(firsts, sizes, strict=True):
            hidden[number, first : first + size] = True
    assert (hidden.sum(1) == 9).all()
    assert abs(hidden[:, 5:-5].mean(0) - 0.15).max() < 0.04 and hidden.mean(0).min() > 0.05
    assert spans_of(1, 32, 0, 0) == ([0], [1])
    assert len(spans_of(1_000, 32, 0, 0)[0]) == 32


def test_spans_of_a_stream_with_levels_are_whole_places(worlds, words):
    woven = worlds.weave(worlds.GRAMMAR, np.array([[3]]), {"push": worlds.Codes(np.arange(6) % 7, np.array([6]))})
    for seed in range(30):
        made = cut(woven.tokens, words.vocabulary, 0, seed)
        taken = made.tokens[made.tail + 1 : -1]
        assert len(taken) == 2 and taken[0] in words.vocabulary.level(3, 0) and taken[1] in words.vocabulary.level(3, 1)


def test_labels_that_count_are_the_codes_at_the_end_and_what_ends_each_span(worlds, words):
    ids = words.vocabulary
    woven = worlds.some_documents(40, seed=2)
    example = span(woven, words, np.arange(40), seed=7, full_share=0.25)
    assert sum(run.documents for run in example.runs) == sum(cut(t, ids, 0, 0) is not None for t in worlds.documents_of(woven))
    counted = torch.cat([choice.places for choice in example.choices]).sort().values
    assert len(counted.unique()) == len(counted)
    first = 0
    for run in example.runs:
        assert run.causal
        for _ in range(run.documents):
            tokens = torch.cat([example.inputs[first : first + 1], example.labels[first : first + run.length]]).numpy()
            words.parse(put_back(tokens, ids))
            (at,) = np.nonzero(tokens >= ids.sentinel(0))
            tail = at[len(at) // 2]
            mine = counted[(counted >= first) & (counted < first + run.length)] - first + 1
            assert mine.tolist() == list(range(tail + 1, len(tokens)))
            first += run.length
    assert 0 < len(example.choices[-1].places) < len(counted) and example.choices[-1].name == "full"


def test_a_span_ends_with_the_next_sentinel_or_the_last_with_eos_and_never_at_once(worlds):
    ids = LONG.vocabulary
    example = span(long_documents(worlds, 60), LONG, np.arange(60), seed=1, full_share=0.0)
    ends = 0
    for choice in example.choices:
        if choice.allowed is None:
            continue
        columns = torch.cat([torch.arange(*ids_of) for ids_of in choice.ranges])
        assert choice.allowed.gather(1, choice.labels[:, None]).all()
        for place, allowed in zip(choice.places.tolist(), choice.allowed, strict=True):
            others = [int(token) for token in columns[allowed] if token == ids.eos or token >= ids.sentinel(0)]
            assert len(others) <= 1
            if int(example.inputs[place]) >= ids.sentinel(0):
                assert not others
            ends += len(others)
    assert ends > 60


def test_it_depends_on_seed_and_place_alone_and_joins_other_objectives(worlds, words):
    woven = worlds.some_documents(9, seed=1)
    alone = span(woven, words, np.arange(9), seed=3)
    again = span(woven, words, np.arange(9), seed=3)
    assert torch.equal(alone.inputs, again.inputs)
    assert not torch.equal(alone.inputs, span(woven, words, np.arange(9) + 9, seed=3).inputs)
    model = worlds.WorldModel(
        worlds.Shape(words.vocabulary.size, width=24, depth=1, heads=2, kv_heads=2, ff=16, head_width=12), torch.Generator()
    )
    plain = next_token(woven, words, np.arange(9), seed=3)
    together = model.losses(join({"next_token": plain, "span": alone}))
    assert float(together.total.detach()) == pytest.approx(
        float((model.losses(plain).total + model.losses(alone).total).detach()), rel=1e-4
    )


def test_holes_are_filled_and_nothing_else_changes(worlds, words):
    model = worlds.WorldModel(
        worlds.Shape(words.vocabulary.size, width=24, depth=1, heads=2, kv_heads=2, ff=16, head_width=12), torch.Generator().manual_seed(1)
    )
    generator = np.random.default_rng(0)
    samples, documents = [], [one for one in worlds.documents_of(worlds.some_documents(12, seed=6)) if len(one) > 8]
    for tokens in documents:
        (codes,) = np.nonzero((tokens < words.vocabulary.text_size) | (tokens >= words.vocabulary.span(1).start))
        holed = tokens.copy()
        holed[codes[generator.random(len(codes)) < 0.25][:3]] = words.vocabulary.mask
        samples.append(holed)
    seeds = list(range(len(samples)))
    filled = infill(model, words, samples, seeds=seeds)
    assert any((holed == words.vocabulary.mask).any() for holed in samples)
    for holed, made, seed in zip(samples, filled, seeds, strict=True):
        words.parse(made)
        assert np.array_equal(np.where(holed == words.vocabulary.mask, holed, made), holed)
        (alone,) = infill(model, words, [holed], seeds=[seed])
        assert np.array_equal(alone, made)


def test_what_fills_a_hole_is_what_the_model_holds_likeliest_behind_the_form_it_was_trained_in(worlds, words):
    ids = words.vocabulary
    model = worlds.WorldModel(
        worlds.Shape(ids.size, width=24, depth=1, heads=2, kv_heads=2, ff=16, head_width=12), torch.Generator().manual_seed(1)
    )
    tokens = np.array([ids.bos, ids.indicator(1), *ids.span(1)[:6], ids.closing(1), ids.eos])
    holed = np.where(np.isin(np.arange(len(tokens)), [3, 4, 7]), ids.mask, tokens)
    (made,) = infill(model, words, [holed], seeds=[0], temperature=0)
    form = take_out(made, ids, [3, 7], [2, 1])
    logits = worlds.plain_logits(model, form.tokens).detach()
    for at in (form.tail + 1, form.tail + 2, form.tail + 4):
        span_of = logits[at - 1, ids.span(1).start : ids.span(1).stop]
        assert int(span_of.argmax()) == form.tokens[at] - ids.span(1).start


def test_holes_that_cannot_be_filled_are_refused(worlds, words):
    ids = worlds.IDS
    tokens = np.array([ids.bos, ids.indicator(1), ids.mask, *ids.span(1)[:5], ids.closing(1), ids.eos])
    with pytest.raises(ValueError, match="a sample has 1 holes, and this world knows 0 sentinels; train it with the objective span"):
        infill(worlds.tiny_model(), worlds.GRAMMAR, [tokens], seeds=[0])
    with pytest.raises(ValueError, match="1 samples need as many seeds, got 2"):
        infill(worlds.tiny_model(), worlds.GRAMMAR, [tokens], seeds=[0, 1])


def test_nothing_to_cut_makes_an_empty_example_and_what_cannot_be_is_refused(worlds, words):
    empty = worlds.weave(worlds.GRAMMAR, np.full((2, 1), -1), {})
    assert span(empty, words, np.arange(2), seed=1).runs == ()
    with pytest.raises(ValueError, match="this vocabulary has no sentinels; train with the objective span"):
        span(worlds.some_documents(5), worlds.GRAMMAR, np.arange(5), seed=1)
    with pytest.raises(ValueError, match="each of its sentinels twice"):
        put_back(worlds.documents_of(worlds.some_documents(1))[0], words.vocabulary)


def test_sentinels_are_saved_stand_behind_all_other_ids_and_old_vocabularies_have_none(worlds, words):
    ids, old = words.vocabulary, worlds.IDS
    assert Vocabulary.from_json(ids.to_json()) == ids and Vocabulary.from_json(old.to_json()) == old
    assert "sentinels" not in old.to_json() and ids.size == old.size + 3
    assert all(ids.span(s) == old.span(s) and ids.indicator(s) == old.indicator(s) for s in range(4))
    assert words.describe(ids.sentinel(1)) == "<span-1>"
    assert _spans(ids)["sentinels"] == [ids.size - 3, ids.size] and _spans(old)["sentinels"] == [old.size, old.size]
    made = take_out(np.array([ids.bos, ids.indicator(1), *ids.span(1)[:6], ids.closing(1), ids.eos]), ids, [3, 6], [2, 1])
    assert made.tokens.tolist() == [
        *(ids.bos, ids.indicator(1), ids.span(1)[0], ids.sentinel(0), ids.span(1)[3], ids.sentinel(1), ids.span(1)[5], ids.closing(1)),
        *(ids.sentinel(0), *ids.span(1)[1:3], ids.sentinel(1), ids.span(1)[4], ids.eos),
    ]  # fmt: skip
