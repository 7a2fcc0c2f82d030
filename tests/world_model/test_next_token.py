import numpy as np
import pytest
import torch

from worldloom.world_model.example import Run, runs_of
from worldloom.world_model.masked import masked
from worldloom.world_model.next_token import next_token, uniform
from worldloom.world_model.weave import Codes, Woven, weave


def test_a_label_is_the_token_behind_its_input(worlds):
    woven = worlds.some_documents(40)
    example = next_token(woven, worlds.GRAMMAR, np.arange(40), seed=1)
    left = [tokens.tolist() for tokens in worlds.documents_of(woven)]
    at = 0
    for run in example.runs:
        for _ in range(run.documents):
            part = slice(at, at + run.length)
            assert example.positions[part].tolist() == list(range(run.length))
            shown = [*example.inputs[part].tolist(), int(example.labels[part][-1])]
            assert shown[1:] == example.labels[part].tolist()
            # Some document begins like this; each is shown at most once.
            left.remove(next(tokens for tokens in left if tokens[: run.length + 1] == shown))
            at += run.length
    assert at == len(example.inputs)
    assert not left


def test_positions_left_out_had_nothing_to_learn(worlds):
    woven = worlds.some_documents(40)
    whole = next_token(woven, worlds.GRAMMAR, np.arange(40), seed=1, full_share=1.0)
    assert len(whole.inputs) == sum(woven.lengths - 1)
    part = next_token(woven, worlds.GRAMMAR, np.arange(40), seed=1, full_share=0.0)
    assert len(part.inputs) < len(whole.inputs)
    assert sum(len(choice.places) for choice in part.choices) == (woven.legal >= 0).sum()


def test_every_position_that_could_have_been_another_token_is_in_one_choice_and_forced_ones_only_in_full(worlds):
    example = next_token(worlds.some_documents(90), worlds.GRAMMAR, np.arange(90), seed=1)
    places = torch.cat([choice.places for choice in example.choices])
    assert len(places.unique()) == len(places)
    missing = torch.ones(len(example.inputs), dtype=torch.bool)
    missing[places] = False
    assert (example.legal[missing] == -1).all()
    for choice in example.choices[:-1]:
        assert (example.legal[choice.places] >= 0).all()


def test_the_columns_of_a_choice_are_the_ids_that_the_automaton_allows(worlds):
    woven, ids = worlds.some_documents(1, seed=4), worlds.IDS
    masks = worlds.legal_masks(woven.tokens)[1:]
    example = next_token(woven, worlds.GRAMMAR, np.array([0]), seed=1, full_share=0.0)
    for choice in example.choices:
        columns = torch.cat([torch.arange(first, last) for first, last in choice.ranges])
        for row, place in enumerate(choice.places.tolist()):
            mine = columns if choice.allowed is None else columns[choice.allowed[row]]
            assert sorted(mine.tolist()) == masks[place].nonzero()[:, 0].tolist()
            assert columns[choice.labels[row]] == example.labels[place]
    assert ids.size == masks.shape[1]


def test_one_in_sixteen_positions_takes_the_full_softmax_whatever_the_batch(worlds):
    woven = worlds.some_documents(600)
    numbers = np.arange(1000, 1600)
    example = next_token(woven, worlds.GRAMMAR, numbers, seed=1)
    full = len(example.choices[-1].places)
    assert abs(full / sum(woven.lengths - 1) - 1 / 16) < 0.01

    def full_labels(part):
        return sorted(part.labels[part.choices[-1].places].tolist())

    first, second = (
        next_token(weave_part(woven, rows), worlds.GRAMMAR, numbers[rows], seed=1) for rows in (slice(0, 250), slice(250, 600))
    )
    assert sorted(full_labels(first) + full_labels(second)) == full_labels(example)
    assert full_labels(next_token(woven, worlds.GRAMMAR, numbers, seed=2)) != full_labels(example)


def weave_part(woven, rows):
    ends = np.cumsum(woven.lengths)
    part = slice((ends - woven.lengths)[rows][0], ends[rows][-1])
    return woven._replace(tokens=woven.tokens[part], legal=woven.legal[part], lengths=woven.lengths[rows])


def test_weights_go_to_the_labels_of_their_stream(worlds):
    example = next_token(worlds.some_documents(60), worlds.GRAMMAR, np.arange(60), seed=1, weights={"frame": 3.0, "order": 0.5})
    by_name = {choice.name: example.weights[choice.places].unique().tolist() for choice in example.choices}
    assert by_name == {"caption": [1.0], "frame": [3.0], "sound": [1.0], "push": [1.0], "order": [0.5], "full": [0.5, 1.0, 3.0]}


def test_a_weight_for_an_unknown_stream_is_refused(worlds):
    with pytest.raises(ValueError, match="weights for \\['smell'\\], but there are only"):
        next_token(worlds.some_documents(2), worlds.GRAMMAR, np.arange(2), seed=1, weights={"smell": 1.0})


def test_no_documents_make_an_empty_example(worlds):
    woven = weave(worlds.GRAMMAR, np.zeros((0, 2), dtype=np.int64), {"caption": Codes(np.array([], dtype=int), np.array([], dtype=int))})
    example = next_token(woven, worlds.GRAMMAR, np.arange(0), seed=1)
    losses = worlds.tiny_model().losses(example)
    losses.total.backward()
    assert (len(example.inputs), float(losses.total.detach())) == (0, 0.0)


def test_segments_number_the_documents(worlds):
    example = next_token(worlds.some_documents(9), worlds.GRAMMAR, np.arange(9), seed=1)
    starts = (example.positions == 0).long().cumsum(0) - 1
    assert torch.equal(example.segments, starts)


def test_runs_are_neighbours_of_one_length():
    assert runs_of(np.array([0, 2, 2, 5, 2])) == (Run(2, 2), Run(1, 5), Run(1, 2))


def test_draws_are_uniform_and_a_function_of_their_key():
    numbers, positions = (x.ravel() for x in np.mgrid[0:200, 0:500])
    drawn = uniform(7, numbers, positions)
    assert np.array_equal(drawn[777:779], uniform(7, numbers[777:779], positions[777:779]))
    counts = np.histogram(drawn, bins=50, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 85.4  # chi-square, 49 degrees, one in a thousand
    for shifted in (np.roll(drawn, 1), np.roll(drawn, 500), uniform(8, numbers, positions)):
        assert abs(np.corrcoef(drawn, shifted)[0, 1]) < 0.01


def test_the_order_of_documents_changes_nothing_and_packed_equals_one_by_one(worlds):
    woven, model = worlds.some_documents(12), worlds.tiny_model()
    numbers = np.arange(12)
    there = np.random.default_rng(5).permutation(12)

    def total_and_gradients(rows):
        model.zero_grad()
        total = torch.zeros(())
        for some in rows:
            starts = np.cumsum(woven.lengths) - woven.lengths
            at = np.concatenate([np.arange(starts[n], starts[n] + woven.lengths[n]) for n in some])
            part = Woven(woven.tokens[at], woven.legal[at], woven.lengths[some])
            total = total + model.losses(next_token(part, worlds.GRAMMAR, numbers[some], seed=1)).total
        total.backward()
        return [total.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    packed = total_and_gradients([np.arange(12)])
    for rows in ([there], [np.array([n]) for n in range(12)], [there[:5], there[5:]]):
        for got, wanted in zip(total_and_gradients(rows), packed, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class DenseAttention:
    """Every position against every other, of all rows at once, with one mask: its own row, up to itself, and nothing that is padding."""

    def __init__(self, there_BT):
        B, T = there_BT.shape
        row, place = torch.arange(B).repeat_interleave(T), torch.arange(T).repeat(B)
        self.seen = (row[:, None] == row) & (place[:, None] >= place) & there_BT.flatten()

    def __call__(self, layer, qkv, kv_heads):
        heads = qkv.shape[1] - 2 * kv_heads
        query, key, value = qkv.split([heads, kv_heads, kv_heads], dim=1)
        key, value = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (key, value))
        scores = torch.einsum("qhe,khe->hqk", query, key) / qkv.shape[2] ** 0.5
        # What is padding sees its own row, or its softmax would be of nothing.
        seen = self.seen | torch.eye(len(qkv), dtype=torch.bool)
        return torch.einsum("hqk,khe->qhe", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


def padded_loss(worlds, model, woven, everywhere):
    """Documents as rows of one length, a dense mask, and the softmax written out: over all ids `everywhere`, or over the legal ones."""
    documents = [torch.from_numpy(tokens) for tokens in worlds.documents_of(woven)]
    tokens_BT = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=worlds.IDS.pad)
    there_BT = torch.arange(tokens_BT.shape[1]) < torch.from_numpy(woven.lengths)[:, None]
    B, T = tokens_BT.shape
    hidden = model(tokens_BT.flatten(), torch.arange(T).repeat(B), DenseAttention(there_BT))
    logits_BTV = torch.nn.functional.linear(hidden, model.output).view(B, T, -1)
    total = hidden.new_zeros(())
    for row, tokens in enumerate(documents):
        logits, labels = logits_BTV[row, : len(tokens) - 1], tokens[1:]
        if not everywhere:
            logits = logits.masked_fill(~worlds.legal_masks(tokens.numpy())[1:], -torch.inf)
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return total


@pytest.mark.parametrize("everywhere", [False, True], ids=["softmax over legal ids", "softmax over all ids"])
def test_packed_equals_padded_with_a_dense_mask_to_a_millionth(worlds, everywhere):
    woven, model = worlds.some_documents(9), worlds.tiny_model().double()
    assert len(set(woven.lengths.tolist())) > 3
    example = next_token(woven, worlds.GRAMMAR, np.arange(9), seed=1, full_share=float(everywhere))
    found = []
    for loss in (model.losses(example).total, padded_loss(worlds, model, woven, everywhere)):
        found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for packed, padded in zip(*found, strict=True):
        assert packed.dtype == torch.float64
        torch.testing.assert_close(packed, padded, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", [next_token, masked])
def test_a_documents_loss_does_not_depend_on_a_row_of_embeddings_of_another(worlds, objective):
    model = worlds.tiny_model()
    example = objective(worlds.some_documents(9), worlds.GRAMMAR, np.arange(9), seed=1)
    # Every position has an embedding of its own, so that documents share none.
    rows = model.embedding.detach()[example.inputs].requires_grad_()
    model.embedding = torch.nn.Parameter(rows)
    for document in example.segments.unique():
        mine = example.segments == document
        alone = example._replace(inputs=torch.arange(len(rows)), weights=example.weights * mine)
        model.zero_grad()
        model.losses(alone).total.backward()
        there = model.embedding.grad.abs().sum(1) != 0
        assert there[mine].any() and not there[~mine].any()
