"""What is joined to an encoder, each as a folder beside `encoder/`, in the same form, and without the encoder's own weights.

encoder/      config.json, model.safetensors   the encoder alone, as every pre-training leaves it (load.py)
classifier/   config.json, model.safetensors   heads that name classes: supervised, distill, deit
coca/         config.json, model.safetensors   poolers, text decoder and scale of the cosines: coca
redraw/       config.json, model.safetensors   the map from tokens to pixels, and what was hidden: simmim
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldloom.world_model.encoders.build import build_coca
from worldloom.world_model.encoders.classifier import Classifier
from worldloom.world_model.encoders.coca import CoCa
from worldloom.world_model.encoders.deit import DeiT, Inference, combine
from worldloom.world_model.encoders.load import FORMAT, fill, from_pretrained
from worldloom.world_model.encoders.settings import TextSideSettings
from worldloom.world_model.encoders.simmim import SimMIM
from worldloom.world_model.encoders.swin import Swin
from worldloom.world_model.encoders.vit import ViT

OWN = "encoder."  # what the names of the encoder's own weights begin with
Joined = Literal["classifier", "coca", "redraw"]
M = TypeVar("M", bound=nn.Module)


class Namer(NamedTuple):
    """An encoder that names classes: frozen, in evaluation mode."""

    model: Classifier | DeiT
    classes: tuple[str, ...]
    inference: Inference  # how the two heads of a DeiT become one answer; nothing to a classifier

    def logits(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K], whose softmax is the answer."""
        said = self.model(pixels)
        return combine(said, self.inference) if isinstance(self.model, DeiT) else said


class Redrawer(NamedTuple):
    """An encoder that draws hidden patches again: frozen, in evaluation mode."""

    model: SimMIM
    unit: int  # patches along the side of what is hidden or not
    ratio: float  # share of the units that are hidden


def save_namer(artifact: Path, namer: Namer) -> None:
    """Writes `classifier/`; the encoder is saved on its own."""
    form = "deit" if isinstance(namer.model, DeiT) else "classifier"
    _save(artifact, "classifier", namer.model, {"type": form, "classes": namer.classes, "inference": namer.inference})


def load_namer(artifact: Path) -> Namer:
    """Encoder and heads of an artifact; ValueError where it has no heads."""
    config = _config(artifact, "classifier", "learnt to name no classes; give one of objective supervised, distill or deit")
    encoder, _ = from_pretrained(artifact / "encoder")
    classes = tuple(config["classes"])
    if config["type"] == "deit":
        assert isinstance(encoder, ViT)
        return Namer(_filled(artifact, "classifier", DeiT(encoder, len(classes))), classes, config["inference"])
    return Namer(_filled(artifact, "classifier", Classifier(encoder, len(classes))), classes, config["inference"])


def save_coca(artifact: Path, model: CoCa, about: TextSideSettings) -> None:
    """Writes `coca/`; the encoder is saved on its own."""
    _save(artifact, "coca", model, {"text": about.model_dump(mode="json"), "vocabulary": len(model.text.embedding)})


def load_coca(artifact: Path) -> tuple[CoCa, TextSideSettings]:
    """Encoder, poolers and text decoder of an artifact, frozen and in evaluation mode; ValueError where it has no text side."""
    config = _config(artifact, "coca", "never saw a text; give one of objective coca")
    encoder, _ = from_pretrained(artifact / "encoder")
    try:
        about = TextSideSettings.model_validate_json(json.dumps(config["text"]))
    except ValidationError as error:
        raise ValueError(f"{artifact / 'coca'}: config.json does not describe a text side: {error}") from None
    return _filled(artifact, "coca", build_coca(encoder, about, config["vocabulary"], torch.Generator())), about


def save_redrawer(artifact: Path, redrawer: Redrawer) -> None:
    """Writes `redraw/`; the encoder is saved on its own."""
    _save(artifact, "redraw", redrawer.model, {"unit": redrawer.unit, "ratio": redrawer.ratio})


def load_redrawer(artifact: Path) -> Redrawer:
    """Encoder and the map to pixels of an artifact; ValueError where it has none."""
    config = _config(artifact, "redraw", "learnt to draw nothing; give one of objective simmim")
    encoder, _ = from_pretrained(artifact / "encoder")
    assert isinstance(encoder, ViT | Swin)
    return Redrawer(_filled(artifact, "redraw", SimMIM(encoder)), config["unit"], config["ratio"])


def _save(artifact: Path, kind: Joined, module: nn.Module, about: dict[str, Any]) -> None:
    folder = artifact / kind
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().float().cpu().contiguous() for name, value in sorted(module.state_dict().items()) if not name.startswith(OWN)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({"format": FORMAT, "kind": kind, **about}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _config(artifact: Path, kind: Joined, lacks: str) -> dict[str, Any]:
    path = artifact / kind / "config.json"
    if not path.is_file():
        raise ValueError(f"{artifact}: this encoder {lacks}")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.get("format") != FORMAT or config.get("kind") != kind:
        raise ValueError(f"{path} has format {config.get('format')!r} and kind {config.get('kind')!r}, expected {FORMAT} and {kind!r}")
    return config


def _filled(artifact: Path, kind: Joined, module: M) -> M:
    """`module` with the weights of `kind`, its encoder's own being there already."""
    own = {name: value for name, value in module.state_dict().items() if name.startswith(OWN)}
    fill(module, own | load_file(artifact / kind / "model.safetensors"), str(artifact / kind))
    return module.eval().requires_grad_(False)
