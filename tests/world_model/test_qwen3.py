"""An exported world is a plain Qwen3ForCausalLM: the same logits, the same greedy samples, and it comes back."""

import json
from pathlib import Path

import pytest
import torch

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Run
from worldloom.world_model.qwen3 import from_qwen3, load_qwen3, save_qwen3, to_qwen3
from worldloom.world_model.transformer import Shape, WorldModel


def random_model(shape: Shape) -> WorldModel:
    generator = torch.Generator().manual_seed(1)
    model = WorldModel(shape, generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["two matrices", "one matrix"])
def test_transformers_gives_the_same_logits_on_a_hundred_rows(worlds, tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    shape = Shape(worlds.IDS.size, width=24, depth=2, heads=4, kv_heads=2, ff=40, head_width=6, rope_theta=700.0, tied=tied)
    model = random_model(shape)
    save_qwen3(tmp_path, model, worlds.GRAMMAR)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    rows = [tokens for tokens in worlds.documents_of(worlds.some_documents(100)) if len(tokens) > 2]
    assert len(rows) > 80
    for tokens in rows:
        row = torch.from_numpy(tokens)
        with torch.no_grad():
            expected = theirs(row[None], use_cache=False).logits[0]
            found = model.logits(model(row, torch.arange(len(row)), PackedAttention((Run(1, len(row)),))))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_it_generates_the_same_greedily(worlds, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = random_model(Shape(worlds.IDS.size, width=24, depth=2, heads=4, kv_heads=2, ff=40, head_width=6))
    save_qwen3(tmp_path, model, worlds.GRAMMAR)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = load_qwen3(tmp_path).model
    start = torch.tensor([[worlds.IDS.bos, worlds.IDS.indicator(1)]])
    made = theirs.generate(start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=9)[0].tolist()
    tokens = start[0].tolist()
    while len(tokens) < len(made):
        row = torch.tensor(tokens)
        with torch.no_grad():
            tokens.append(int(ours.logits(ours(row, torch.arange(len(row)), PackedAttention((Run(1, len(row)),))))[-1].argmax()))
    assert tokens == made


def test_it_comes_back_with_its_vocabulary_and_grammar(worlds, tmp_path: Path) -> None:
    model = random_model(Shape(worlds.IDS.size, width=24, depth=2, heads=4, kv_heads=2, ff=40, head_width=6, rope_theta=99.0))
    save_qwen3(tmp_path, model, worlds.GRAMMAR)
    back = load_qwen3(tmp_path)
    assert back.model.shape == model.shape and back.vocabulary == worlds.IDS and back.grammar.to_json() == worlds.GRAMMAR.to_json()
    for name, value in model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value), name
    spans = json.loads((tmp_path / "worldloom.json").read_text())["spans"]
    assert spans["text"] == [0, 13] and spans["streams"]["frame"] == [worlds.IDS.span(1).start, worlds.IDS.span(1).stop]
    assert spans["controls"]["<frame>"] == worlds.IDS.indicator(1)


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
    with pytest.raises(ValueError, match="has format 9, expected 1; export the world again"):
        load_qwen3(tmp_path)
    (tmp_path / "worldloom.json").unlink()
    with pytest.raises(ValueError, match=r"is no exported world: its model_type is 'qwen3', and worldloom\.json is missing"):
        load_qwen3(tmp_path)
