"""Sampling with a cache against choosing from a whole forward pass for every token."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from worldloom.world_model.attention import PackedAttention
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
    made = generate(model, GRAMMAR, PROMPTS, seeds=[0] * len(PROMPTS), temperature=0, guidance=guidance).tokens
    assert [row.tolist() for row in made] == [likeliest(model, tokens, None, guidance) for tokens in PROMPTS]


def test_streams_asked_for_come_in_turn(model: WorldModel) -> None:
    made = generate(model, GRAMMAR, [PROMPTS[0]] * 2, ["view", "words"], seeds=[1, 2], temperature=0).tokens
    assert [row.tolist() for row in made] == [likeliest(model, PROMPTS[0], ["view", "words"], 1.0)] * 2
    with pytest.raises(ValueError, match="<words> was asked for, but the sample has it already"):
        generate(model, GRAMMAR, [PROMPTS[1]], ["words"], seeds=[0])


@pytest.mark.parametrize("length", [None, 7, 9])
def test_whatever_a_model_would_say_the_sequence_is_legal_and_within_its_budget(model: WorldModel, length: int | None) -> None:
    prompts = [PROMPTS[0], PROMPTS[3]] * 60
    made = generate(model, GRAMMAR, prompts, seeds=range(120), length=length).tokens
    for row in made:
        assert LANGUAGE.fullmatch("".join(LETTERS[token] for token in row)) and len(row) <= (length or 15)
    assert len({row.tobytes() for row in made}) > 20


def test_a_row_is_a_function_of_its_prompt_and_its_seed(model: WorldModel) -> None:
    seeds = list(range(7, 7 + len(PROMPTS)))
    together = generate(model, GRAMMAR, PROMPTS, seeds=seeds, top_k=5, top_p=0.9).tokens
    alone = [generate(model, GRAMMAR, [one], seeds=[seed], top_k=5, top_p=0.9).tokens[0] for one, seed in zip(PROMPTS, seeds, strict=True)]
    assert [row.tolist() for row in together] == [row.tolist() for row in alone]


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
