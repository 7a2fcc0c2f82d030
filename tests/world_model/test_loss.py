from math import log

import numpy as np
import pytest
import torch

from worldloom.world_model import loss as loss_file
from worldloom.world_model.loss import cross_entropy
from worldloom.world_model.next_token import next_token


def plain_losses(worlds, example, hidden, weight, full):
    """Cross-entropy over the legal ids of every position, or over all where `full`, from whole logits; [N]."""
    ids = worlds.IDS
    logits = hidden @ weight.t()
    for place, legal in enumerate(example.legal.tolist()):
        if full[place]:
            continue
        if legal < 0:
            allowed = {int(example.labels[place])}
        elif legal < 4:
            stream = ids.streams[legal]
            level = (int(example.labels[place]) - ids.span(legal).start) // stream.codebook_size if stream.levels > 1 else 0
            allowed = set(ids.level(legal, level)) | (set() if stream.fixed else {ids.closing(legal)})
        else:
            allowed = {ids.eos} | {ids.indicator(s) for s in range(4) if (legal - 4) >> s & 1}
        mask = torch.ones(ids.size, dtype=torch.bool)
        mask[list(allowed)] = False
        logits = logits.index_put((torch.tensor(place),), logits[place].masked_fill(mask, -torch.inf))
    return torch.nn.functional.cross_entropy(logits, example.labels, reduction="none")


@pytest.mark.parametrize(("chunk", "gathered"), [(64, 1), (64, 150), (64, 1 << 22), (1 << 20, 1 << 22)])
def test_the_restricted_loss_and_its_gradients_are_those_of_whole_masked_logits(worlds, monkeypatch, chunk, gathered):
    monkeypatch.setattr(loss_file, "CHUNK", chunk)
    monkeypatch.setattr(loss_file, "GATHERED", gathered)
    monkeypatch.setattr(loss_file, "LEAST_ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    example = next_token(worlds.some_documents(30), worlds.GRAMMAR, np.arange(30), 1, 0.2, {"frame": 2.5, "order": 0.5})
    hidden = torch.randn(len(example.inputs), 8, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(worlds.IDS.size, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    losses = cross_entropy(hidden, weight, example.choices, example.weights)
    full = torch.zeros(len(example.inputs), dtype=torch.bool)
    full[example.choices[-1].places] = True
    plain = plain_losses(worlds, example, hidden, weight, full)
    # Of those that are full, being legal counts five times, and which legal one once.
    among_legal = plain_losses(worlds, example, hidden, weight, torch.zeros_like(full))
    expected = ((among_legal + 5 * (plain - among_legal)) * example.weights).sum()
    assert float(losses.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for choice, total, count in zip(example.choices, losses.sums, losses.counts, strict=True):
        assert int(count) == len(choice.places)
        assert float(total) == pytest.approx(float(plain[choice.places].sum().detach()), rel=1e-6)
    mine = torch.autograd.grad(3.0 * losses.total, (hidden, weight))
    for got, wanted in zip(mine, torch.autograd.grad(3.0 * expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_equal_logits_cost_the_logarithm_of_the_legal_sets_size(worlds):
    example = next_token(worlds.some_documents(50), worlds.GRAMMAR, np.arange(50), 1)
    hidden = torch.zeros(len(example.inputs), 4)
    losses = cross_entropy(hidden, torch.zeros(worlds.IDS.size, 4), example.choices, example.weights)
    sizes = {"caption": 14, "frame": 17, "sound": 6, "push": 7, "full": worlds.IDS.size}
    for choice, total, count in zip(example.choices, losses.sums.tolist(), losses.counts.tolist(), strict=True):
        if choice.name in sizes:
            assert total / count == pytest.approx(log(sizes[choice.name]), rel=1e-6)
        else:
            assert choice.allowed is not None
            assert total == pytest.approx(sum(log(size) for size in choice.allowed.sum(1).tolist()), rel=1e-6)


def test_forced_tokens_cost_nothing_and_give_no_gradient(worlds):
    example = next_token(worlds.some_documents(50), worlds.GRAMMAR, np.arange(50), 1, full_share=0.0)
    hidden = torch.randn(len(example.inputs), 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(worlds.IDS.size, 4, generator=torch.Generator().manual_seed(1))
    cross_entropy(hidden, weight, example.choices, example.weights).total.backward()
    assert hidden.grad is not None
    nothing = (hidden.grad == 0).all(dim=1)
    assert torch.equal(nothing, example.legal == -1)
    assert nothing.any()


def test_without_gradients_the_loss_is_the_same(worlds):
    example = next_token(worlds.some_documents(20), worlds.GRAMMAR, np.arange(20), 1)
    model = worlds.tiny_model()
    with_gradient = model.losses(example)
    with torch.no_grad():
        without = model.losses(example)
    assert torch.equal(with_gradient.total.detach(), without.total)
    assert not without.total.requires_grad


def test_bfloat16_weights_take_the_softmax_in_float32(worlds):
    example = next_token(worlds.some_documents(40), worlds.GRAMMAR, np.arange(40), 1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(example.inputs), 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(worlds.IDS.size, 16, generator=generator).bfloat16().requires_grad_()
    losses = cross_entropy(hidden, weight, example.choices, example.weights)
    losses.total.backward()
    wide_hidden, wide_weight = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    wide = cross_entropy(wide_hidden, wide_weight, example.choices, example.weights)
    wide.total.backward()
    assert losses.total.dtype == torch.float32
    assert hidden.grad is not None and wide_hidden.grad is not None and weight.grad is not None and wide_weight.grad is not None
    assert float(losses.total.detach()) == pytest.approx(float(wide.total.detach()), rel=2e-3)
    for narrow, wide_one in ((hidden.grad, wide_hidden.grad), (weight.grad, wide_weight.grad)):
        assert float((narrow.float() - wide_one).norm()) < 0.01 * float(wide_one.norm())


def test_on_average_the_loss_and_its_gradient_are_those_of_the_softmax_over_all_ids(worlds):
    woven, count = worlds.some_documents(1, seed=4), 2_000
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(worlds.IDS.size, 8, generator=generator) * 0.5
    behind = torch.randn(int(woven.lengths.sum()), 8, generator=generator)

    def loss_and_gradient(seed, share):
        example = next_token(woven, worlds.GRAMMAR, np.array([0]), seed, share)
        hidden = behind.clone().requires_grad_()
        total = cross_entropy(hidden[: len(example.inputs)], weight, example.choices, example.weights).total
        return total.detach(), torch.autograd.grad(total, hidden)[0]

    expected = loss_and_gradient(0, 1.0)
    drawn = [loss_and_gradient(seed, 0.25) for seed in range(count)]
    for which in (0, 1):
        values = torch.stack([each[which] for each in drawn])
        error = values.std(0) / count**0.5
        assert ((values.mean(0) - expected[which]).abs() <= 4.5 * error + 1e-4).all()
        assert which or float(values.mean(0)) == pytest.approx(float(expected[0]), rel=0.02)
