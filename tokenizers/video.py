"""The tokenizer of clips: uint8 frames to a grid of codes over time and space and back, by VQ-GAN, VQ-VAE or dVAE."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.dvae import split_output
from worldloom.tokenizers.image import quantizer_of
from worldloom.tokenizers.image_settings import Dvae, ImageTokenizerSettings, VqGan, VqVae
from worldloom.tokenizers.learned import LearnedTokenizer, first_weights
from worldloom.tokenizers.networks.causal_video import CausalVideoDecoder, CausalVideoEncoder, EachFrame
from worldloom.tokenizers.networks.convnet import ConvDecoder, ConvEncoder
from worldloom.tokenizers.networks.streaming import Past
from worldloom.tokenizers.pixels import from_mapped, from_signed, to_mapped, to_signed


class VideoTokenizer(LearnedTokenizer):
    """Clips, uint8 [frames, height, width, 3], to codes [steps, height/downsample, width/downsample] (and levels, if any).

    Without a time_stride every frame has a step of its own, coded like a picture. With one, the first step is the first frame's, as if it
    were a picture, and each later one is that of time_stride frames; where they do not come out even, the last frame is repeated, and
    what comes back is cut to `frames` again.
    """

    kind = "video"
    values = "clips"
    batch = 4
    value_type = torch.uint8
    settings: VqGan | VqVae | Dvae

    def __init__(
        self, autoencoder: DiscreteAutoencoder, settings: VqGan | VqVae | Dvae, height: int, width: int, frames: int, frame_rate: float
    ) -> None:
        super().__init__(autoencoder, settings)
        if height % settings.downsample or width % settings.downsample:
            raise ValueError(
                f"frames of {height} x {width} pixels cannot be divided into cells of {settings.downsample}; "
                f"choose a downsample that divides both, or another size for the stream"
            )
        self.height, self.width, self.frames, self.frame_rate = height, width, frames, frame_rate

    @property
    def stride(self) -> int:
        """Frames of a step, but for the first."""
        return self.settings.time_stride or 1

    @property
    def steps(self) -> int:
        return 1 + -(-(self.frames - 1) // self.stride)

    @property
    def value_shape(self) -> tuple[int, ...]:
        return self.frames, self.height, self.width, 3

    @property
    def shape(self) -> tuple[int, ...]:
        grid = self.steps, self.height // self.settings.downsample, self.width // self.settings.downsample
        return grid if self.levels == 1 else (*grid, self.levels)

    @property
    def form(self) -> dict[str, Any]:
        return {"height": self.height, "width": self.width, "frames": self.frames, "frame_rate": self.frame_rate}

    @classmethod
    def build(cls, settings: VqGan | VqVae | Dvae, form: Mapping[str, Any], seed: int) -> Self:
        return cls(_autoencoder(settings, seed), settings, form["height"], form["width"], form["frames"], form["frame_rate"])

    @classmethod
    def read_settings(cls, value: Any) -> VqGan | VqVae | Dvae:
        settings: VqGan | VqVae | Dvae = TypeAdapter(ImageTokenizerSettings).validate_json(json.dumps(value))
        return settings

    def to_network(self, values: Tensor) -> Tensor:
        """uint8 [B, T, H, W, 3] -> float32 [B, 3, T', H, W], T' = 1 + n * time_stride."""
        missing = 1 + (self.steps - 1) * self.stride - values.shape[1]
        whole = torch.cat([values, values[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1) if missing > 0 else values
        return self._signed(whole)

    def to_values(self, output: Tensor) -> Tensor:
        """[B, 3 or 6, T', H, W] -> uint8 [B, T, H, W, 3]."""
        pictures = output[:, :, : self.frames].transpose(1, 2).flatten(0, 1)
        mapped = from_mapped(split_output(pictures)[0].sigmoid()) if isinstance(self.settings, Dvae) else from_signed(pictures)
        return mapped.view(len(output), -1, *mapped.shape[1:])

    @torch.inference_mode()
    def encode_stream(self, parts: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.int64]]:
        """Codes [B, t, h, w] of each part of B clips as it comes, bit for bit those of the whole, in memory of one part.

        The first part has 1 + n * time_stride frames, [B, T, H, W, 3], later ones n * time_stride; ValueError for another number. A picture
        is a clip of one frame.
        """
        self.autoencoder.eval()
        past, encoder = Past(), self.autoencoder.encoder
        for part in parts:
            clips = self._signed(torch.from_numpy(np.require(part, requirements=["W"])).to(self.device))
            features = encoder(clips, past) if isinstance(encoder, CausalVideoEncoder) else encoder(clips)
            yield self.autoencoder.quantizer.encode(features).cpu().numpy()

    def _signed(self, clips: Tensor) -> Tensor:
        pictures = clips.flatten(0, 1)
        mapped = to_mapped(pictures) if isinstance(self.settings, Dvae) else to_signed(pictures)
        return mapped.view(clips.shape[0], clips.shape[1], *mapped.shape[1:]).transpose(1, 2)


def fold_frames(values: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, H, W]: what judges pictures judges frames; pictures stay as they are."""
    return values.transpose(1, 2).flatten(0, 1) if values.ndim == 5 else values


def _autoencoder(settings: VqGan | VqVae | Dvae, seed: int) -> DiscreteAutoencoder:
    with first_weights(seed) as generator:
        quantizer = quantizer_of(settings, seed, generator)
        network = {"width": settings.width, "blocks": settings.blocks, "patch": settings.patch, "downsample": settings.downsample}
        into = {"channels": 3, "code_width": quantizer.in_width}
        back = {"channels": 6 if isinstance(settings, Dvae) else 3, "code_width": quantizer.out_width}
        if settings.time_stride is None:
            network["mixing"] = settings.mixing
            encoder, decoder = ConvEncoder(**network, **into), ConvDecoder(**network, **back)
            return DiscreteAutoencoder(EachFrame(encoder), quantizer, EachFrame(decoder))
        network["time_stride"] = settings.time_stride
        return DiscreteAutoencoder(CausalVideoEncoder(**network, **into), quantizer, CausalVideoDecoder(**network, **back))
