"""Hidden codes: how many, which, what predicts them; and several objectives in one batch."""

from math import ceil, cos, pi

import numpy as np
import pytest
import torch

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import join
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.loss import cross_entropy
from worldloom.world_model.masked import masked
from worldloom.world_model.next_token import next_token
from worldloom.world_model.vocabulary import Vocabulary, code_stream
from worldloom.world_model.weave import Codes, Woven, weave

LONG = Grammar(Vocabulary((code_stream("a", "image", 5, shape=(50,)), code_stream("b", "action", 4, shape=(10, 2), levels=2)), 0))


def long_documents(count: int, streams: tuple[int, ...] = (0, 1)) -> Woven:
    generator = np.random.default_rng(3)
    codes = {
        "a": Codes(generator.integers(0, 5, count * 50), np.full(count, 50)),
        "b": Codes(generator.integers(0, 4, count * 20), np.full(count, 20)),
    }
    return weave(LONG, np.tile(np.array(streams), (count, 1)), codes)


def test_hidden_codes_come_back_from_the_labels_and_nothing_else_is_changed(worlds):
    woven, ids = worlds.some_documents(60), worlds.IDS
    example = masked(woven, worlds.GRAMMAR, np.arange(60), seed=1)
    hidden = example.inputs != example.labels
    assert (example.inputs[hidden] == ids.mask).all()
    assert torch.equal(hidden.nonzero()[:, 0], torch.cat([choice.places for choice in example.choices]).sort().values)
    controls = range(ids.text_size, ids.text_size + len(ids.controls))
    assert not any(int(label) in controls for label in example.labels[hidden])
    documents = [tokens.tolist() for tokens in worlds.documents_of(woven)]
    at = 0
    for run in example.runs:
        assert not run.causal
        for _ in range(run.documents):
            documents.remove(example.labels[at : at + run.length].tolist())
            at += run.length
    assert at == len(example.inputs)
    assert all(set(tokens) <= set(controls) for tokens in documents), "only documents without codes are left out"


def test_a_document_hides_codes_of_at_least_one_segment_and_of_each_about_half_the_time():
    example = masked(long_documents(2_000), LONG, np.arange(2_000), seed=5)
    hidden = (example.inputs != example.labels).view(2_000, -1)
    of_a, of_b = hidden[:, 2:52].any(1), hidden[:, 54:74].any(1)
    assert (of_a | of_b).all()
    # Each with probability 1/2, and the luckier one in any case: 1/2 + 1/4 / 2.
    for share in (of_a, of_b):
        assert float(share.float().mean()) == pytest.approx(0.625, abs=0.03)


def test_the_share_of_hidden_codes_follows_the_cosine():
    count = 20_000
    example = masked(long_documents(count, (0,)), LONG, np.arange(count), seed=5)
    hidden = (example.inputs != example.labels).view(count, -1)[:, 2:52].sum(1)
    expected = np.mean([max(1, ceil(50 * cos(pi / 2 * u))) for u in (np.arange(100_000) + 0.5) / 100_000])
    assert hidden.min() == 1 and hidden.max() == 50
    assert float(hidden.float().mean()) == pytest.approx(expected, rel=0.01)
    assert expected / 50 == pytest.approx(2 / pi, abs=0.015)


def test_every_code_of_a_segment_is_hidden_as_often_as_the_others():
    count = 20_000
    hidden = (lambda example: (example.inputs != example.labels).view(count, -1)[:, 2:52])(
        masked(long_documents(count, (0,)), LONG, np.arange(count), 5)
    )
    assert float((hidden.float().mean(0) - hidden.float().mean()).abs().max()) < 0.015


def test_what_is_hidden_is_a_function_of_seed_and_place_and_not_of_the_batch(worlds):
    woven = long_documents(9)
    whole = masked(woven, LONG, np.arange(9), seed=2).inputs.view(9, -1)
    part = masked(Woven(woven.tokens[-76 * 2 :], woven.legal[-76 * 2 :], woven.lengths[-2:]), LONG, np.array([7, 8]), seed=2)
    assert torch.equal(part.inputs.view(2, -1), whole[7:])
    assert not torch.equal(masked(woven, LONG, np.arange(9), seed=3).inputs.view(9, -1), whole)
    assert not torch.equal(masked(woven, LONG, np.arange(9) + 9, seed=2).inputs.view(9, -1), whole)


def test_a_hidden_code_is_chosen_from_its_level_and_weights_go_to_its_stream():
    example = masked(long_documents(30), LONG, np.arange(30), seed=1, weights={"b": 2.5})
    ids = LONG.vocabulary
    assert [(choice.name, choice.ranges) for choice in example.choices] == [
        (name, ((span.start, span.stop),)) for name, span in (("a", ids.level(0, 0)), ("b", ids.level(1, 0)), ("b", ids.level(1, 1)))
    ]
    for choice, weight in zip(example.choices, (1.0, 2.5, 2.5), strict=True):
        assert example.weights[choice.places].unique().tolist() == [weight]
        assert torch.equal(choice.labels + choice.ranges[0][0], example.labels[choice.places])


def test_a_hidden_code_is_predicted_from_all_other_tokens_before_and_behind_it(worlds):
    model = worlds.tiny_model().double()
    example = masked(worlds.some_documents(1, seed=4), worlds.GRAMMAR, np.array([0]), seed=1)
    place = int(torch.cat([choice.places for choice in example.choices])[0])
    assert 0 < place < len(example.inputs) - 1 and int(example.inputs[place]) == worlds.IDS.mask

    def hidden(inputs: torch.Tensor) -> torch.Tensor:
        return model(inputs, example.positions, PackedAttention(example.runs))[place].detach()

    before = hidden(example.inputs)
    for at in range(len(example.inputs)):
        other = example.inputs.clone()
        other[at] = (other[at] + 1) % worlds.IDS.size
        assert not torch.equal(hidden(other), before), f"position {at} is not seen"


def test_smoothing_is_that_of_torch(worlds):
    example = masked(worlds.some_documents(20), worlds.GRAMMAR, np.arange(20), seed=1, smoothing=0.1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(example.inputs), 8, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(worlds.IDS.size, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    losses = cross_entropy(hidden, weight, example.choices, example.weights)
    expected, plain = hidden.new_zeros(()), []
    for choice in example.choices:
        ((first, last),) = choice.ranges
        logits = hidden[choice.places] @ weight[first:last].t()
        expected = expected + torch.nn.functional.cross_entropy(logits, choice.labels, reduction="sum", label_smoothing=0.1)
        plain.append(float(torch.nn.functional.cross_entropy(logits, choice.labels, reduction="sum").detach()))
    assert float(losses.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert losses.sums.tolist() == pytest.approx(plain, rel=1e-9)
    for got, wanted in zip(
        torch.autograd.grad(losses.total, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_objectives_joined_lose_what_they_lose_alone(worlds):
    model = worlds.tiny_model()
    examples = {
        "next_token": next_token(worlds.some_documents(12, seed=1), worlds.GRAMMAR, np.arange(12), seed=1),
        "masked": masked(worlds.some_documents(9, seed=2), worlds.GRAMMAR, np.arange(9), seed=1),
    }
    alone = {name: model.losses(example) for name, example in examples.items()}
    together = model.losses(join(examples))
    assert float(together.total.detach()) == pytest.approx(sum(float(losses.total.detach()) for losses in alone.values()), rel=1e-5)
    names = [choice.name for choice in join(examples).choices]
    assert names[:5] == ["next_token.caption", "next_token.frame", "next_token.sound", "next_token.push", "next_token.push"]
    assert names[-3:] == ["masked.sound", "masked.push", "masked.push"]
    expected = [value for losses in alone.values() for value in losses.sums.tolist()]
    assert together.sums.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_no_documents_and_documents_without_codes_make_an_empty_example(worlds):
    empty = weave(worlds.GRAMMAR, np.full((3, 1), -1), {})
    for woven, numbers in ((empty, np.arange(3)), (worlds.some_documents(0), np.arange(0))):
        example = masked(woven, worlds.GRAMMAR, numbers, seed=1)
        assert len(example.inputs) == 0 and example.runs == ()
