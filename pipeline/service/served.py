"""What is served, found by what the command line names: a run, a stage of one, an exported world, or the folder of a tokenizer."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from worldloom.pipeline.locate import locate
from worldloom.stages.artifact import Artifact
from worldloom.stages.exported import is_export, read_export
from worldloom.stages.settings import NAME, dump


class TokenizerPlace(NamedTuple):
    """A tokenizer to open."""

    name: str
    folder: Path  # with its config.json
    stage: str | None
    stream: dict[str, Any] | None  # settings of the stream of a dataset that it encodes; None: as the tokenizer itself says


class EncoderPlace(NamedTuple):
    """An encoder to open."""

    name: str
    folder: Path  # its artifact
    features: Path | None  # an artifact with its features of a dataset, to search in


class Served(NamedTuple):
    """Places alone: nothing is opened yet."""

    tokenizers: tuple[TokenizerPlace, ...]
    world: Path | None  # the artifact of a world model, or an exported one
    encoders: tuple[EncoderPlace, ...]
    runs: tuple[Path, ...]  # as they were named


def find_served(names: Sequence[str]) -> Served:
    """ValueError, or an error of what is named, where there is nothing to serve or two tokenizers would have one name."""
    tokenizers: dict[str, TokenizerPlace] = {}
    worlds: list[Path] = []
    encoders: dict[str, EncoderPlace] = {}
    runs: list[Path] = []
    for name in names:
        if is_export(Path(name)):
            worlds.append(Path(name).resolve())
            places = _of_export(worlds[-1])
        elif found := _tokenizer(name):
            places = [found]
        else:
            run = Path(name)
            artifacts = [Artifact.open(folder) for folder in locate(run).artifacts.values() if (folder / "DONE.json").is_file()]
            places = _of_run(artifacts)
            worlds += [artifact.folder for artifact in artifacts if artifact.produces == "world_model"]
            for artifact in artifacts:
                if artifact.produces == "encoder":
                    name = _name(artifact.name)
                    encoders.setdefault(name, EncoderPlace(name, artifact.folder, _features_of(artifact, artifacts)))
            runs.append(run)
        for place in places:
            if tokenizers.setdefault(place.name, place) != place:
                raise ValueError(
                    f"{tokenizers[place.name].folder} and {place.folder} would both be called {place.name}; serve them by two services"
                )
    if len(worlds) > 1:
        raise ValueError(f"there are {len(worlds)} world models ({', '.join(map(str, worlds))}); one is served: name one run of one")
    if not tokenizers and not encoders:
        raise ValueError(f"there is no finished tokenizer in {', '.join(names)}; run the pipeline, it goes on where it stopped")
    return Served(tuple(tokenizers.values()), worlds[0] if worlds else None, tuple(encoders.values()), tuple(runs))


def _tokenizer(name: str) -> TokenizerPlace | None:
    """A tokenizer by its folder, or as RUN:STAGE."""
    for folder in (Path(name), Path(name) / "tokenizer"):
        if (folder / "config.json").is_file():
            folder = folder.resolve()
            stage = _stage(folder.parent)
            return TokenizerPlace(_name(stage or folder.name), folder, stage, None)
    run, colon, stage = name.rpartition(":")
    if not colon or Path(name).exists():
        return None
    from worldloom.pipeline.found import find_artifact

    return TokenizerPlace(_name(stage), find_artifact(Path(run), "tokenizer", stage).folder / "tokenizer", stage, None)


def _of_run(artifacts: Sequence[Artifact]) -> list[TokenizerPlace]:
    """By the names of the streams that they encode; those that encode none yet, or share a stream's name, by their stage."""
    places: dict[str, TokenizerPlace] = {}
    for tokens in (artifact for artifact in artifacts if artifact.produces == "tokens"):
        streams = json.loads(tokens.input("data").content("dataset.json"))["streams"]
        for field in sorted(tokens.inputs):
            role, _, stream = field.partition(".")
            if role == "tokenizers":
                made = tokens.input(field)
                place = TokenizerPlace(stream, made.folder / "tokenizer", made.name, streams[stream])
                if places.setdefault(stream, place) != place:
                    places.setdefault(_name(made.name), place._replace(name=_name(made.name)))
    bound = {place.folder for place in places.values()}
    for made in (artifact for artifact in artifacts if artifact.produces == "tokenizer"):
        if made.folder / "tokenizer" not in bound:
            places.setdefault(_name(made.name), TokenizerPlace(_name(made.name), made.folder / "tokenizer", made.name, None))
    return list(places.values())


def _of_export(folder: Path) -> list[TokenizerPlace]:
    """By the names of the streams that they encode."""
    streams = read_export(folder).streams
    return [TokenizerPlace(name, folder / place.tokenizer, None, dump(place.stream)) for name, place in streams.items()]


def _features_of(encoder: Artifact, others: Sequence[Artifact]) -> Path | None:
    """A finished set of one vector a picture, made by this encoder."""
    for made in others:
        mine = made.kind == "embed_dataset" and made.input("encoder").fingerprint == encoder.fingerprint
        if mine and json.loads(made.content("features/dataset.json"))["tokens"] is None:
            return made.folder
    return None


def _stage(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "stage.json").read_bytes())["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name(text: str) -> str:
    """As a name in a request."""
    name = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:63]
    return name if re.fullmatch(NAME, name) else "tokenizer"
