"""Streams woven step by step, against a plain way that writes every document by hand."""

from collections.abc import Iterator
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch

from worldloom.world_model.grammar import BETWEEN, Grammar, IllegalToken, State
from worldloom.world_model.masked import masked
from worldloom.world_model.next_token import next_token
from worldloom.world_model.parallel import fill_in
from worldloom.world_model.qwen3 import load_qwen3, longest, save_qwen3
from worldloom.world_model.sampling import generate, prompt
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Clock, Vocabulary, code_stream
from worldloom.world_model.weave import FORCED, Codes, document_lengths, weave, weave_one


def small(steps: int) -> Vocabulary:
    """words, and clip, push (which lacks the last step) and sound on a clock; ids not in the clock's order."""
    push = [code_stream("push", "action", 2, shape=(steps - 1,), steps=steps - 1)] if steps > 1 else []
    streams = (
        *push,
        code_stream("words", "text", 2, max_length=1),
        code_stream("sound", "audio", 2, shape=(steps,), steps=steps),
        code_stream("clip", "video", 2, shape=(steps, 1), steps=steps),
    )
    return Vocabulary(
        streams, 2, Clock("step", ("clip", *(stream.name for stream in push), "sound"), tuple(stream.name for stream in push))
    )


def plain(ids: Vocabulary) -> Iterator[tuple[list[tuple[str, list[int]]], list[int]]]:
    """Every sample, its segments as weave takes them, and its document."""

    def segment(name: str, codes: list[int]) -> list[int]:
        s = ids.index(name)
        return [ids.indicator(s), *(ids.span(s).start + code for code in codes), ids.closing(s)]

    def variants(name: str) -> list[list[int]]:
        stream = ids.streams[ids.index(name)]
        lengths = [stream.max_length] if stream.fixed else range(stream.max_length + 1)
        return [list(codes) for length in lengths for codes in product(range(stream.codebook_size), repeat=length)]

    assert ids.clock is not None
    groups: list[tuple[list[tuple[str, list[int]]], list[int]]] = []
    for size in range(1, len(ids.clock.streams) + 1):
        for there in combinations(ids.clock.streams, size):
            for codes in product(*(variants(name) for name in there)):
                group = list(zip(there, codes, strict=True))
                tokens = [t for at in range(ids.steps) for name, each in group if at < len(each) for t in segment(name, [each[at]])]
                groups.append((group, tokens))
    words = [([("words", codes)], segment("words", codes)) for codes in variants("words")]
    for kinds in ([], [groups], [words], [groups, words]):
        for units in product(*kinds):
            for order in permutations(units):
                tokens = [ids.bos, *(t for _, part in order for t in part), ids.eos]
                yield [each for segments, _ in order for each in segments], tokens


def walks(grammar: Grammar, state: State, before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    may = [token for ids in grammar.legal(state) for token in ids]
    if not may:
        yield before
    for token in may:
        yield from walks(grammar, grammar.step(state, token), (*before, token))


def expected_legal(grammar: Grammar, tokens: list[int]) -> list[int]:
    """What weave calls the automaton's sets."""
    ids, state, sets = grammar.vocabulary, grammar.start(), []
    for token in tokens:
        may = [i for part in grammar.legal(state) for i in part]
        if len(may) == 1:
            sets.append(FORCED)
        elif state.stream == BETWEEN:
            S = len(ids.streams)
            sets.append(S + sum(1 << s for s in range(S) if ids.indicator(s) in may) + (0 if ids.eos in may else 1 << S))
        else:
            sets.append(state.stream)
        state = grammar.step(state, token)
    return sets


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_automaton_writes_every_sample_step_by_step_and_nothing_else(steps):
    ids = small(steps)
    grammar = Grammar(ids)
    whole = {tuple(tokens) for _, tokens in plain(ids)}
    assert set(walks(grammar, grammar.start())) == whole
    for length in (2, 5, 8, 10, 11, 15, 16, max(map(len, whole)) - 1):
        assert set(walks(grammar, grammar.start(length))) == {tokens for tokens in whole if len(tokens) <= length}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_is_woven_is_the_plain_document_its_legal_sets_the_automatons_and_reads_back(steps):
    ids = small(steps)
    grammar = Grammar(ids)
    for segments, tokens in plain(ids):
        woven = weave_one(grammar, segments)
        assert woven.tokens.tolist() == tokens
        assert woven.legal.tolist() == expected_legal(grammar, tokens)
        assert [(segment.stream, segment.codes.tolist()) for segment in grammar.parse(tokens)] == segments
        some = tokens[:-2]
        if len(some) > 1:
            with pytest.raises(IllegalToken):
                grammar.parse([*some, ids.eos])


STREAMS = {
    "caption": {"kind": "text", "codebook_size": 13, "max_length": 6},
    "clip": {"kind": "video", "codebook_size": 17, "shape": [4, 2, 3], "steps": 4},
    "frame": {"kind": "image", "codebook_size": 17, "shape": [2, 3]},
    "push": {"kind": "action", "codebook_size": 7, "shape": [3, 2], "levels": 2, "steps": 3},
    "sound": {"kind": "audio", "codebook_size": 5, "shape": [8], "steps": 4},
}
CLOCK = {"name": "step", "streams": ["clip", "push", "sound"], "given": ["push"]}
IDS = Vocabulary.of(STREAMS, CLOCK)
GRAMMAR = Grammar(IDS)


def some_documents(count: int, seed: int = 0):
    """Random samples; any stream may be missing, the clock's stand together at any place."""
    generator = np.random.default_rng(seed)
    order = np.full((count, len(IDS.streams)), -1)
    for row in order:
        kept = generator.permutation(len(row))[: generator.integers(0, len(row) + 1)].tolist()
        row[: len(kept)] = [IDS.index(name) for name in GRAMMAR.arranged([IDS.streams[s].name for s in kept])]
    codes = {}
    for number, stream in enumerate(IDS.streams):
        lengths = np.where((order == number).any(axis=1), generator.integers(stream.min_length, stream.max_length + 1, count), 0)
        codes[stream.name] = Codes(generator.integers(0, stream.codebook_size, lengths.sum()), lengths)
    return order, codes, weave(GRAMMAR, order, codes)


def tiny_model(seed: int = 0) -> WorldModel:
    generator = torch.Generator().manual_seed(seed)
    model = WorldModel(Shape(IDS.size, width=16, depth=2, heads=4, kv_heads=2, ff=24, head_width=8), generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return model


def test_a_batch_is_its_documents_woven_one_by_one():
    order, codes, woven = some_documents(60)
    lengths = np.stack([codes[stream.name].lengths for stream in IDS.streams], axis=1)
    assert document_lengths(GRAMMAR, order, lengths).tolist() == woven.lengths.tolist()
    ends = np.cumsum(woven.lengths)
    for row, (tokens, legal) in enumerate(zip(np.split(woven.tokens, ends[:-1]), np.split(woven.legal, ends[:-1]), strict=True)):
        names = [IDS.streams[s].name for s in order[row] if s >= 0]
        starts = {name: int(codes[name].lengths[:row].sum()) for name in names}
        segments = [(name, codes[name].values[starts[name] :][: codes[name].lengths[row]]) for name in names]
        assert weave_one(GRAMMAR, segments).tokens.tolist() == tokens.tolist()
        assert legal.tolist() == expected_legal(GRAMMAR, tokens.tolist())


def test_the_columns_of_a_choice_are_the_ids_that_the_automaton_allows():
    *_, woven = some_documents(40)
    example = next_token(woven, GRAMMAR, np.arange(40), seed=1, full_share=0.0)
    documents = {tuple(tokens.tolist()) for tokens in np.split(woven.tokens, np.cumsum(woven.lengths)[:-1])}
    may = {}
    for document in documents:
        state = GRAMMAR.start()
        for at, token in enumerate(document):
            may[document[:at]] = sorted(i for ids in GRAMMAR.legal(state) for i in ids)
            state = GRAMMAR.step(state, token)
    starts = torch.cummax(torch.where(example.positions == 0, torch.arange(len(example.inputs)), 0), 0).values
    seen = 0
    for choice in example.choices:
        columns = torch.cat([torch.arange(first, last) for first, last in choice.ranges])
        for row, place in enumerate(choice.places.tolist()):
            mine = columns if choice.allowed is None else columns[choice.allowed[row]]
            assert sorted(mine.tolist()) == may[tuple(example.inputs[starts[place] : place + 1].tolist())]
            seen += 1
    assert seen == sum((legal != FORCED) for legal in woven.legal)


def test_hidden_codes_of_a_stream_on_the_clock_are_drawn_over_all_its_steps():
    clip = np.zeros(24, np.int64)
    woven = weave(GRAMMAR, np.full((4000, 1), IDS.index("clip")), {"clip": Codes(np.tile(clip, 4000), np.full(4000, 24))})
    example = masked(woven, GRAMMAR, np.arange(4000), seed=3)
    hidden = (example.inputs == IDS.mask).view(4000, -1).sum(1)
    # E max(1, ceil(24 cos(pi u / 2))) over u.
    u = (np.arange(100_000) + 0.5) / 100_000
    assert abs(hidden.float().mean() - np.maximum(1, np.ceil(24 * np.cos(np.pi / 2 * u))).mean()) < 0.4
    assert (hidden > 22).float().mean() > 0.1  # whole clips, too
    assert (example.labels[example.inputs == IDS.mask] == IDS.span(IDS.index("clip")).start).all()


def test_what_is_asked_for_on_the_clock_comes_step_by_step_in_its_order():
    model = tiny_model()
    made = generate(model, GRAMMAR, [prompt(GRAMMAR, [])] * 3, ["push", "frame", "clip"], seeds=[1, 2, 3])
    for tokens in made:
        assert [segment.stream for segment in GRAMMAR.parse(tokens)] == ["clip", "push", "frame"]
    started = weave_one(GRAMMAR, [("clip", np.arange(24) % 17), ("push", [1, 2, 3, 4, 5, 6])]).tokens[:20]
    (gone_on,) = generate(model, GRAMMAR, [started], ["caption"], seeds=[4])
    segments = GRAMMAR.parse(gone_on)
    assert [segment.stream for segment in segments] == ["clip", "push", "caption"]
    assert segments[0].codes[:6].tolist() == list(range(6)) and segments[1].codes[:2].tolist() == [1, 2]
    free = generate(model, GRAMMAR, [prompt(GRAMMAR, [])] * 40, seeds=range(40))
    assert all(GRAMMAR.parse(tokens) is not None for tokens in free)


def test_codes_of_all_steps_are_filled_in_beside_what_is_given_on_the_clock():
    model, clip = tiny_model(), np.arange(24) % 17
    start = prompt(GRAMMAR, [("caption", [3, 1])])
    given = [{"clip": clip}, {"clip": clip, "sound": np.zeros(8, np.int64)}]
    for tokens in fill_in(model, GRAMMAR, [start, start], ["push", "push"], seeds=[1, 2], steps=3, given=given):
        found = {segment.stream: segment.codes for segment in GRAMMAR.parse(tokens)}
        assert found["clip"].tolist() == clip.tolist() and len(found["push"]) == 6 and IDS.mask not in tokens
    (alone,) = fill_in(model, GRAMMAR, [start], ["clip"], seeds=[1], steps=4, temperature=0, guidance=2.0)
    assert [segment.stream for segment in GRAMMAR.parse(alone)] == ["caption", "clip"]
    with pytest.raises(ValueError, match="only streams of one clock stand beside each other; frame and clip do not"):
        fill_in(model, GRAMMAR, [start], ["frame"], seeds=[1], given=[{"clip": clip}])
    with pytest.raises(ValueError, match="<push> may not open behind this prompt"):
        fill_in(model, GRAMMAR, [prompt(GRAMMAR, [("clip", clip)])], ["push"], seeds=[1])


def test_an_exported_world_keeps_its_clock_and_its_longest_sample(tmp_path):
    save_qwen3(tmp_path, tiny_model(), GRAMMAR)
    assert load_qwen3(tmp_path).vocabulary == IDS
    every = generate(tiny_model(), GRAMMAR, [prompt(GRAMMAR, [("caption", [1] * 6)])], ["frame", "clip", "push", "sound"], seeds=[0])
    assert longest(IDS) == len(every[0])


def test_a_vocabulary_of_before_has_no_clock():
    old = {"text_size": 0, "streams": [{"name": "f", "kind": "image", "codebook_size": 3, "shape": [2], "max_length": 2, "levels": 1}]}
    ids = Vocabulary.from_json(old)
    assert (ids.clock, ids.steps, ids.clocked) == (None, 0, ()) and ids.to_json() == old
    assert Vocabulary.from_json(IDS.to_json()) == IDS


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([["clip", "frame", "push"]], "side by side in an order of streams, and in the clock's own: clip, push, sound"),
        ([["push", "clip"]], "and in the clock's own: clip, push, sound"),
    ],
)
def test_an_order_in_which_the_clock_does_not_hold_together_is_refused(order, message):
    with pytest.raises(ValueError, match=message):
        weave(GRAMMAR, np.array([[IDS.index(name) for name in row] for row in order]), {})


@pytest.mark.parametrize(
    ("changes", "clock", "message"),
    [
        ({"sound": {"shape": [7]}}, CLOCK, "stream 'sound' is on a clock, so its codes must divide evenly over its 4 steps, got the shape"),
        ({"push": {"shape": [2, 2], "steps": 2}}, CLOCK, "as many steps, or one less where the last has nothing"),
        ({"push": {"steps": 0}}, CLOCK, "must be the same"),
        ({}, {**CLOCK, "given": ["frame"]}, r"given are \['frame'\]"),
        ({}, None, "must be the same"),
    ],
)
def test_a_clock_that_does_not_fit_its_streams_is_refused(changes, clock, message):
    streams = {name: {**about, **changes.get(name, {})} for name, about in STREAMS.items()}
    with pytest.raises(ValueError, match=message):
        Vocabulary.of(streams, clock)


def test_a_wrong_length_on_the_clock_is_named():
    with pytest.raises(ValueError, match="a sample has 23 codes of stream 'clip', it must have exactly 24"):
        weave_one(GRAMMAR, [("clip", np.zeros(23, np.int64))])
    with pytest.raises(IllegalToken, match="may not follow 1 codes of <clip> at step 0"):
        GRAMMAR.parse([IDS.bos, IDS.indicator(1), IDS.span(1).start, IDS.eos])
