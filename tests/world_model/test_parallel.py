"""Segments written in a few steps: how many codes each step keeps, what never changes, and what is drawn."""

import numpy as np
import pytest
import torch

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Run
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.parallel import fill_in, kept_hidden
from worldloom.world_model.sampling import prompt
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary, code_stream


def prompts(worlds):
    caption, frame = np.array([3, 1, 2]), np.arange(6)
    return [
        prompt(worlds.GRAMMAR, [("caption", caption)]),
        prompt(worlds.GRAMMAR, []),
        prompt(worlds.GRAMMAR, [("frame", frame), ("caption", caption[:1])]),
    ]


def test_the_hidden_codes_of_256_in_8_steps_are_those_of_the_cosine():
    counts, hidden = [256], 256
    for step in range(8):
        hidden = kept_hidden(256, hidden, step, 8)
        counts.append(hidden)
    assert counts == [256, 251, 236, 212, 181, 142, 97, 49, 0]


def test_every_step_writes_a_code_and_the_last_writes_all():
    for codes in range(1, 65):
        for steps in range(1, codes + 1):
            hidden = codes
            for step in range(steps):
                after = kept_hidden(codes, hidden, step, steps)
                assert after < hidden or hidden == 0
                hidden = after
            assert hidden == 0


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_what_is_written_is_a_sample_of_the_grammar_that_begins_with_the_prompt(worlds, steps):
    given, streams = prompts(worlds), ["frame", "push", "push"]
    for tokens, before, stream in zip(
        fill_in(worlds.tiny_model(), worlds.GRAMMAR, given, streams, seeds=[1, 2, 3], steps=steps, guidance=1.5),
        given,
        streams,
        strict=True,
    ):
        assert tokens[: len(before)].tolist() == before.tolist()
        assert worlds.GRAMMAR.parse(tokens)[-1].stream == stream


def test_a_row_is_a_function_of_its_prompt_and_seed(worlds):
    model, given, streams = worlds.tiny_model(), prompts(worlds), ["frame", "push", "push"]
    together = fill_in(model, worlds.GRAMMAR, given, streams, seeds=[1, 2, 3], steps=4)
    for row in range(3):
        (alone,) = fill_in(model, worlds.GRAMMAR, [given[row]], [streams[row]], seeds=[row + 1], steps=4)
        assert alone.tolist() == together[row].tolist()
    other = fill_in(model, worlds.GRAMMAR, given, streams, seeds=[4, 5, 6], steps=4)
    assert any(a.tolist() != b.tolist() for a, b in zip(together, other, strict=True))


def test_at_temperature_0_without_a_jolt_the_seed_does_not_matter(worlds):
    made = [
        fill_in(worlds.tiny_model(), worlds.GRAMMAR, prompts(worlds)[:1], ["frame"], seeds=[seed], steps=3, temperature=0, jolt=0)[
            0
        ].tolist()
        for seed in (1, 2)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("order", ["raster", "random", "confidence"])
def test_codes_are_kept_in_the_order_asked_for(worlds, monkeypatch, order):
    from worldloom.world_model import parallel

    seen = []
    plain = parallel._hidden

    def watched(decoder, rows):
        seen.append([np.flatnonzero(row[-8:-2] != worlds.IDS.mask).tolist() for row in rows])
        return plain(decoder, rows)

    monkeypatch.setattr(parallel, "_hidden", watched)
    given, streams = prompts(worlds), ["frame", "push", "push"]
    fill_in(worlds.tiny_model(), worlds.GRAMMAR, given, streams, seeds=[1, 2, 3], steps=6, order=order)
    assert [[len(known) for known in row] for row in zip(*seen, strict=True)] == [[0, 1, 2, 3, 4, 5]] * 3
    in_front = [all(known == list(range(len(known))) for known in row) for row in zip(*seen, strict=True)]
    assert in_front == [order == "raster"] * 3


def test_in_one_step_every_order_draws_the_same(worlds):
    made = [
        fill_in(worlds.tiny_model(), worlds.GRAMMAR, prompts(worlds)[:1], ["push"], seeds=[4], steps=1, order=order)[0].tolist()
        for order in ("raster", "random", "confidence")
    ]
    assert made[0] == made[1] == made[2]


def test_guidance_of_1_is_none_and_of_0_forgets_the_prompt(worlds):
    model, ids = worlds.tiny_model(), worlds.IDS
    start = prompt(worlds.GRAMMAR, [])
    given = prompts(worlds)[0]

    def codes(before, guidance):
        (tokens,) = fill_in(model, worlds.GRAMMAR, [before], ["push"], seeds=[5], steps=3, guidance=guidance)
        return tokens[-8:].tolist()

    assert codes(given, 0.0) == codes(start, 1.0) == codes(start, 3.0) != codes(given, 1.0)
    assert all(token != ids.mask for token in codes(given, 3.0))


FLAT = Grammar(Vocabulary((code_stream("a", "image", 3, shape=(2,)),), 0))


def test_in_one_step_codes_are_drawn_from_their_own_probabilities_and_independently():
    model = WorldModel(
        Shape(FLAT.vocabulary.size, width=8, depth=1, heads=2, kv_heads=2, ff=8, head_width=4), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7, generator=torch.Generator().manual_seed(1))
    count = 6_000
    start = prompt(FLAT, [])
    made = (
        np.stack(fill_in(model, FLAT, [start] * count, ["a"] * count, seeds=list(range(count)), steps=1))[:, 2:4]
        - FLAT.vocabulary.span(0).start
    )
    hidden = np.array(
        [*start, FLAT.vocabulary.indicator(0), FLAT.vocabulary.mask, FLAT.vocabulary.mask, FLAT.vocabulary.closing(0), FLAT.vocabulary.eos]
    )
    with torch.inference_mode():
        span = FLAT.vocabulary.span(0)
        whole = model(torch.from_numpy(hidden), torch.arange(len(hidden)), PackedAttention((Run(1, len(hidden), causal=False),)))
        p = torch.softmax(model.logits(whole)[2:4, span.start : span.stop], 1).numpy()
    expected = count * p[0][:, None] * p[1][None, :]
    seen = np.zeros((3, 3))
    np.add.at(seen, (made[:, 0], made[:, 1]), 1)
    assert ((seen - expected) ** 2 / expected).sum() < 26.1  # chi-square with 8 degrees of freedom, 0.999


def test_codes_kept_once_never_change(worlds, monkeypatch):
    seen: list[np.ndarray] = []
    from worldloom.world_model import parallel

    plain = parallel._hidden

    def watched(decoder, rows):
        seen.append(rows[0].copy())
        return plain(decoder, rows)

    monkeypatch.setattr(parallel, "_hidden", watched)
    (tokens,) = fill_in(worlds.tiny_model(), worlds.GRAMMAR, prompts(worlds)[:1], ["push"], seeds=[1], steps=6)
    mask = worlds.IDS.mask
    for before, after in zip(seen, [*seen[1:], tokens], strict=True):
        known = before != mask
        assert (before[known] == after[known]).all() and (after == mask).sum() < (before == mask).sum()


@pytest.mark.parametrize("length", [1, 3, 4])
def test_a_stream_of_varying_length_is_filled_in_at_the_length_asked_for(worlds, length):
    given, streams, long = prompts(worlds)[:2], ["sound", "frame"], [length, None]
    made = fill_in(worlds.tiny_model(), worlds.GRAMMAR, given, streams, seeds=[1, 2], steps=3, lengths=long)
    for tokens, before, stream, codes in zip(made, given, streams, (length, 6), strict=True):
        assert tokens[: len(before)].tolist() == before.tolist()
        last = worlds.GRAMMAR.parse(tokens)[-1]
        assert last.stream == stream and len(last.codes) == codes


def test_what_cannot_be_filled_in_is_refused(worlds):
    model, given = worlds.tiny_model(), prompts(worlds)
    for want, length, message in (
        ("sound", 5, "a segment of 'sound' has 1 to 4 codes, and 5 are asked for"),
        ("sound", 0, "has 1 to 4 codes, and 0 are"),
        ("frame", 5, "a segment of 'frame' has 6 codes, and 5 are asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            fill_in(model, worlds.GRAMMAR, given[1:2], [want], seeds=[1], lengths=[length])
    for want, message in ((["caption"], "segments of 'caption' differ in length"), (["sound"], "differ in length")):
        with pytest.raises(ValueError, match=message):
            fill_in(model, worlds.GRAMMAR, given[1:2], want, seeds=[1])
    with pytest.raises(ValueError, match="<frame> may not open behind this prompt"):
        fill_in(model, worlds.GRAMMAR, given[2:], ["frame"], seeds=[1])
    with pytest.raises(ValueError, match="every prompt has one stream and one seed, got 3 prompts, 1 streams, 3 seeds"):
        fill_in(model, worlds.GRAMMAR, given, ["frame"], seeds=[1, 2, 3])
    with pytest.raises(ValueError, match="no order 'spiral'; there are confidence, random, raster"):
        fill_in(model, worlds.GRAMMAR, given[:1], ["frame"], seeds=[1], order="spiral")
    with pytest.raises(ValueError, match="at least one step is needed, got 0"):
        fill_in(model, worlds.GRAMMAR, given[:1], ["frame"], seeds=[1], steps=0)
