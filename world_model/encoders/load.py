"""An encoder as a folder: config.json and model.safetensors, which anybody can read without our code.

What is joined to one (poolers and text decoder of a CoCa, heads that name classes) stands in folders of the same form beside it: joined.py.
"""

import json
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from worldloom.world_model.encoders.build import Network, NetworkSettings, build_encoder
from worldloom.world_model.encoders.settings import EncoderSettings

FORMAT = 1
_SETTINGS: TypeAdapter[NetworkSettings] = TypeAdapter(EncoderSettings)


def save_pretrained(folder: Path, encoder: Network, about: NetworkSettings) -> None:
    """Writes the encoder in fp32 into `folder`, which is made if need be; the same weights give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in sorted(encoder.state_dict().items())}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"format": FORMAT, "kind": "encoder", "encoder": about.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def from_pretrained(folder: Path) -> tuple[Network, NetworkSettings]:
    """The encoder, frozen and in evaluation mode, and what it is; ValueError if the folder holds something else."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("format") != FORMAT or config.get("kind") != "encoder":
        raise ValueError(
            f"{folder}: config.json has format {config.get('format')!r} and kind {config.get('kind')!r}, expected {FORMAT} and 'encoder'; "
            "give the folder encoder/ of a pre-training"
        )
    try:
        about = _SETTINGS.validate_json(json.dumps(config["encoder"]))
    except ValidationError as error:
        raise ValueError(f"{folder}: config.json does not describe an encoder: {error}") from None
    encoder = build_encoder(about, torch.Generator())
    fill(encoder, load_file(folder / "model.safetensors"), str(folder))
    return encoder.eval().requires_grad_(False), about


def fill(encoder: nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    """Puts weights into a module; ValueError that names the first that do not fit."""
    expected = encoder.state_dict()
    wrong = sorted(set(weights) ^ set(expected)) + sorted(
        name for name in set(weights) & set(expected) if weights[name].shape != expected[name].shape
    )
    if wrong:
        raise ValueError(f"{where}: the weights do not fit config.json at {', '.join(wrong[:5])}; the files are of different encoders")
    encoder.load_state_dict(weights)
