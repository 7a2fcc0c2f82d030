"""Opens an exported world again, without the run that it came from; its dataset stays there, so there is nothing to compare it with."""

from pathlib import Path
from typing import NamedTuple

from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.exported import is_export, read_export
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.open_world import OpenWorld, open_world
from worldloom.stages.preprocess import serving
from worldloom.stages.settings import dump
from worldloom.tokenizers.tokenizer import Tokenizer
from worldloom.world_model.qwen3 import load_qwen3


class Opened(NamedTuple):
    """A world, and whose it is."""

    world: OpenWorld
    name: str  # of the stage that trained it
    fingerprint: str


def open_folder(folder: Path) -> Opened:
    """The world in an artifact's folder, or in one that `worldloom export` wrote."""
    if is_export(folder):
        return open_export(folder)
    artifact = Artifact.open(folder)
    return Opened(open_world(artifact), artifact.name, artifact.fingerprint)


def open_export(folder: Path) -> Opened:
    """ValueError where the folder is of another version, or lacks a tokenizer that can serve its stream."""
    about, world = read_export(folder), load_qwen3(folder)
    tokenizers = dict[str, Tokenizer]()
    for name, place in about.streams.items():
        tokenizer = serving(open_tokenizer(folder / place.tokenizer), place.stream)
        if tokenizer is None:
            raise ValueError(f"{folder / place.tokenizer} holds no tokenizer for {name} ({place.stream.kind}); export the world again")
        tokenizers[name] = tokenizer
    streams = {name: dump(place.stream) for name, place in about.streams.items()}
    elsewhere = Tokens.elsewhere(), Dataset.elsewhere(streams, about.oracle)
    return Opened(OpenWorld(world.model, world.grammar, tokenizers, *elsewhere, about.objectives), about.name, about.fingerprint)
