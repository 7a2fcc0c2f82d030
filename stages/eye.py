"""A trained encoder in use: pictures as they are stored go in, whatever their size, features come out."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worldloom.stages.artifact import Artifact
from worldloom.stages.augment import along_both, resize_matrix
from worldloom.stages.dataset import Dataset
from worldloom.stages.open_encoder import Captioner, open_captioner, open_encoder
from worldloom.stages.settings import ImageStream
from worldloom.world_model.encoders.build import Network, NetworkSettings
from worldloom.world_model.encoders.convnet import ConvNet
from worldloom.world_model.encoders.features import Features
from worldloom.world_model.encoders.settings import SwinSettings, VitSettings
from worldloom.world_model.encoders.swin import Swin

DEFAULT_SIDE = 64  # pixels: of pictures for convolutions, which take any size, where nothing says more
Keep = Literal["pooled", "tokens", "joint"]


class Eye(nn.Module):
    """Frozen, in evaluation mode; pictures of other sizes are brought to the side that the encoder was trained on."""

    def __init__(self, encoder: Network, side: int, name: str, captioner: Captioner | None = None) -> None:
        """`side` in pixels; `name` says in figures whose features these are; `captioner` compares pictures with texts, where one can."""
        super().__init__()
        self.encoder, self.side, self.name, self.captioner = encoder, side, name, captioner

    def forward(self, x: Tensor) -> Features:
        """float32 [B, 3, H, W] in [-1, 1] -> Features; gradients pass to the pictures."""
        features: Features = self.encoder(fit(x, self.side))
        return features

    def see(self, pictures: NDArray[np.uint8], keep: Keep) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, D], or [B, T, D] of tokens; joint is what texts are compared with."""
        x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        if keep == "joint":
            return self.reads_texts.pictures(fit(x, self.side))
        features: Features = self(x)
        return features.tokens if keep == "tokens" else features.pooled

    @property
    def reads_texts(self) -> Captioner:
        """ValueError where the encoder never saw a text."""
        if self.captioner is None:
            raise ValueError(
                f"{self.name} never saw a text, so nothing compares its pictures with texts; take an encoder of objective coca"
            )
        return self.captioner

    def form(self, keep: Keep) -> tuple[int, ...]:
        """Of one picture's features: (D,), or (T, D)."""
        with torch.no_grad():
            return tuple(self.see(np.zeros((1, self.side, self.side, 3), np.uint8), keep).shape[1:])

    def stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, D, h, w] each, of float pictures: behind each third of the blocks of a ViT or ConvNet, or each stage of a Swin."""
        x = fit(x, self.side)
        if isinstance(self.encoder, Swin):
            _, *grids = self.encoder.grids(x)
            return tuple(grid.permute(0, 3, 1, 2) for grid in grids)
        if isinstance(self.encoder, ConvNet):
            x, states = self.encoder.stem(x), []
            for block in self.encoder.blocks:
                states.append(x := block(x))
            return tuple(states[at] for at in _thirds(len(states)))
        tokens = list(self.encoder.hidden_states(x))[1:-1]  # without the patches themselves; the last before its norm
        grid = self.encoder.patches.grid(*x.shape[-2:])
        return tuple(tokens[at][:, self.encoder.prefix :].transpose(1, 2).reshape(len(x), -1, *grid) for at in _thirds(len(tokens)))


def _thirds(count: int) -> list[int]:
    return sorted({-(-count * part // 3) - 1 for part in (1, 2, 3)})


def fit(x: Tensor, side: int) -> Tensor:
    """[B, C, H, W] -> [B, C, S, S] by triangles (bilinear with antialiasing); those of the right size stay as they are."""
    H, W = x.shape[-2:]
    if H == W == side:
        return x
    rows, columns = (
        resize_matrix(length, side, torch.zeros(1), torch.full((1,), float(length))).to(x.device, x.dtype) for length in (H, W)
    )
    return along_both(x, rows, columns)


def shrink(pictures: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 [B, H, W, 3] -> [B, S, S, 3]."""
    small = fit(torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float(), side)
    found: NDArray[np.uint8] = small.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return found


def open_eye(artifact: Artifact) -> Eye:
    """From what pretrain_encoder or import_encoder left; ArtifactError where it is not whole, ValueError where it is no encoder."""
    if artifact.produces != "encoder":
        raise ValueError(f"{artifact.name} ({artifact.kind}) leaves a {artifact.produces}, not an encoder")
    for name in ("config.json", "model.safetensors"):
        artifact.path(f"encoder/{name}")
    if "data" not in artifact.inputs:  # it was imported, and learnt from nobody knows what
        return _eye(artifact.folder, side_of(open_encoder(artifact.folder)[1]), artifact.name)
    stream = Dataset(artifact.input("data")).streams[artifact.settings["stream"]]
    assert isinstance(stream, ImageStream)
    return _eye(artifact.folder, stream.height, artifact.name)


def open_eye_folder(folder: Path) -> Eye:
    """From the folder of an artifact, or a copy of it; ValueError or FileNotFoundError where it holds no encoder."""
    _, about = open_encoder(folder)
    return _eye(folder, side_of(about), folder.name)


def _eye(folder: Path, side: int, name: str) -> Eye:
    if (folder / "coca").is_dir():
        captioner = open_captioner(folder)
        encoder = captioner.model.encoder
        assert isinstance(encoder, Network)
        return Eye(encoder, side, name, captioner)
    return Eye(open_encoder(folder)[0], side, name)


def side_of(about: NetworkSettings) -> int:
    """Pixels of the pictures that the settings speak of: a ViT's grid of patches, one window of a Swin's last stage."""
    if isinstance(about, VitSettings):
        return about.grid[0] * about.patch
    if isinstance(about, SwinSettings):
        return about.window * about.patch << (len(about.depths) - 1)
    return DEFAULT_SIDE
