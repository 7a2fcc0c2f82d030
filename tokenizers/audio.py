"""The tokenizer of sounds: float32 waveforms to frames of codes and back."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, TypeAdapter
from torch import Tensor

from worldloom.tokenizers.audio_settings import Codec
from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.encodec_settings import Encodec
from worldloom.tokenizers.learned import LearnedTokenizer, first_weights
from worldloom.tokenizers.networks.causal_audio import CausalAudioDecoder, CausalAudioEncoder
from worldloom.tokenizers.networks.encodec import EncodecDecoder, EncodecEncoder
from worldloom.tokenizers.quantizers.build import build_quantizer
from worldloom.tokenizers.quantizers.settings import Residual


class AudioTokenizer(LearnedTokenizer):
    """Sounds, float32 [channels, samples] in [-1, 1], to codes [frames], or [frames, levels] where there are several.

    The last frame is filled up, and what comes back is cut to `samples` again. A code sees its own frame and those before.
    """

    kind = "audio"
    values = "sounds"
    value_type = torch.float32
    settings: Codec | Encodec

    def __init__(self, autoencoder: DiscreteAutoencoder, settings: Codec | Encodec, channels: int, samples: int, sample_rate: int) -> None:
        super().__init__(autoencoder, settings)
        self.channels, self.samples, self.sample_rate = channels, samples, sample_rate

    @property
    def frames(self) -> int:
        return -(-self.samples // self.settings.downsample)

    @property
    def value_shape(self) -> tuple[int, ...]:
        return self.channels, self.samples

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames,) if self.levels == 1 else (self.frames, self.levels)

    @property
    def form(self) -> dict[str, Any]:
        return {"channels": self.channels, "samples": self.samples, "sample_rate": self.sample_rate}

    @classmethod
    def build(cls, settings: Codec | Encodec, form: Mapping[str, Any], seed: int) -> Self:
        with first_weights(seed) as generator:
            if isinstance(settings, Encodec):
                codes = Residual(
                    levels=settings.levels, code_width=settings.code_width, codebook="gradient", place_after=-1, restart_every=0
                )
                quantizer = build_quantizer(codes, settings.codebook_size, seed, generator)
                parts = EncodecEncoder(settings, form["channels"]), quantizer, EncodecDecoder(settings, form["channels"])
                return cls(DiscreteAutoencoder(*parts), settings, form["channels"], form["samples"], form["sample_rate"])
            quantizer = build_quantizer(settings.quantizer, settings.codebook_size, seed, generator)
            network = {"width": settings.width, "blocks": settings.blocks, "patch": settings.patch, "downsample": settings.downsample}
            encoder = CausalAudioEncoder(channels=form["channels"], code_width=quantizer.in_width, **network)
            decoder = CausalAudioDecoder(channels=form["channels"], code_width=quantizer.out_width, **network)
        return cls(DiscreteAutoencoder(encoder, quantizer, decoder), settings, form["channels"], form["samples"], form["sample_rate"])

    @classmethod
    def read_settings(cls, value: Any) -> Codec | Encodec:
        settings: Codec | Encodec = TypeAdapter(Annotated[Codec | Encodec, Field(discriminator="type")]).validate_json(json.dumps(value))
        return settings

    @property
    def loudest(self) -> float:
        """The amplitude that the network hears as 1."""
        return self.settings.loudest

    def to_network(self, values: Tensor) -> Tensor:
        """[B, C, samples] -> [B, C, frames * downsample], as loud as networks like it: very quiet ones would hardly move its codes."""
        if isinstance(self.settings, Encodec):  # fills its last frame itself, layer by layer
            return values
        return F.pad(values, (0, self.frames * self.settings.downsample - self.samples)) / self.loudest

    def to_values(self, output: Tensor) -> Tensor:
        """[B, C, frames * downsample] -> [B, C, samples] in [-1, 1]."""
        return (output[..., : self.samples].float() * self.loudest).clamp(-1, 1)
