"""An encoder that was made elsewhere: a folder in the layout of transformers' ViT, DeiT, Dinov2, Dinov2 with registers or Swin.

Pictures go into it as into every encoder here, as numbers in [-1, 1]: a mean and a deviation of one half for each colour, whatever else a
preprocessor_config.json beside it may say.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from worldloom.stages.artifact import Artifact
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, StageSettings
from worldloom.stages.worker import Worker

FILES = ("config.json", "model.safetensors")


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


class ImportEncoder(StageSettings):
    """One folder; what network it holds is read from its config.json."""

    run: Literal["import_encoder"]
    # Where the folder lies cannot change the output; what is in it is part of the fingerprint by its digests.
    folder: Annotated[
        str,
        AfterValidator(_absolute),
        NOT_IN_OUTPUT,
        Field(
            description="with config.json and model.safetensors, as transformers saves a ViT, DeiT, Dinov2, Dinov2WithRegisters or Swin; "
            "pictures go in as numbers in [-1, 1]"
        ),
    ]


def run(settings: ImportEncoder, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Everything, in one worker; short enough to begin again if it is stopped."""
    if worker.rank or (out / "card.json").exists():
        return
    from worldloom.stages.card import Card, Table, Text, write_card, write_figures
    from worldloom.stages.eye import side_of
    from worldloom.world_model.encoders.load import save_pretrained
    from worldloom.world_model.encoders.transformers_layout import load_transformers

    folder = Path(settings.folder)
    encoder, about = load_transformers(folder)
    if about.channels != 3:
        raise ValueError(f"folder: the encoder in {folder} sees {about.channels} colours, pictures have 3; give another")
    save_pretrained(out / "encoder", encoder, about)
    figures = {"encoder.parameters": sum(each.numel() for each in encoder.parameters()), "encoder.width": encoder.width}
    note = "From transformers; what it was trained on, and how well it does, is not in its folder."
    rows = {
        "form": about.type,
        "parameters": figures["encoder.parameters"],
        "numbers of a picture": encoder.width,
        "pixels along a patch": about.patch,
        "pixels along the side of a picture": side_of(about),
    }
    write_figures(out, figures)
    table = Table(columns=("", "value"), rows=tuple(rows.items()))
    write_card(out, Card(title="Imported encoder", blocks=(Text(text=note), table)))
    worker.report(1, 1, "models", {})


def finish(settings: ImportEncoder, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json

    figures = json.loads((out / "figures.json").read_bytes())
    return {name: int(figures[f"encoder.{name}"]) for name in ("parameters", "width")}


def outside(settings: ImportEncoder, digest: Callable[[Path], str]) -> dict[str, str]:
    """The digests of the weights and of what says how they are built."""
    for name in FILES:
        if not (Path(settings.folder) / name).is_file():
            raise FileNotFoundError(f"folder: there is no {name} in {settings.folder}; give a folder that transformers saved an encoder in")
    return {name: digest(Path(settings.folder) / name) for name in FILES}


def estimate(settings: ImportEncoder, inputs: Mapping[str, Estimate]) -> Estimate:
    """Nothing: how large an encoder is, is in the folder."""
    return Estimate()


STAGE = StageKind(
    name="import_encoder",
    settings=ImportEncoder,
    run=run,
    finish=finish,
    produces="encoder",
    version=1,
    placement="shards",
    parallelism=lambda settings, inputs: 1,
    outside=outside,
    estimate=estimate,
)
