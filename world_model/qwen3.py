"""A world model as a plain Qwen3ForCausalLM folder, which others load with none of this code; and back.

config.json, generation_config.json and model.safetensors are what transformers expects; worldloom.json beside them says what the ids mean:
the vocabulary with its spans, and the grammar. H query heads, K key and value heads, E width of a head.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldloom.world_model.grammar import Grammar
from worldloom.world_model.load import World
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import BOS, EOS, MASK, PAD, Vocabulary

FORMAT = 2

# Ours -> theirs, outside the blocks and inside each; matrices that are one of ours and several of theirs stand in _SPLIT.
_TOP = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "output": "lm_head.weight"}
_BLOCK = {
    "attention_norm": "input_layernorm.weight",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "out": "self_attn.o_proj.weight",
    "ff_norm": "post_attention_layernorm.weight",
    "down": "mlp.down_proj.weight",
}
_SPLIT = {
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}


def save_qwen3(folder: Path, model: WorldModel, grammar: Grammar) -> None:
    """Writes the four files into `folder`, which is made if need be; weights in fp32."""
    if model.shape.ahead:
        raise ValueError(
            f"this world sees {model.shape.ahead} vectors ahead of <bos>, which a Qwen3ForCausalLM cannot take; "
            "export one trained without `sees`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().float().cpu().contiguous() for name, value in to_qwen3(dict(model.named_parameters()), model.shape).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    meaning = {
        "format": FORMAT,
        "vocabulary": grammar.vocabulary.to_json(),
        "grammar": grammar.to_json(),
        "spans": _spans(grammar.vocabulary),
    }
    ids = {"bos_token_id": grammar.vocabulary.bos, "eos_token_id": grammar.vocabulary.eos, "pad_token_id": grammar.vocabulary.pad}
    for name, value in (
        ("config.json", {**config_of(model.shape, grammar.vocabulary), **ids}),
        ("generation_config.json", {"do_sample": True, "temperature": 1.0, "max_length": longest(grammar.vocabulary), **ids}),
        ("worldloom.json", meaning),
    ):
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_qwen3(folder: Path) -> World:
    """The model, in evaluation mode, with its vocabulary and grammar; ValueError for a folder that `save_qwen3` did not write."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    place = folder / "worldloom.json"
    if config.get("model_type") != "qwen3" or not place.is_file():
        raise ValueError(
            f"{folder} is no exported world: its model_type is {config.get('model_type')!r}, and worldloom.json is "
            f"{'there' if place.is_file() else 'missing'}; give a folder that worldloom export wrote"
        )
    meaning = json.loads(place.read_text(encoding="utf-8"))
    if meaning.get("format") != FORMAT:
        raise ValueError(f"{place} has format {meaning.get('format')!r}, expected {FORMAT}; export the world again")
    vocabulary = Vocabulary.from_json(meaning["vocabulary"])
    model = WorldModel(shape_of(config), torch.Generator())
    weights = from_qwen3(load_file(folder / "model.safetensors"), model.shape)
    if model.shape.tied:
        weights["output"] = weights["embedding"]
    model.load_state_dict(weights)
    return World(model.eval(), vocabulary, Grammar.from_json(vocabulary, meaning["grammar"]))


def to_qwen3(weights: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Our parameters under their names."""
    heads = [shape.heads * shape.head_width, shape.kv_heads * shape.head_width, shape.kv_heads * shape.head_width]
    sizes = {"qkv": heads, "gate_up": [shape.ff, shape.ff]}
    theirs: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in _TOP:
            theirs[_TOP[name]] = value
            continue
        _, number, inner = name.split(".")
        parts = torch.split(value, sizes[inner]) if inner in _SPLIT else (value,)
        names = _SPLIT.get(inner) or (_BLOCK[inner],)
        theirs |= {f"model.layers.{number}.{each}": part for each, part in zip(names, parts, strict=True)}
    return theirs


def from_qwen3(weights: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Their parameters under our names; KeyError where one is missing."""
    ours = {name: weights[theirs] for name, theirs in _TOP.items() if not (shape.tied and name == "output")}
    for number in range(shape.depth):
        of_block = {name: weights[f"model.layers.{number}.{theirs}"] for name, theirs in _BLOCK.items()}
        of_block |= {name: torch.cat([weights[f"model.layers.{number}.{each}"] for each in theirs]) for name, theirs in _SPLIT.items()}
        ours |= {f"blocks.{number}.{name}": value for name, value in of_block.items()}
    return ours


def config_of(shape: Shape, vocabulary: Vocabulary) -> dict[str, Any]:
    """config.json, with rope and type spelt as versions 4 and 5 of transformers read them."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.ff,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "max_position_embeddings": max(longest(vocabulary), 2048),
        "tie_word_embeddings": shape.tied,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Our shape from their config.json."""
    return Shape(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        ff=config["intermediate_size"],
        head_width=config["head_dim"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
        tied=config["tie_word_embeddings"],
    )


def longest(vocabulary: Vocabulary) -> int:
    """Tokens of a sample that has every stream once, at its longest."""
    return 2 + sum(stream.tokens for stream in vocabulary.streams)


def _spans(vocabulary: Vocabulary) -> dict[str, Any]:
    """What a reader without our code needs: first and last id + 1 of the texts' pieces, of every stream's codes and of the sentinels.

    And the ids of controls, those of streams apart from the others, since a stream may well be called mask.
    """
    numbers = {stream.name: s for s, stream in enumerate(vocabulary.streams)}
    return {
        "text": [0, vocabulary.text_size],
        "controls": {BOS: vocabulary.bos, EOS: vocabulary.eos, PAD: vocabulary.pad, MASK: vocabulary.mask},
        "opens": {name: vocabulary.indicator(s) for name, s in numbers.items()},
        "closes": {name: vocabulary.closing(s) for name, s in numbers.items()},
        "streams": {name: [vocabulary.span(s).start, vocabulary.span(s).stop] for name, s in numbers.items()},
        "sentinels": [vocabulary.size - vocabulary.sentinels, vocabulary.size],
    }
