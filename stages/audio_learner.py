"""What trains the tokenizers of sounds: how waveforms and log-mel spectrograms differ, and the quantizer's own loss."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.stages.learner import Learner, Player, Precision, Turn, resolve_precision
from worldloom.stages.settings import AudioStream
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import ValueBatches
from worldloom.tokenizers.audio import AudioTokenizer
from worldloom.tokenizers.audio_measures import expand, multi_scale_mel_loss
from worldloom.tokenizers.audio_settings import Codec, Mel
from worldloom.tokenizers.autoencoder import Reconstruction
from worldloom.tokenizers.mel_picture import MelTokenizer
from worldloom.tokenizers.quantizers.codebooks import health


class CodecLearner:
    """One player: what a reconstruction costs, beside the quantizer's own loss, is that of its waveform."""

    def __init__(
        self, tokenizer: AudioTokenizer, learning_rate: float, betas: tuple[float, float], weight_decay: float, precision: Precision
    ) -> None:
        self.tokenizer = tokenizer
        self.precision = precision
        self.players = (Player("generator", tokenizer.autoencoder, learning_rate, betas, weight_decay),)

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        x, made = _reconstruction(self.tokenizer, batch, self.precision)
        costs = codec_cost(self.tokenizer.settings, self.tokenizer.sample_rate, x, made.output.float())
        yield Turn("generator", {**costs, "codebook": made.quantized.loss}, health(self.tokenizer.autoencoder), {"sounds": len(x)})

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


class MelLearner:
    """Two players where the decoder is learned: the vocoder hears what the codes leave, and moves neither codes nor autoencoder."""

    def __init__(
        self, tokenizer: MelTokenizer, learning_rate: float, betas: tuple[float, float], weight_decay: float, precision: Precision
    ) -> None:
        self.tokenizer = tokenizer
        self.precision = precision
        players = [Player("generator", tokenizer.autoencoder, learning_rate, betas, weight_decay)]
        if tokenizer.vocoder is not None:
            players.append(Player("vocoder", tokenizer.vocoder, learning_rate, betas, weight_decay))
        self.players = tuple(players)

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        x, made = _reconstruction(self.tokenizer, batch, self.precision)
        losses = {**mel_cost(x, made.output.float()), "codebook": made.quantized.loss}
        yield Turn("generator", losses, health(self.tokenizer.autoencoder), {"sounds": len(x)})
        if self.tokenizer.vocoder is not None:
            sounds = torch.as_tensor(np.asarray(batch)).to(x.device)
            with _autocast(x, self.precision):
                rebuilt = self.tokenizer.to_values(made.output.detach())
            yield Turn("vocoder", {"vocoder": multi_scale_mel_loss(sounds, rebuilt, self.tokenizer.sample_rate)})

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


def codec_cost(settings: Codec, sample_rate: int, x: Tensor, xhat: Tensor) -> dict[str, Tensor]:
    """L1 of the companded waveform + multi-scale log-mel of the sound itself (arXiv:2210.13438, without discriminators)."""
    return {
        "waveform": settings.waveform_weight * (x - xhat).abs().mean(),
        "mel": settings.mel_weight * multi_scale_mel_loss(expand(x), expand(xhat.clamp(-1, 1)), sample_rate),
    }


def mel_cost(x: Tensor, xhat: Tensor) -> dict[str, Tensor]:
    """L1 + root mean square of the spectrogram's picture."""
    difference = x - xhat
    return {"mel": difference.abs().mean() + difference.square().mean().add(1e-8).sqrt()}


def audio_tokenizer(settings: TrainTokenizer, stream: AudioStream) -> AudioTokenizer | MelTokenizer:
    """The untrained tokenizer that the settings ask for; ValueError where it cannot read such sounds."""
    form = {"channels": stream.channels, "samples": stream.samples, "sample_rate": stream.sample_rate}
    about = settings.tokenizer.resolved(settings.steps)
    if isinstance(about, Mel):
        return MelTokenizer.build(about, form, settings.seed)
    assert isinstance(about, Codec)
    return AudioTokenizer.build(about, form, settings.seed)


def audio_learner(settings: TrainTokenizer, tokenizer: AudioTokenizer | MelTokenizer, batches: ValueBatches) -> Learner:
    """The learner of the tokenizer's type."""
    precision = resolve_precision(settings.precision)
    rates = settings.learning_rate, settings.betas, settings.weight_decay, precision
    return MelLearner(tokenizer, *rates) if isinstance(tokenizer, MelTokenizer) else CodecLearner(tokenizer, *rates)


def _reconstruction(tokenizer: AudioTokenizer | MelTokenizer, batch: Any, precision: Precision) -> tuple[Tensor, Reconstruction]:
    """The network's input, and what the autoencoder makes of it."""
    x = tokenizer.to_network(torch.as_tensor(np.asarray(batch)).to(tokenizer.device))
    with _autocast(x, precision):
        return x, tokenizer.autoencoder.train()(x)


def _autocast(x: Tensor, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
