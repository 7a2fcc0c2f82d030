"""Vectors ahead of the tokens: what they change, whom they reach, and whom they do not."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.decoder import Cache, Decoder, Whole
from worldloom.world_model.example import Example, Run
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.masked import masked
from worldloom.world_model.next_token import next_token
from worldloom.world_model.parallel import fill_in
from worldloom.world_model.qwen3 import save_qwen3
from worldloom.world_model.sampling import generate, prompt
from worldloom.world_model.span import span
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary, code_stream
from worldloom.world_model.weave import Codes, Woven, reserve, weave

T, W = 3, 5
STREAMS = (code_stream("words", "text", 11, max_length=6), code_stream("view", "image", 7, shape=(2, 2)))
PLAIN = Vocabulary(STREAMS, 11, sentinels=4)
IDS = dataclasses.replace(PLAIN, ahead=T)


@pytest.fixture
def model() -> WorldModel:
    shape = Shape(IDS.size, width=16, depth=2, heads=2, kv_heads=1, ff=24, head_width=8, ahead=T, seen_width=W)
    made = WorldModel(shape, torch.Generator().manual_seed(0))
    with torch.no_grad():  # far from the first weights, so that what is seen counts
        for name, parameter in made.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return made


def documents() -> Woven:
    """Three documents of different lengths."""
    generator = np.random.default_rng(0)
    lengths = np.array([2, 5, 0])
    codes = {
        "words": Codes(generator.integers(0, 11, lengths.sum()), lengths),
        "view": Codes(generator.integers(0, 7, 12), np.array([4, 4, 4])),
    }
    return weave(Grammar(IDS), np.array([[0, 1], [1, 0], [1, -1]]), codes)


def vectors() -> torch.Tensor:
    return torch.randn(3 * T, W, generator=torch.Generator().manual_seed(1))


def hidden(model: WorldModel, example: Example, seen: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(example.inputs, example.positions, PackedAttention(example.runs), seen)
    return found


def test_reserved_places_stand_ahead_of_every_document() -> None:
    woven, made = documents(), reserve(documents(), IDS)
    starts = np.cumsum(made.lengths) - made.lengths
    for b, (start, length) in enumerate(zip(starts.tolist(), made.lengths.tolist(), strict=True)):
        assert made.tokens[start : start + T].tolist() == [IDS.size + b * T + t for t in range(T)]
        assert made.tokens[start + T] == IDS.bos and length == woven.lengths[b] + T
    assert np.array_equal(IDS.own(made.tokens), woven.tokens)
    assert np.array_equal(made.legal[made.tokens < IDS.size], woven.legal)
    assert reserve(woven, PLAIN) is woven


@pytest.mark.parametrize("make", [next_token, masked, span], ids=lambda make: make.__name__)
def test_nobody_predicts_what_is_seen_and_all_else_is_predicted_as_before(make) -> None:  # type: ignore[no-untyped-def]
    some = np.arange(3)
    options = {} if make is masked else {"full_share": 0.0}
    with_, without = (
        make(woven, Grammar(ids), some, 5, **options) for woven, ids in ((reserve(documents(), IDS), IDS), (documents(), PLAIN))
    )
    assert (with_.inputs >= IDS.size).sum() == 3 * T and len(with_.inputs) == len(without.inputs) + 3 * T
    assert [choice.name for choice in with_.choices] == [choice.name for choice in without.choices]
    for mine, theirs in zip(with_.choices, without.choices, strict=True):
        assert (with_.labels[mine.places] < IDS.size).all()
        if make is next_token:  # the draws of the others follow the places
            assert Counter(mine.labels.tolist()) == Counter(theirs.labels.tolist())
    everywhere = next_token(reserve(documents(), IDS), Grammar(IDS), some, 5, 1.0)
    full = next(choice for choice in everywhere.choices if choice.name == "full")
    assert len(full.places) == int(documents().lengths.sum()) - 3


def test_packed_is_alone_and_no_document_sees_anothers(model: WorldModel) -> None:
    example = next_token(reserve(documents(), IDS), Grammar(IDS), np.arange(3), 0)
    seen = vectors()
    together = hidden(model, example, seen)
    first = torch.cat(
        [torch.zeros(1, dtype=torch.int64), (example.segments.diff() != 0).nonzero()[:, 0] + 1, torch.tensor([len(together)])]
    )
    for at, to in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        part = slice(at, to)
        alone = example._replace(inputs=example.inputs[part], positions=example.positions[part], runs=(Run(1, to - at),))
        torch.testing.assert_close(hidden(model, alone, seen), together[part], atol=1e-5, rtol=1e-5)
        mine = (alone.inputs[alone.inputs >= IDS.size] - IDS.size).tolist()
        others = seen.clone()
        others[[row for row in range(3 * T) if row not in mine]] += 1.0
        changed = hidden(model, example, others)
        assert torch.equal(changed[part], together[part]) and not torch.equal(changed, together)
        mine_changed = seen.clone()
        mine_changed[mine] = mine_changed[mine].flip(1)
        assert not torch.allclose(hidden(model, example, mine_changed)[part][-1], together[part][-1], atol=1e-3)


def test_nothing_seen_is_learnt_and_differs_from_anything_seen(model: WorldModel) -> None:
    example = next_token(reserve(documents(), IDS), Grammar(IDS), np.arange(3), 0)
    seen = vectors()
    seen[:T] = torch.nan
    model.losses(example, seen).total.backward()
    assert model.seen.grad is not None and model.unseen.grad is not None
    assert model.seen.grad.isfinite().all() and model.seen.grad.abs().sum() > 0 and model.unseen.grad.abs().sum() > 0
    model.zero_grad()
    model.losses(example, vectors()).total.backward()
    assert model.unseen.grad is not None and not model.unseen.grad.any()
    torch.testing.assert_close(model.look(seen)[0], model.unseen)


def test_the_decoder_sees_what_the_model_does(model: WorldModel) -> None:
    seen = vectors()[:T]
    tokens = [IDS.bos, IDS.indicator(1), *(IDS.span(1).start + code for code in (1, 5, 0, 6)), IDS.closing(1)]
    decoder = Decoder(model)
    ids = decoder.look(seen)
    row = torch.tensor([*(IDS.size + t for t in range(T)), *tokens])
    positions = torch.arange(len(row))
    with torch.no_grad():
        want = model.logits(model(row, positions, PackedAttention([Run(1, len(row))]), seen))[-1]
    cache = Cache(decoder, 1)
    cache.begin([[*ids, *tokens[:3]]])
    for place in range(3, len(tokens)):
        got = cache.step(torch.tensor(tokens[place : place + 1]), torch.tensor([T + place]))
    torch.testing.assert_close(decoder.logits(got, (range(IDS.size),))[0], want, atol=1e-4, rtol=1e-4)
    whole = decoder.through(torch.tensor([*ids, *tokens]), positions, len(row), Whole(model.shape, [Run(1, len(row))]))
    torch.testing.assert_close(decoder.logits(whole[-1:], (range(IDS.size),))[0], want, atol=1e-4, rtol=1e-4)
    decoder.forget()
    assert len(decoder.embedding) == IDS.size + T
    with pytest.raises(ValueError, match=r"this world sees 3 vectors of 5 numbers, got \(2, 5\); take the encoder that it learnt with"):
        decoder.look(seen[:2])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_is_written_follows_from_what_is_seen_and_from_nothing_beside(model: WorldModel, guidance: float) -> None:
    grammar, decoder = Grammar(IDS), Decoder(model)
    plain = prompt(grammar, [])
    assert plain.tolist() == [*IDS.unseen, IDS.bos]
    shown = [plain.copy() for _ in range(3)]
    for row in (0, 2):
        shown[row][:T] = decoder.look(vectors()[row * T : (row + 1) * T])
    made = generate(decoder, grammar, shown, ["view"], seeds=[7, 7, 7], guidance=guidance)
    alone = generate(decoder, grammar, shown[2:], ["view"], seeds=[7], guidance=guidance)
    assert np.array_equal(made[2], alone[0])
    for tokens in made:
        assert [segment.stream for segment in grammar.parse(IDS.own(tokens))] == ["view"]
    filled = fill_in(decoder, grammar, shown, ["view"] * 3, seeds=[1, 2, 3], steps=2, guidance=guidance)
    assert all(len(grammar.parse(IDS.own(tokens))) == 1 for tokens in filled)
    scores = [decoder.logits(Cache(decoder, 1).begin([tokens.tolist()]), (range(IDS.size),)) for tokens in shown]
    assert not torch.allclose(scores[0], scores[1], atol=1e-3) and not torch.allclose(scores[0], scores[2], atol=1e-3)


def test_a_world_that_sees_is_no_qwen3(model: WorldModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"sees 3 vectors ahead of <bos>, which a Qwen3ForCausalLM cannot take"):
        save_qwen3(tmp_path, model, Grammar(IDS))
    assert Vocabulary.from_json(IDS.to_json()) == IDS and "ahead" not in PLAIN.to_json()
