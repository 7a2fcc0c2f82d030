"""A tokenizer that was made elsewhere: worldloom's own of any kind, or a public checkpoint, VQ-GANs in the key layout of
taming-transformers and EnCodecs in that of transformers."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from worldloom.stages.artifact import Artifact
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, StageSettings
from worldloom.stages.worker import Worker
from worldloom.tokenizers.resampling import Resampling

NEEDED: dict[str, tuple[str, ...]] = {
    "taming": ("height", "width"),
    "encodec": ("seconds",),
    "worldloom": (),
}  # what each layout wants to be told
ALLOWED: dict[str, tuple[str, ...]] = {"taming": ("precision", "resample"), "encodec": ("levels",), "worldloom": ()}


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


class ImportTokenizer(StageSettings):
    """One checkpoint; what network it holds is read from the file, or, of an EnCodec, from the config.json beside it."""

    run: Literal["import_tokenizer"]
    layout: Literal["taming", "encodec", "worldloom"] = Field(
        default="taming", description="taming: a VQ-GAN of pictures; encodec: a codec of sounds; worldloom: one of its own, of any kind"
    )
    # Where the file lies cannot change the output; what is in it is part of the fingerprint by its digest.
    checkpoint: Annotated[
        str,
        AfterValidator(_absolute),
        NOT_IN_OUTPUT,
        Field(
            description="the weights: of a VQ-GAN a .safetensors, .ckpt, .pt or .pth file, of an EnCodec a .safetensors file, "
            "of worldloom's own the folder"
        ),
    ]
    height: PositiveInt | None = Field(None, description="pixels of the pictures to encode; the network's cells must divide it")
    width: PositiveInt | None = Field(None, description="pixels of the pictures to encode; the network's cells must divide it")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of a VQ-GAN's encoder; bf16 is faster, and some codes differ from those of fp32"
    )
    resample: Resampling = Field(
        default="lanczos", description="how pictures are brought to their size: as those that the network learnt from, which no file says"
    )
    seconds: Annotated[float, Field(gt=0, le=600)] | None = Field(None, description="of the sounds to encode, at the codec's own rate")
    levels: Annotated[int, Field(ge=2, le=64)] | None = Field(None, description="of an EnCodec, the first codebooks to use; null: all")

    @model_validator(mode="after")
    def _belongs_to_the_layout(self) -> Self:
        fields = {name for each in (NEEDED, ALLOWED) for names in each.values() for name in names}
        missing = [name for name in NEEDED[self.layout] if getattr(self, name) is None]
        fitting = (*NEEDED[self.layout], *ALLOWED[self.layout])
        extra = sorted(name for name in fields - set(fitting) if getattr(self, name) != type(self).model_fields[name].default)
        if missing or extra:
            wrong = f"needs {' and '.join(missing)}" if missing else f"has no use for {' and '.join(extra)}"
            raise ValueError(f"layout {self.layout!r} {wrong}; it takes {', '.join(fitting) or 'neither'}")
        return self


def run(settings: ImportTokenizer, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Everything, in one worker; short enough to begin again if it is stopped."""
    if worker.rank or (out / "card.json").exists():
        return
    from worldloom.stages.card import Card, Table, Text, write_card

    tokenizer, rows = READERS[settings.layout](settings)
    tokenizer.save_pretrained(out / "tokenizer")
    if (weights := getattr(tokenizer, "autoencoder", None)) is not None:
        rows |= {
            "parameters of the encoder": sum(each.numel() for each in weights.encoder.parameters()),
            "parameters of the decoder": sum(each.numel() for each in weights.decoder.parameters()),
        }
    note = f"Imported from {Path(settings.checkpoint).name}; what it was trained on, and how well it does, is not in the file."
    table = Table(columns=("", "value"), rows=tuple(rows.items()))
    write_card(out, Card(title="Imported tokenizer", blocks=(Text(text=note), table)))
    worker.report(1, 1, "models", {})


def _taming(settings: ImportTokenizer) -> tuple[Any, dict[str, Any]]:
    from worldloom.tokenizers.taming import read_taming
    from worldloom.tokenizers.taming_settings import Taming

    assert settings.height is not None and settings.width is not None
    tokenizer = read_taming(Path(settings.checkpoint), settings.height, settings.width, settings.precision, settings.resample)
    about = tokenizer.settings
    assert isinstance(about, Taming)
    return tokenizer, {
        "codes": tokenizer.codebook_size,
        "pictures are resized by": tokenizer.resample,
        "numbers in a code's vector": about.code_width,
        "codes of one picture": " x ".join(map(str, tokenizer.shape)),
        "pixels along a code's cell": about.downsample,
        "channels at each resolution": ", ".join(str(about.width * each) for each in about.multipliers),
    }


def _encodec(settings: ImportTokenizer) -> tuple[Any, dict[str, Any]]:
    from worldloom.stages.code_figures import bits
    from worldloom.tokenizers.encodec import read_encodec

    assert settings.seconds is not None
    tokenizer = read_encodec(Path(settings.checkpoint), settings.seconds, settings.levels)
    return tokenizer, {
        "codes of a level": tokenizer.codebook_size,
        "codes of one sound, frames x levels": " x ".join(map(str, tokenizer.shape)),
        "samples of a frame": tokenizer.settings.downsample,
        "samples a second": tokenizer.sample_rate,
        "channels of sound": tokenizer.channels,
        "bits a second": round(bits(tokenizer) / tokenizer.samples * tokenizer.sample_rate),
    }


def _worldloom(settings: ImportTokenizer) -> tuple[Any, dict[str, Any]]:
    from worldloom.stages.open_tokenizer import open_tokenizer

    tokenizer = open_tokenizer(Path(settings.checkpoint))
    return tokenizer, {"kind": tokenizer.kind, "codes": tokenizer.codebook_size, "fingerprint": tokenizer.fingerprint}


READERS: dict[str, Callable[[ImportTokenizer], tuple[Any, dict[str, Any]]]] = {
    "taming": _taming,
    "encodec": _encodec,
    "worldloom": _worldloom,
}


def finish(settings: ImportTokenizer, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json
    from math import prod

    config = json.loads((out / "tokenizer" / "config.json").read_bytes())
    shape = config.get("shape")
    return {"codebook_size": config["codebook_size"]} | ({} if shape is None else {"codes_per_sample": prod(shape)})


def outside(settings: ImportTokenizer, digest: Callable[[Path], str]) -> dict[str, str]:
    """The digest of the checkpoint, and of what says how it is built."""
    checkpoint = Path(settings.checkpoint)
    if settings.layout == "worldloom":
        if not (checkpoint / "config.json").is_file():
            raise FileNotFoundError(f"checkpoint: {checkpoint} is no folder of a tokenizer; there is no config.json in it")
        # What a README says of it decides no code.
        return {path.name: digest(path) for path in sorted(checkpoint.iterdir()) if path.is_file() and path.suffix != ".md"}
    files = {"checkpoint": checkpoint} | ({"config": checkpoint.parent / "config.json"} if settings.layout == "encodec" else {})
    for file in files.values():
        if not file.is_file():
            raise FileNotFoundError(f"checkpoint: there is no file {file}; give the path of the weights of such a network")
    return {name: digest(file) for name, file in files.items()}


def estimate(settings: ImportTokenizer, inputs: Mapping[str, Estimate]) -> Estimate:
    """Nothing: how many codes a value has is in the file."""
    return Estimate()


STAGE = StageKind(
    name="import_tokenizer",
    settings=ImportTokenizer,
    run=run,
    finish=finish,
    produces="tokenizer",
    version=3,
    placement="shards",
    parallelism=lambda settings, inputs: 1,
    outside=outside,
    estimate=estimate,
)
