"""Rollouts against the plain way: every code from one whole pass over the tokens in sight."""

import resource
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Run
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.next_token import uniform
from worldloom.world_model.rollout import NOISE, Rollout, roll
from worldloom.world_model.sampling import choose, prompt
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary
from worldloom.world_model.weave import weave_one


def of_steps(steps: int) -> Vocabulary:
    """The same ids, however many steps."""
    return Vocabulary.of(
        {
            "caption": {"kind": "text", "codebook_size": 13, "max_length": 6},
            "clip": {"kind": "video", "codebook_size": 17, "shape": [steps, 2, 1], "steps": steps},
            "push": {"kind": "action", "codebook_size": 5, "shape": [steps - 1, 2], "levels": 2, "steps": steps - 1},
            "sound": {"kind": "audio", "codebook_size": 5, "shape": [steps], "steps": steps},
        },
        {"name": "step", "streams": ["clip", "push", "sound"], "given": ["push"]},
    )


IDS = of_steps(3)
GRAMMAR = Grammar(IDS)
PROMPTS = [prompt(GRAMMAR, segments) for segments in ([("caption", [3, 1, 4, 1])], [], [("caption", [2])])]
SEEDS = [5, 6, 7]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as these only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    generator = torch.Generator().manual_seed(3)
    made = WorldModel(Shape(IDS.size, width=16, depth=2, heads=4, kv_heads=2, ff=24, head_width=8), generator).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return made


def pushes(steps: int, rows: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, size=(steps, rows, 2))


def rolled(model, actions, rows=(0, 1, 2), streams=("clip", "push", "sound"), frames=1, **options):
    """One dict of codes for each action, behind `frames` frames of context."""
    rollout = Rollout(model, GRAMMAR, [PROMPTS[row] for row in rows], streams, seeds=[SEEDS[row] for row in rows], **options)
    context = {"clip": np.random.default_rng(1).integers(17, size=(3, frames, 2))[list(rows)]}
    context["push"] = pushes(frames, 3, 4).transpose(1, 0, 2)[list(rows), : frames - 1]
    context["sound"] = np.zeros((len(rows), frames - 1, 1), np.int64)
    if "sound" not in streams:
        del context["sound"]
    taken = iter(actions)
    return context, list(islice(roll(rollout, context, lambda last: {"push": next(taken)[list(rows)]}), len(actions)))


def plainly(model, row, context, actions, window, slide, temperature):
    """Row by row and code by code, without a cache."""
    drawn, made, steps = 0, [], []

    def segment(name, codes):
        s = IDS.index(name)
        stream = IDS.streams[s]
        span = [IDS.span(s).start + at % stream.levels * stream.codebook_size + code for at, code in enumerate(codes)]
        return [IDS.indicator(s), *span, IDS.closing(s)]

    def draw(name):
        nonlocal drawn
        s, codes = IDS.index(name), []
        for at in range(IDS.streams[s].step_length):
            tokens = [*PROMPTS[row].tolist(), *(t for step in steps for t in step), *segment(name, codes)[:-1]]
            hidden = model(torch.tensor(tokens), torch.arange(len(tokens)), PackedAttention((Run(1, len(tokens)),)))[-1]
            level = IDS.level(s, at % IDS.streams[s].levels)
            noise = torch.from_numpy(uniform(NOISE, np.array([SEEDS[row]]), np.array([drawn])))
            codes.append(int(choose(model.logits(hidden)[None, level.start : level.stop], temperature, 0, 1.0, noise)))
            drawn += 1
        return codes

    def begin():
        if len(steps) == window:
            del steps[:slide]
        steps.append([])

    for at in range(context["clip"].shape[1]):
        begin()
        for name in ("clip", "push", "sound"):
            if at < context[name].shape[1]:
                steps[-1] += segment(name, context[name][row, at].tolist())
    for action in actions:
        steps[-1] += segment("push", action[row].tolist())
        sound = draw("sound")
        steps[-1] += segment("sound", sound)
        begin()
        clip = draw("clip")
        steps[-1] += segment("clip", clip)
        made.append((sound, clip))
    return made


@pytest.mark.parametrize(("window", "slide", "temperature"), [(3, 1, 0.0), (3, 1, 1.0), (4, 2, 1.0), (20, 1, 1.0)])
@torch.inference_mode()
def test_with_the_cache_it_is_as_from_whole_passes_also_across_slides_of_the_window(model, window, slide, temperature):
    actions = pushes(7)
    context, made = rolled(model, actions, frames=2, window=window, slide=slide, temperature=temperature)
    for row in range(3):
        found = [(step["sound"][row].tolist(), step["clip"][row].tolist()) for step in made]
        assert found == plainly(model, row, context, actions, window, slide, temperature)
    assert all((step["push"] == action).all() for step, action in zip(made, actions, strict=True))


def test_an_action_changes_what_comes_behind_it_and_nothing_before(model):
    def made(actions):
        rollout = Rollout(model, GRAMMAR, PROMPTS[:1] * 40, ["clip", "push", "sound"], seeds=range(40), temperature=3.0)
        taken = iter(actions)
        context = {"clip": np.zeros((40, 1, 2), np.int64)}
        return list(islice(roll(rollout, context, lambda last: {"push": next(taken)}), len(actions)))

    actions = pushes(6, 40)
    first = made(actions)
    for at in range(6):
        other = actions.copy()
        other[at] = (other[at] + 1) % 5
        changed = made(other)
        for name in ("clip", "sound"):
            assert all((one[name] == two[name]).all() for one, two in zip(first[:at], changed[:at], strict=True))
        assert (first[at]["clip"] != changed[at]["clip"]).any()


def test_a_row_is_a_function_of_its_prompt_its_seed_and_its_actions(model):
    actions = pushes(6)
    _, together = rolled(model, actions, top_k=7)
    for row in range(3):
        _, alone = rolled(model, actions, rows=(row,), top_k=7)
        assert all((one[name][row] == two[name][0]).all() for one, two in zip(together, alone, strict=True) for name in one)


def test_what_is_streamed_is_one_document_of_the_grammar_of_that_many_steps(model):
    actions = pushes(5)
    context, made = rolled(model, actions, window=6)
    grammar = Grammar(of_steps(6))
    clip = np.concatenate([context["clip"][0, 0], *(step["clip"][0] for step in made)])
    push = np.concatenate([step["push"][0] for step in made])
    woven = weave_one(grammar, [("caption", [3, 1, 4, 1]), ("clip", clip), ("push", push)])
    assert [segment.codes.tolist() for segment in grammar.parse(woven.tokens)][1:] == [clip.tolist(), push.tolist()]


def test_without_actions_the_model_draws_its_own_or_has_none(model):
    rollout = Rollout(model, GRAMMAR, PROMPTS, ["push", "clip"], seeds=SEEDS)
    drawn = list(islice(roll(rollout, {"clip": np.zeros((3, 1, 2), np.int64)}, lambda last: {}), 4))
    assert all(step["push"].shape == (3, 2) and step["push"].max() < 5 for step in drawn)
    alone = Rollout(model, GRAMMAR, PROMPTS, ["clip"], seeds=SEEDS)
    (step,) = islice(roll(alone, {"clip": np.zeros((3, 1, 2), np.int64)}, lambda last: {}), 1)
    assert list(step) == ["clip"]


def test_a_policy_sees_the_last_frame(model):
    seen = []

    def policy(last):
        seen.append(last)
        return {"push": last["clip"][:, :2] % 5}

    rollout = Rollout(model, GRAMMAR, PROMPTS, ["clip", "push"], seeds=SEEDS)
    made = list(islice(roll(rollout, {"clip": np.full((3, 1, 2), 4)}, policy), 3))
    assert seen[0]["clip"].tolist() == [[4, 4]] * 3
    assert all((last["clip"] == step["clip"]).all() for last, step in zip(seen[1:], made, strict=False))
    assert all((step["push"] == last["clip"] % 5).all() for last, step in zip(seen, made, strict=True))


def test_memory_stays_flat_over_a_thousand_steps():
    small = WorldModel(Shape(IDS.size, width=8, depth=1, heads=2, kv_heads=1, ff=8, head_width=4), torch.Generator().manual_seed(5)).eval()
    rollout = Rollout(small, GRAMMAR, PROMPTS, ["push", "sound"], seeds=SEEDS, window=3)
    going = roll(rollout, {"push": np.zeros((3, 1, 2), np.int64)}, lambda last: {"push": np.zeros((3, 2), np.int64)})
    next(islice(going, 100, None))
    held, before = (rollout._tokens.shape, rollout._cache.length), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    next(islice(going, 900, None))
    assert (rollout._tokens.shape, rollout._cache.length) == held and resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss - before < 4_000  # kB


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streams": ["caption"]}, "a rollout needs streams on the clock, got caption; on it are clip, push, sound"),
        ({"seeds": [1]}, "a seed for each, got 3 prompts and 1 seeds"),
        ({"slide": 4}, r"slide must be from 1 to window \(3 steps\), got 4"),
        ({"prompts": [prompt(GRAMMAR, [("clip", np.zeros(6, np.int64))])] * 3}, "streams that are not on the clock"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        Rollout(model, GRAMMAR, **{"prompts": PROMPTS, "streams": ["clip", "push"], "seeds": SEEDS, **changes})


@pytest.mark.parametrize("given", [np.zeros((3, 1), np.int64), np.full((3, 2), 17)])
def test_codes_that_are_none_of_their_stream_are_refused(model, given):
    with pytest.raises(ValueError, match="a step of 'clip' has 2 codes from 0 to 16 for each of 3 rows"):
        Rollout(model, GRAMMAR, PROMPTS, ["clip"], seeds=SEEDS).segment(given)
