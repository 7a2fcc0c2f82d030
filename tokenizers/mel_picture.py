"""The tokenizer of sounds by their log-mel spectrograms: float32 waveforms to a grid of codes over time and pitch, and back."""

import json
from collections.abc import Mapping
from math import log
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from worldloom.tokenizers.audio_settings import Mel
from worldloom.tokenizers.autoencoder import DiscreteAutoencoder
from worldloom.tokenizers.griffin_lim import amplitudes_of, griffin_lim
from worldloom.tokenizers.learned import LearnedTokenizer, first_weights
from worldloom.tokenizers.mel import FLOOR, log_mel
from worldloom.tokenizers.networks.convnet import ConvDecoder, ConvEncoder
from worldloom.tokenizers.networks.vocoder import Vocoder
from worldloom.tokenizers.quantizers.build import build_quantizer


class MelTokenizer(LearnedTokenizer):
    """Mono sounds, float32 [1, samples] in [-1, 1], to codes [frames / downsample, bins / downsample] (and levels, if any).

    The spectrogram is made a little longer, in silence, until codes are whole; what comes back is cut to `samples` again. Phases are not
    coded: Griffin-Lim finds some, always the same, and the vocoder, where there is one, makes its sound better.
    """

    kind = "audio"
    values = "sounds"
    value_type = torch.float32
    settings: Mel

    def __init__(
        self, autoencoder: DiscreteAutoencoder, settings: Mel, samples: int, sample_rate: int, vocoder: Vocoder | None = None
    ) -> None:
        super().__init__(autoencoder, settings)
        self.vocoder = vocoder
        self.samples, self.sample_rate, self.channels = samples, sample_rate, 1

    @property
    def weights(self) -> nn.Module:
        if self.vocoder is None:
            return self.autoencoder
        return nn.ModuleDict({"autoencoder": self.autoencoder, "vocoder": self.vocoder})

    @property
    def frames(self) -> int:
        """Of the spectrogram, a multiple of downsample."""
        each = self.settings.downsample
        return -(-(self.samples // self.settings.hop + 1) // each) * each

    @property
    def value_shape(self) -> tuple[int, ...]:
        return 1, self.samples

    @property
    def shape(self) -> tuple[int, ...]:
        grid = self.frames // self.settings.downsample, self.settings.bins // self.settings.downsample
        return grid if self.levels == 1 else (*grid, self.levels)

    @property
    def form(self) -> dict[str, Any]:
        return {"channels": 1, "samples": self.samples, "sample_rate": self.sample_rate}

    @classmethod
    def build(cls, settings: Mel, form: Mapping[str, Any], seed: int) -> Self:
        if form["channels"] != 1:
            raise ValueError(
                f"a mel tokenizer reads mono sounds, this stream has {form['channels']} channels; set channels to 1, or use codec"
            )
        with first_weights(seed) as generator:
            quantizer = build_quantizer(settings.quantizer, settings.codebook_size, seed, generator)
            network = {"width": settings.width, "blocks": settings.blocks, "patch": settings.patch, "downsample": settings.downsample}
            encoder = ConvEncoder(channels=1, code_width=quantizer.in_width, apart=settings.receptive_field == "cell", **network)
            decoder = ConvDecoder(channels=1, code_width=quantizer.out_width, **network)
            vocoder = None  # drawn last, so that the codes are the same with and without it
            if settings.decoder == "learned":
                vocoder = Vocoder(settings.bins, settings.window, settings.hop, settings.vocoder_width, settings.vocoder_blocks)
        return cls(DiscreteAutoencoder(encoder, quantizer, decoder), settings, form["samples"], form["sample_rate"], vocoder)

    @classmethod
    def read_settings(cls, value: Any) -> Mel:
        return TypeAdapter(Mel).validate_json(json.dumps(value))

    def decode_plainly(self, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        """`decode` by Griffin-Lim alone, whatever the decoder."""
        return MelTokenizer(self.autoencoder, self.settings, self.samples, self.sample_rate).decode(codes)

    def to_network(self, values: Tensor) -> Tensor:
        """[B, 1, samples] -> pictures [B, 1, frames, bins], silence -1, the loudest tone 1."""
        about = self.settings
        long = F.pad(values, (0, (self.frames - 1) * about.hop - self.samples + about.hop // 2))
        mels = log_mel(long[:, 0], self.sample_rate, about.window, about.bins, about.hop)[..., : self.frames]
        return (1 - 2 * mels / log(FLOOR)).transpose(1, 2)[:, None]

    def to_values(self, output: Tensor) -> Tensor:
        """[B, 1, frames, bins] -> [B, 1, samples] in [-1, 1]; the vocoder gets a gradient of it, where gradients are on."""
        pictures = output[:, 0].float().clamp(-1, 1.1).transpose(1, 2)
        sounds = self._found(pictures)
        if self.vocoder is not None:
            sounds = self.vocoder(pictures, sounds)
        fitted = F.pad(sounds, (0, max(0, self.samples - sounds.shape[-1])))[:, None, : self.samples]
        return fitted.clamp(-1, 1)

    @torch.no_grad()
    def _found(self, pictures: Tensor) -> Tensor:
        """[B, bins, frames] -> [B, (frames - 1) * hop], by Griffin-Lim."""
        about = self.settings
        mels = (1 - pictures) * (log(FLOOR) / 2)
        quiet = mels <= log(FLOOR) + 0.25  # what is as good as silent is silent
        amplitudes = amplitudes_of(mels.masked_fill(quiet, -20.0), self.sample_rate, about.window)
        return griffin_lim(amplitudes, about.window, about.hop, about.rounds)
