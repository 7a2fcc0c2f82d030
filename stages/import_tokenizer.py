"""A tokenizer of pictures from a public VQ-GAN checkpoint, in the key layout of taming-transformers."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt

from worldloom.stages.artifact import Artifact
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, StageSettings
from worldloom.stages.worker import Worker


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


class ImportTokenizer(StageSettings):
    """One checkpoint; what network it holds is read from the file."""

    run: Literal["import_tokenizer"]
    # Where the file lies cannot change the output; what is in it is part of the fingerprint by its digest.
    checkpoint: Annotated[
        str, AfterValidator(_absolute), NOT_IN_OUTPUT, Field(description="a VQ-GAN's weights, a .safetensors, .ckpt, .pt or .pth file")
    ]
    height: PositiveInt = Field(description="pixels of the pictures to encode; the network's cells must divide it")
    width: PositiveInt = Field(description="pixels of the pictures to encode; the network's cells must divide it")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the encoder; bf16 is faster, and some codes differ from those of fp32"
    )


def run(settings: ImportTokenizer, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Everything, in one worker; short enough to begin again if it is stopped."""
    if worker.rank or (out / "card.json").exists():
        return
    from worldloom.stages.card import Card, Table, Text, write_card
    from worldloom.tokenizers.taming import read_taming
    from worldloom.tokenizers.taming_settings import Taming

    tokenizer = read_taming(Path(settings.checkpoint), settings.height, settings.width, settings.precision)
    tokenizer.save_pretrained(out / "tokenizer")
    about, weights = tokenizer.settings, tokenizer.autoencoder
    assert isinstance(about, Taming)
    rows = (
        ("codes", tokenizer.codebook_size),
        ("numbers in a code's vector", about.code_width),
        ("codes of one picture", " x ".join(map(str, tokenizer.shape))),
        ("pixels along a code's cell", about.downsample),
        ("parameters of the encoder", sum(each.numel() for each in weights.encoder.parameters())),
        ("parameters of the decoder", sum(each.numel() for each in weights.decoder.parameters())),
        ("channels at each resolution", ", ".join(str(about.width * each) for each in about.multipliers)),
    )
    note = f"Imported from {Path(settings.checkpoint).name}; what it was trained on, and how well it does, is not in the file."
    write_card(out, Card(title="Imported tokenizer", blocks=(Text(text=note), Table(columns=("", "value"), rows=rows))))
    worker.report(1, 1, "models", {})


def finish(settings: ImportTokenizer, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json
    from math import prod

    config = json.loads((out / "tokenizer" / "config.json").read_bytes())
    return {"codebook_size": config["codebook_size"], "codes_per_sample": prod(config["shape"])}


def outside(settings: ImportTokenizer, digest: Callable[[Path], str]) -> dict[str, str]:
    """The digest of the checkpoint."""
    if not Path(settings.checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {settings.checkpoint}; give the path of a VQ-GAN's weights")
    return {"checkpoint": digest(Path(settings.checkpoint))}


def estimate(settings: ImportTokenizer, inputs: Mapping[str, Estimate]) -> Estimate:
    """Nothing: how many codes a picture has is in the file."""
    return Estimate()


STAGE = StageKind(
    name="import_tokenizer",
    settings=ImportTokenizer,
    run=run,
    finish=finish,
    produces="tokenizer",
    version=2,
    placement="shards",
    parallelism=lambda settings, inputs: 1,
    outside=outside,
    estimate=estimate,
)
