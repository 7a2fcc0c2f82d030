"""An exported world is a plain Qwen3ForCausalLM: the same logits, the same greedy samples, and it comes back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Run
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.infill import infill
from worldloom.world_model.packing import pack
from worldloom.world_model.qwen3 import from_qwen3, load_qwen3, save_qwen3, to_qwen3
from worldloom.world_model.sampling import generate, prompt
from worldloom.world_model.span import cut, put_back, streams_of, take_out
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary
from worldloom.world_model.weave import weave_one


def random_model(shape: Shape) -> WorldModel:
    generator = torch.Generator().manual_seed(1)
    model = WorldModel(shape, generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


# Streams on a clock, one with levels, and sentinels.
CLOCKED = Grammar(
    Vocabulary.of(
        {
            "caption": {"kind": "text", "codebook_size": 13, "max_length": 6},
            "clip": {"kind": "video", "codebook_size": 17, "shape": [3, 2, 1], "steps": 3},
            "push": {"kind": "action", "codebook_size": 5, "shape": [2, 2], "levels": 2, "steps": 2},
            "sound": {"kind": "audio", "codebook_size": 5, "shape": [3], "steps": 3},
            "frame": {"kind": "image", "codebook_size": 17, "shape": [2, 3]},
        },
        {"name": "step", "streams": ["clip", "push", "sound"], "given": ["push"]},
        sentinels=3,
    )
)


def clocked_documents(count: int) -> list[np.ndarray]:
    """Random samples, any of their streams missing; every other one with spans of a segment at its end."""
    generator, ids, documents = np.random.default_rng(0), CLOCKED.vocabulary, list[np.ndarray]()
    while len(documents) < count:
        names = [stream.name for stream in ids.streams if generator.random() < 0.6]
        generator.shuffle(names)
        segments = []
        for name in CLOCKED.arranged(names):
            stream = ids.streams[ids.index(name)]
            segments.append(
                (name, generator.integers(stream.codebook_size, size=generator.integers(stream.min_length, stream.max_length + 1)))
            )
        tokens = weave_one(CLOCKED, segments).tokens
        spans = cut(tokens, ids, len(documents), seed=1) if len(documents) % 2 else None
        documents.append(tokens if spans is None else spans.tokens)
    return documents


@pytest.mark.parametrize("tied", [False, True], ids=["two matrices", "one matrix"])
@pytest.mark.parametrize("clocked", [False, True], ids=["segments", "clock and spans"])
def test_transformers_gives_the_same_logits_on_a_hundred_packed_rows(worlds, tmp_path: Path, tied: bool, clocked: bool) -> None:
    from transformers import AutoModelForCausalLM

    grammar = CLOCKED if clocked else worlds.GRAMMAR
    shape = Shape(grammar.vocabulary.size, width=24, depth=2, heads=4, kv_heads=2, ff=40, head_width=6, rope_theta=700.0, tied=tied)
    model = random_model(shape)
    save_qwen3(tmp_path, model, grammar)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    documents = clocked_documents(600) if clocked else worlds.documents_of(worlds.some_documents(600))
    packed = pack([len(tokens) for tokens in documents], 100, 80 if clocked else 48)
    assert len(set(packed.tolist())) == 100
    expected = {}
    for length in {len(tokens) for tokens in documents}:
        alike = [at for at, tokens in enumerate(documents) if len(tokens) == length]
        with torch.no_grad():
            expected |= dict(
                zip(alike, theirs(torch.from_numpy(np.stack([documents[at] for at in alike])), use_cache=False).logits, strict=True)
            )
    for number in range(100):
        there = np.flatnonzero(packed == number).tolist()
        lengths = [len(documents[at]) for at in there]
        tokens = torch.from_numpy(np.concatenate([documents[at] for at in there]))
        with torch.no_grad():
            hidden = model(tokens, torch.cat([torch.arange(n) for n in lengths]), PackedAttention([Run(1, n) for n in lengths]))
        torch.testing.assert_close(model.logits(hidden).detach(), torch.cat([expected[at] for at in there]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clocked", [False, True], ids=["segments", "clock"])
def test_it_generates_the_same_greedily(worlds, tmp_path: Path, clocked: bool) -> None:
    """From all ids, and from those that the grammar allows, to the end."""
    from transformers import AutoModelForCausalLM

    grammar = CLOCKED if clocked else worlds.GRAMMAR
    model = random_model(Shape(grammar.vocabulary.size, width=24, depth=2, heads=4, kv_heads=2, ff=40, head_width=6))
    save_qwen3(tmp_path, model, grammar)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours, ids = load_qwen3(tmp_path).model, grammar.vocabulary
    start = torch.tensor([[ids.bos, ids.indicator(1)]])
    made = theirs.generate(start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=9)[0].tolist()
    tokens = start[0].tolist()
    while len(tokens) < len(made):
        row = torch.tensor(tokens)
        with torch.no_grad():
            tokens.append(int(ours.logits(ours(row, torch.arange(len(row)), PackedAttention((Run(1, len(row)),))))[-1].argmax()))
    assert tokens == made

    def legal(batch: int, row: torch.Tensor) -> list[int]:
        return [token for part in grammar.legal(grammar.follow(row.tolist())) for token in part]

    caption = prompt(grammar, [("caption", [3, 1, 4])])
    for before in (start[0].numpy(), caption, caption[:-1]):
        (found,) = generate(ours, grammar, [before], seeds=[0], temperature=0)
        given = torch.from_numpy(before)[None]
        made = theirs.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=100, prefix_allowed_tokens_fn=legal
        )
        assert made[0].tolist() == found.tolist() and grammar.parse(found)


def test_it_fills_the_same_holes_greedily(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = CLOCKED.vocabulary
    model = random_model(Shape(ids.size, width=24, depth=2, heads=4, kv_heads=2, ff=40, head_width=6))
    save_qwen3(tmp_path, model, CLOCKED)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = weave_one(CLOCKED, [("clip", np.arange(6)), ("push", [1, 2, 3, 4]), ("frame", np.arange(6))]).tokens
    streams = streams_of(ids, tokens)
    frame, push = (np.flatnonzero(streams == ids.index(name)) for name in ("frame", "push"))
    holed = tokens.copy()
    holed[[*push[:2], *frame[2:5]]] = ids.mask
    (found,) = infill(load_qwen3(tmp_path).model, CLOCKED, [holed], seeds=[0], temperature=0)
    pushes, codes = [ids.level(ids.index("push"), level) for level in (0, 1)], ids.span(ids.index("frame"))
    # What may stand at the end, behind the first sentinel: both codes of the push, the second sentinel, three of the frame, <eos>.
    plan = [*pushes, [ids.sentinel(1)], codes, codes, codes, [ids.eos]]
    start = take_out(tokens, ids, [int(push[0]), int(frame[2])], [2, 3])
    given = torch.from_numpy(start.tokens[: start.tail + 1])[None]
    made = theirs.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=len(plan),
        prefix_allowed_tokens_fn=lambda batch, row: list(plan[len(row) - given.shape[1]]),
    )
    assert put_back(made[0].numpy(), ids).tolist() == found.tolist()


def test_it_comes_back_with_its_vocabulary_and_grammar(worlds, tmp_path: Path) -> None:
    model = random_model(Shape(worlds.IDS.size, width=24, depth=2, heads=4, kv_heads=2, ff=40, head_width=6, rope_theta=99.0))
    save_qwen3(tmp_path, model, worlds.GRAMMAR)
    back = load_qwen3(tmp_path)
    assert back.model.shape == model.shape and back.vocabulary == worlds.IDS and back.grammar.to_json() == worlds.GRAMMAR.to_json()
    for name, value in model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value), name
    spans = json.loads((tmp_path / "worldloom.json").read_text())["spans"]
    assert spans["text"] == [0, 13] and spans["streams"]["frame"] == [worlds.IDS.span(1).start, worlds.IDS.span(1).stop]
    assert spans["opens"]["frame"] == worlds.IDS.indicator(1) and spans["closes"]["frame"] == worlds.IDS.closing(1)


@pytest.mark.parametrize("name", ["mask", "eos", "span-0"])
def test_a_stream_may_be_called_like_a_control(tmp_path: Path, name: str) -> None:
    ids = Vocabulary.of({name: {"kind": "image", "codebook_size": 5, "shape": [2]}}, sentinels=2)
    save_qwen3(tmp_path, random_model(Shape(ids.size, width=8, depth=1, heads=2, kv_heads=1, ff=8, head_width=4)), Grammar(ids))
    spans = json.loads((tmp_path / "worldloom.json").read_text())["spans"]
    assert spans["controls"] == {"<bos>": 0, "<eos>": 1, "<pad>": 2, "<mask>": 3}
    assert (spans["opens"], spans["closes"], spans["streams"]) == ({name: 4}, {name: 5}, {name: [6, 11]})
    assert spans["sentinels"] == [11, 13]
    assert load_qwen3(tmp_path).vocabulary == ids


def test_the_names_are_a_bijection(worlds) -> None:
    model = random_model(Shape(worlds.IDS.size, width=24, depth=3, heads=4, kv_heads=2, ff=40, head_width=6))
    ours = dict(model.named_parameters())
    theirs = to_qwen3(ours, model.shape)
    assert sum(value.numel() for value in theirs.values()) == sum(value.numel() for value in ours.values())
    back = from_qwen3(theirs, model.shape)
    assert back.keys() == ours.keys() and all(torch.equal(back[name], ours[name]) for name in ours)


def test_another_folder_is_refused(worlds, tmp_path: Path) -> None:
    model = random_model(Shape(worlds.IDS.size, width=24, depth=1, heads=4, kv_heads=2, ff=40, head_width=6))
    save_qwen3(tmp_path, model, worlds.GRAMMAR)
    meaning = json.loads((tmp_path / "worldloom.json").read_text())
    (tmp_path / "worldloom.json").write_text(json.dumps({**meaning, "format": 9}))
    with pytest.raises(ValueError, match="has format 9, expected 2; export the world again"):
        load_qwen3(tmp_path)
    (tmp_path / "worldloom.json").unlink()
    with pytest.raises(ValueError, match=r"is no exported world: its model_type is 'qwen3', and worldloom\.json is missing"):
        load_qwen3(tmp_path)
