"""A world model or a tokenizer as it was at a checkpoint of its training, which may still be going on.

What was learnt is read as it lies in the checkpoint: the masters of each rank by the names of parameters, or their moving averages where
those are what the training keeps, and everything else that the module holds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from worldloom.stages.artifact import Artifact
from worldloom.stages.checkpoint import damage
from worldloom.stages.dataset import Dataset
from worldloom.stages.deepspeed_engine import OTHERS
from worldloom.stages.masters import AVERAGE, MASTER
from worldloom.stages.open_world import OpenWorld, join_world, sets_of_tokens
from worldloom.stages.tokenizer_kinds import kind_of_tokenizer
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.train_world_model import TrainWorldModel, grammar_of, shape_of, sights_of, tokens_of
from worldloom.tokenizers.learned import LearnedTokenizer
from worldloom.world_model.transformer import WorldModel


def world_at(artifact: Artifact, step: int) -> OpenWorld:
    """The world of a begun or finished artifact of train_world_model; ValueError where there is no such checkpoint, or it is damaged."""
    settings = TrainWorldModel.model_validate_json(json.dumps(artifact.settings))
    inputs = {field: artifact.input(field) for field in artifact.inputs}
    tokens = tokens_of(settings, inputs)
    sights = sights_of(settings, inputs, tokens)
    grammar = grammar_of(settings, tokens, sights)
    model = WorldModel(shape_of(_model_at(settings, step), grammar.vocabulary.size, sights), torch.Generator().manual_seed(0))
    _load(model, checkpoint(artifact, step) / "engines" / "world")
    return join_world(model.eval(), grammar, artifact, sets_of_tokens(artifact))


def tokenizer_at(artifact: Artifact, step: int) -> tuple[LearnedTokenizer, Dataset, str]:
    """The tokenizer of a begun or finished artifact of train_tokenizer, with the dataset and the stream that it learns from; ValueError."""
    settings = TrainTokenizer.model_validate_json(json.dumps(artifact.settings))
    dataset = Dataset(artifact.input("data"))
    tokenizer = kind_of_tokenizer(settings, dataset).build(settings, dataset.streams[settings.stream])
    _load(tokenizer.autoencoder, checkpoint(artifact, step) / "engines" / "generator")
    tokenizer.autoencoder.eval()
    return tokenizer, dataset, settings.stream


def checkpoint(artifact: Artifact, step: int) -> Path:
    """The folder of a whole checkpoint; ValueError."""
    folder = artifact.folder / "checkpoints" / f"step-{step:08d}"
    if (problem := damage(folder)) is not None:
        raise ValueError(
            f"{artifact.name} has no checkpoint of step {step} that could be read: {problem}; a newer one may have replaced it"
        )
    return folder


def _model_at(settings: TrainWorldModel, step: int) -> Any:
    """The model's settings in that stage of the training in which the step was."""
    done = 0
    for stage in settings.all_stages:
        done += stage.steps
        if step <= done:
            return stage.model
    return settings.all_stages[-1].model


def _load(module: nn.Module, folder: Path) -> None:
    """Gives the module what `folder` holds; ValueError where a parameter is not all there."""
    state = load_file(folder / OTHERS)
    parameters = dict(module.named_parameters())
    state |= {
        name: tensor.view(parameters[name].shape) for name, tensor in _whole(parameters, sorted(folder.glob("rank-*.safetensors"))).items()
    }
    module.load_state_dict(state)


def _whole(parameters: Mapping[str, nn.Parameter], paths: list[Path]) -> dict[str, Tensor]:
    """Every trained parameter, flat, put together from the pieces that the ranks have written."""
    whole: dict[str, Tensor] = {}
    found: dict[str, int] = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            starts: dict[str, list[int]] = json.loads(file.metadata()["starts"])
            names = set(file.keys())
            for name, (start, numel) in starts.items():
                kind = AVERAGE if f"{AVERAGE}/{name}" in names else MASTER
                flat = whole.setdefault(name, torch.empty(parameters[name].numel()))
                flat[start : start + numel] = file.get_tensor(f"{kind}/{name}")
                found[name] = found.get(name, 0) + numel
    for name, numel in found.items():
        if numel != parameters[name].numel():
            raise ValueError(f"{numel} of {parameters[name].numel()} numbers of {name} are in {paths[0].parent}; ranks of it are missing")
    return whole
