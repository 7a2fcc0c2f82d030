"""Sampling with a cache against choosing from a whole forward pass for every token."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.decoder import Decoder
from worldloom.world_model.example import Run
from worldloom.world_model.grammar import BETWEEN, END, Grammar
from worldloom.world_model.sampling import choose, generate, prompt
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary, code_stream

IDS = Vocabulary((code_stream("words", "text", 9, max_length=5), code_stream("view", "image", 7, shape=(2, 2))), 9)
GRAMMAR = Grammar(IDS)
LETTERS = "t" * 9 + "BE--wWvV" + "c" * 7
LANGUAGE = re.compile("B(?:wt{0,5}W(?:vc{4}V)?|vc{4}V(?:wt{0,5}W)?)?E")


@pytest.fixture(scope="module")
def model() -> WorldModel:
    generator = torch.Generator().manual_seed(3)
    made = WorldModel(Shape(IDS.size, width=16, depth=2, heads=4, kv_heads=2, ff=24, head_width=8), generator).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.4, generator=generator)  # norms too
    return made


PROMPTS = [prompt(GRAMMAR, segments) for segments in ([], [("words", [3, 1, 4, 1, 5])], [("view", [1, 2, 3, 4])], [("words", [2])])] + [
    prompt(GRAMMAR, [("words", [2, 7, 1])])[:-1],
    prompt(GRAMMAR, []),
]


def likeliest(model: WorldModel, tokens: np.ndarray, want: Sequence[str] | None, guidance: float) -> list[int]:
    """The plain way: no cache, no batch."""

    def logits(row: list[int]) -> torch.Tensor:
        given = torch.tensor(row)
        return model.logits(model(given, torch.arange(len(row)), PackedAttention((Run(1, len(row)),))))[-1].detach()

    written, asked = tokens.tolist(), list(want or ())
    while (state := GRAMMAR.follow(written)).stream != END:
        free = logits([IDS.bos, *written[len(tokens) :]])
        mixed = free + guidance * (logits(written) - free)
        may = [i for ids in GRAMMAR.legal(state) for i in ids]
        if want is not None and state.stream == BETWEEN:
            may = [IDS.indicator(IDS.index(asked.pop(0)))] if asked else [IDS.eos]
        written.append(max(may, key=lambda i: mixed[i].item()))
    return written


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_likeliest_is_that_of_whole_passes_for_prompts_of_all_lengths_in_one_batch(model: WorldModel, guidance: float) -> None:
    made = generate(model, GRAMMAR, PROMPTS, seeds=[0] * len(PROMPTS), temperature=0, guidance=guidance)
    assert [row.tolist() for row in made] == [likeliest(model, tokens, None, guidance) for tokens in PROMPTS]


def test_streams_asked_for_come_in_turn(model: WorldModel) -> None:
    made = generate(model, GRAMMAR, [PROMPTS[0]] * 2, ["view", "words"], seeds=[1, 2], temperature=0)
    assert [row.tolist() for row in made] == [likeliest(model, PROMPTS[0], ["view", "words"], 1.0)] * 2
    with pytest.raises(ValueError, match="<words> was asked for, but the sample has it already"):
        generate(model, GRAMMAR, [PROMPTS[1]], ["words"], seeds=[0])


@pytest.mark.parametrize("length", [None, 7, 9])
def test_whatever_a_model_would_say_the_sequence_is_legal_and_within_its_budget(model: WorldModel, length: int | None) -> None:
    prompts = [PROMPTS[0], PROMPTS[3]] * 60
    made = generate(model, GRAMMAR, prompts, seeds=range(120), length=length)
    for row in made:
        assert LANGUAGE.fullmatch("".join(LETTERS[token] for token in row)) and len(row) <= (length or 15)
    assert len({row.tobytes() for row in made}) > 20


def test_a_row_is_a_function_of_its_prompt_and_its_seed(model: WorldModel) -> None:
    seeds = list(range(7, 7 + len(PROMPTS)))
    together = generate(model, GRAMMAR, PROMPTS, seeds=seeds, top_k=5, top_p=0.9)
    alone = [generate(model, GRAMMAR, [one], seeds=[seed], top_k=5, top_p=0.9)[0] for one, seed in zip(PROMPTS, seeds, strict=True)]
    assert [row.tolist() for row in together] == [row.tolist() for row in alone]


WISHES = [None, ["view"], ["words", "view"], ["view", "words"], ["words"], []]


@pytest.mark.parametrize(("temperature", "dtype"), [(0, torch.float32), (0, torch.bfloat16), (0.8, torch.float32)])
def test_thirty_two_rows_that_each_want_something_else_are_thirty_two_batches_of_one(
    model: WorldModel, temperature: float, dtype: torch.dtype
) -> None:
    decoder = Decoder(model, dtype)
    rows = [(PROMPTS[0], WISHES[row % 6], row) for row in range(24)]
    rows += [(PROMPTS[1], ["view"], 50), (PROMPTS[2], ["words"], 51), (PROMPTS[3], None, 52), (PROMPTS[3], [], 53)] * 2
    prompts, wants, seeds = zip(*rows, strict=True)
    together = generate(decoder, GRAMMAR, prompts, wants, seeds=seeds, temperature=temperature)
    for one, want, seed, made in zip(prompts, wants, seeds, together, strict=True):
        (alone,) = generate(decoder, GRAMMAR, [one], want, seeds=[seed], temperature=temperature)
        assert alone.tolist() == made.tolist()
    assert len({tuple(row) for row in together}) > 6


def test_at_a_width_of_128_thirty_two_long_prompts_in_bfloat16_are_thirty_two_batches_of_one() -> None:
    """Prompts of 67 to 83 tokens, several of each length, so that the cache grows and prompts of one length share a pass."""
    ids = Vocabulary((code_stream("words", "text", 50, max_length=80), code_stream("view", "image", 60, shape=(4, 4))), 50)
    grammar, generator = Grammar(ids), torch.Generator().manual_seed(5)
    wide = WorldModel(Shape(ids.size, width=128, depth=3, heads=4, kv_heads=2, ff=192, head_width=32), generator).eval()
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.normal_(0, 0.25, generator=generator)
    decoder, drawn = Decoder(wide, torch.bfloat16), np.random.default_rng(5)
    prompts = [prompt(grammar, [("words", drawn.integers(50, size=64 + row % 6 * 3))]) for row in range(32)]
    together = generate(decoder, grammar, prompts, ["view"], seeds=[0] * 32, temperature=0)
    for one, made in zip(prompts, together, strict=True):
        assert generate(decoder, grammar, [one], ["view"], seeds=[0], temperature=0)[0].tolist() == made.tolist()
    assert len({tuple(row[-18:]) for row in together}) > 24


def test_each_stream_has_its_own_temperature_and_limits(model: WorldModel) -> None:
    def segments(seed: int, **rules: Any) -> dict[str, list[int]]:
        (made,) = generate(model, GRAMMAR, [PROMPTS[0]], ["words", "view"], seeds=[seed], **rules)
        return {segment.stream: segment.codes.tolist() for segment in GRAMMAR.parse(made)}

    for rules in ({"temperature": {"words": 0.0}}, {"top_k": {"words": 1}}, {"top_p": {"words": 1e-9}}):
        found = [segments(seed, **rules) for seed in range(12)]
        assert len({str(each["words"]) for each in found}) == 1 < len({str(each["view"]) for each in found})
    for name, value in (("temperature", 0.5), ("top_k", 1), ("top_p", 0.5)):
        with pytest.raises(ValueError, match=f"{name} names sound, but the streams are words, view, order"):
            segments(0, **{name: {"sound": value}})


def test_guidance_of_1_is_none_of_0_forgets_the_prompt_and_without_a_prompt_it_changes_nothing(model: WorldModel) -> None:
    def view(before: np.ndarray, guidance: float, seed: int) -> list[int]:
        (made,) = generate(model, GRAMMAR, [before], ["view"], seeds=[seed], guidance=guidance)
        return made[-6:-2].tolist()

    free = [generate(model, GRAMMAR, [PROMPTS[0]], ["view"], seeds=[0], temperature=0, guidance=s)[0].tolist() for s in (0, 1, 4)]
    assert free[0] == free[1] == free[2]
    given = [view(PROMPTS[1], 1.0, seed) for seed in range(8)]
    assert given != [view(PROMPTS[1], 0.0, seed) for seed in range(8)]
    for guidance in (0.0, 1.0, 2.5):
        expected = likeliest(model, PROMPTS[1], ["view"], guidance)
        (made,) = generate(model, GRAMMAR, [PROMPTS[1]], ["view"], seeds=[0], temperature=0, guidance=guidance)
        assert made.tolist() == expected


def test_guided_probabilities_are_those_of_transformers() -> None:
    from transformers.generation import ClassifierFreeGuidanceLogitsProcessor

    given, free = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = torch.softmax(free + 3.0 * (given - free), 1)
    theirs = ClassifierFreeGuidanceLogitsProcessor(3.0)(torch.zeros(3, 1, dtype=torch.int64), torch.cat([given, free]))
    torch.testing.assert_close(torch.softmax(theirs, 1), ours, atol=1e-6, rtol=0)
    # Theirs for one row at a time mixes log-probabilities: other scores, the same probabilities.
    logs = 3.0 * (given.log_softmax(1) - free.log_softmax(1)) + free.log_softmax(1)
    torch.testing.assert_close(torch.softmax(logs, 1), ours, atol=1e-6, rtol=0)


def test_draws_follow_the_probabilities_and_never_meet_what_is_left_out() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0, -1.0]])
    noise = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    share = torch.bincount(choose(logits.expand(10_000, -1), 0.5, 0, 1.0, noise), minlength=5) / 10_000
    torch.testing.assert_close(share, torch.softmax(logits[0] / 0.5, 0), atol=2e-4, rtol=0)
    assert set(choose(logits.expand(10_000, -1), 1.0, 2, 1.0, noise).tolist()) == {2, 3}
    assert set(choose(logits.expand(10_000, -1), 1.0, 0, 0.8, noise).tolist()) == {2, 3}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 5e-324])
def test_a_temperature_close_to_nothing_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[7.0, -torch.inf, 80.0, 3.0]])
    assert choose(logits, temperature, 0, 1.0, torch.tensor([0.999], dtype=torch.float64)).tolist() == [2]


def test_ten_thousand_streams_from_random_logits_are_legal_and_end_within_their_budget() -> None:
    generator = torch.Generator().manual_seed(1)
    count, longest = 10_000, 12
    masks = torch.zeros(0, IDS.size, dtype=torch.bool)
    number: dict[tuple[range, ...], int] = {}
    states, written = [GRAMMAR.start(longest)] * count, [list[int]() for _ in range(count)]
    while open_rows := [row for row, state in enumerate(states) if state.stream != END]:
        for ranges in {GRAMMAR.legal(states[row]) for row in open_rows} - set(number):
            number[ranges] = len(masks)
            mask = torch.zeros(1, IDS.size, dtype=torch.bool)
            mask[0, [token for ids in ranges for token in ids]] = True
            masks = torch.cat([masks, mask])
        legal = masks[[number[GRAMMAR.legal(states[row])] for row in open_rows]]
        logits = (3 * torch.randn(len(open_rows), IDS.size, generator=generator)).masked_fill(~legal, -torch.inf)
        noise = torch.rand(len(open_rows), dtype=torch.float64, generator=generator)
        for row, token in zip(open_rows, choose(logits, 1.0, 0, 1.0, noise).tolist(), strict=True):
            states[row] = GRAMMAR.step(states[row], token)
            written[row].append(token)
    for row in written:
        assert LANGUAGE.fullmatch("".join(LETTERS[token] for token in row)) and len(row) <= longest


def test_whole_samples_come_as_often_as_their_renormalised_probability() -> None:
    ids = Vocabulary((code_stream("words", "text", 2, max_length=1), code_stream("view", "image", 2, shape=(1, 2))), 2)
    grammar = Grammar(ids)
    small = WorldModel(Shape(ids.size, width=8, depth=1, heads=2, kv_heads=1, ff=8, head_width=4), torch.Generator().manual_seed(5)).eval()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    expected: dict[tuple[int, ...], float] = {}

    @torch.no_grad()
    def walk(tokens: tuple[int, ...], p: float) -> None:
        legal = [i for part in grammar.legal(grammar.follow(tokens)) for i in part]
        if not legal:
            expected[tokens] = p
            return
        logits = small.logits(small(torch.tensor(tokens), torch.arange(len(tokens)), PackedAttention((Run(1, len(tokens)),))))[-1]
        for token, share in zip(legal, torch.softmax(logits[legal].double(), 0).tolist(), strict=True):
            walk((*tokens, token), p * share)

    walk((ids.bos,), 1.0)
    count = 4000
    made = generate(small, grammar, [prompt(grammar, [])] * count, seeds=range(count))
    found = Counter(tuple(row.tolist()) for row in made)
    assert not set(found) - set(expected)
    # Rare samples together, so that every cell expects at least ten.
    cells = [(p * count, found[row]) for row, p in expected.items() if p * count >= 10]
    cells.append((count - sum(p for p, _ in cells), count - sum(n for _, n in cells)))
    distance = sum((n - p) ** 2 / p for p, n in cells if p > 0)
    freedom = len(cells) - 1
    assert freedom > 8 and distance < freedom + 3.5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"want": [["view"], None]}, "1 prompts need one list of streams for all, or as many lists, got 2"),
        ({"seeds": [1, 2]}, "1 prompts need as many seeds, got 2"),
        ({"top_p": 0.0}, "top_p in \\(0, 1\\], got 1.0, 0, 0.0"),
        ({"prompts": [np.array([], dtype=np.int64)]}, "a prompt begins with <bos>"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model: WorldModel, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, GRAMMAR, **{"prompts": [PROMPTS[0]], "seeds": [1], **changes})


def test_no_prompts_give_no_samples(model: WorldModel) -> None:
    assert generate(model, GRAMMAR, [], seeds=[]) == []
