import numpy as np
import pytest
import torch

from worldloom.world_model.legal_offsets import fit_legal_offsets, sets_of
from worldloom.world_model.next_token import next_token


def examples_of(worlds, count, seed):
    return [(next_token(worlds.some_documents(count, seed), worlds.GRAMMAR, np.arange(count), seed, full_share=1.0), None)]


def log_masses(worlds, model, documents):
    """log of the probability of what is legal at every place behind the first, and the softmax among it."""
    masses, among = [], []
    for tokens in documents:
        with torch.no_grad():
            log_p = worlds.plain_logits(model, tokens[:-1]).log_softmax(-1)
        legal = worlds.legal_masks(tokens)[1:]
        masses.append(log_p.masked_fill(~legal, -torch.inf).logsumexp(-1))
        among.append(log_p.masked_fill(~legal, -torch.inf).softmax(-1))
    return torch.cat(masses), torch.cat(among)


def test_a_world_becomes_legal_by_itself_and_what_it_draws_under_the_grammar_stays(worlds):
    model = worlds.tiny_model()
    others = [tokens for tokens in worlds.documents_of(worlds.some_documents(60, seed=5)) if len(tokens) > 2]
    mass_before, among_before = log_masses(worlds, model, others)
    found = fit_legal_offsets(model, examples_of(worlds, 400, seed=1))
    mass_after, among_after = log_masses(worlds, model, others)
    torch.testing.assert_close(among_after, among_before, atol=1e-5, rtol=1e-4)
    # It has learnt nothing, so little of where it stands shows in its hidden states.
    assert mass_after.mean().exp() > 2 * mass_before.mean().exp()
    assert found == pytest.approx([float(mass.mean().exp()) for mass in (mass_before, mass_after)], abs=0.05)


def test_ids_that_are_legal_at_one_place_are_of_one_set(worlds):
    ((example, _),) = examples_of(worlds, 200, seed=2)
    sets = sets_of(worlds.IDS.size, [choice for choice in example.choices if choice.legal])
    for tokens in worlds.documents_of(worlds.some_documents(200, seed=2)):
        for legal in worlds.legal_masks(tokens)[1:]:
            assert len(sets[legal].unique()) <= 1
    # Text, two levels of one stream, and what opens a segment are told apart.
    frame, push = (next(i for i, one in enumerate(worlds.IDS.streams) if one.name == name) for name in ("frame", "push"))
    heads = [worlds.IDS.span(frame).start, worlds.IDS.level(push, 0).start, worlds.IDS.level(push, 1).start, worlds.IDS.eos, 0]
    assert len(sets[heads].unique()) == len(heads)


def test_a_model_whose_output_layer_is_its_embedding_is_refused(worlds):
    with pytest.raises(ValueError, match="is its embedding"):
        fit_legal_offsets(worlds.tiny_model(tied=True), examples_of(worlds, 3, seed=1))


def test_without_a_label_over_all_ids_nothing_changes(worlds):
    model = worlds.tiny_model()
    before = model.output.clone()
    assert fit_legal_offsets(model, []) == (1.0, 1.0)
    assert torch.equal(model.output, before)
