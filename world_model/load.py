"""A world model as a folder: config.json, model.safetensors and vocabulary.json, which anybody can read without our code."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from worldloom.world_model.grammar import Grammar
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary


class World(NamedTuple):
    model: WorldModel
    vocabulary: Vocabulary
    grammar: Grammar


def save_pretrained(folder: Path, model: WorldModel, grammar: Grammar) -> None:
    """Writes the model, in fp32, and its grammar's vocabulary into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: parameter.detach().float().cpu().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = {"vocabulary": grammar.vocabulary.to_json(), "grammar": grammar.to_json()}
    for name, value in (("config.json", {"type": "world_model", **model.settings()}), ("vocabulary.json", words)):
        (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def from_pretrained(folder: Path) -> World:
    """The model, in fp32 and in evaluation mode, with its vocabulary and grammar; ValueError if the folder holds something else."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.pop("type", None) != "world_model":
        raise ValueError(
            f"{folder} does not hold a world model: its config.json has no type 'world_model'; give the folder world/ of a run"
        )
    words = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    vocabulary = Vocabulary.from_json(words["vocabulary"])
    model = WorldModel(Shape(**config), torch.Generator())
    weights = load_file(folder / "model.safetensors")
    if model.shape.tied:
        weights["output"] = weights["embedding"]
    model.load_state_dict(weights)
    return World(model.eval(), vocabulary, Grammar.from_json(vocabulary, words["grammar"]))
