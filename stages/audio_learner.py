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
from worldloom.tokenizers.audio_measures import multi_scale_mel_loss
from worldloom.tokenizers.audio_settings import Codec, Mel
from worldloom.tokenizers.autoencoder import Reconstruction
from worldloom.tokenizers.mel_picture import MelTokenizer
from worldloom.tokenizers.quantizers.codebooks import health
from worldloom.tokenizers.stft_discriminator import StftDiscriminator, feature_distance, scales_generator_loss, scales_hinge, windows_at
from worldloom.tokenizers.vqgan import adaptive_weight, gate, known

LOUDNESS_OF = 1024  # sounds
SILENT = 1e-3  # mean square, where 1/9 is usual, that is added to each sound's: next to nothing is left of nothing


class CodecLearner:
    """Costs of the waveform, and from some step on a discriminator of spectrograms (arXiv:2210.13438, section 3.4), a second player.

    Gradients of both adversarial losses are brought to the size of that of the waveform's at the decoder's last layer, as in VQ-GAN, where
    the paper balances them at its output; the quantizer's own loss stays outside the balance.
    """

    def __init__(
        self,
        tokenizer: AudioTokenizer,
        steps: int,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        seed: int,
        precision: Precision,
    ) -> None:
        self.tokenizer = tokenizer
        about = tokenizer.settings
        assert isinstance(about, Codec)
        self.settings = about
        self.precision = precision
        self.seed = seed
        self.start, self.ramp = round(about.adversarial_from * steps), round(about.adversarial_ramp * steps)
        self.discriminator: StftDiscriminator | None = None
        players = [Player("generator", tokenizer.autoencoder, learning_rate, betas, weight_decay)]
        if about.adversarial_weight and self.start < steps:
            windows = windows_at(tokenizer.sample_rate, min(about.crop or tokenizer.samples, tokenizer.samples))
            generator = torch.Generator().manual_seed(seed)
            self.discriminator = StftDiscriminator(tokenizer.channels, windows, about.discriminator_width, generator)
            players.append(Player("discriminator", self.discriminator, about.discriminator_learning_rate, (0.5, 0.9)))
        self.players = tuple(players)

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        x, made = _reconstruction(self.tokenizer, batch, self.precision, self._part(step))
        xhat = made.output.float()
        # As for pictures: losses are differentiated down to here, each once, and then go through the decoder together.
        heard = xhat.detach().requires_grad_()
        costs = codec_cost(self.tokenizer, x, heard)
        gradients = {name: torch.autograd.grad(cost, heard, retain_graph=True)[0] for name, cost in costs.items()}
        losses = {name: known(xhat, cost, gradients[name]) for name, cost in costs.items()}
        losses["codebook"] = made.quantized.loss
        metrics = health(self.tokenizer.autoencoder)
        factor = gate(step, self.start, self.ramp)
        if self.discriminator is None or factor == 0:
            yield Turn("generator", losses, metrics, {"sounds": len(x)})
            return
        with _autocast(x, self.precision):
            judged = self.discriminator.frozen(heard)
            with torch.no_grad():
                real = self.discriminator(x)
        nll = torch.stack(list(gradients.values())).sum(0)
        for name, weight, loss in (
            ("adversarial", self.settings.adversarial_weight, scales_generator_loss(judged)),
            ("features", self.settings.feature_weight, feature_distance(real, judged)),
        ):
            (gradient,) = torch.autograd.grad(loss, heard, retain_graph=True)
            ratio = adaptive_weight(xhat, nll, gradient, self.tokenizer.autoencoder.last_weight)
            losses[name] = factor * weight * ratio * known(xhat, loss, gradient)
            metrics[f"gradient_ratio_{name}"] = ratio
        yield Turn("generator", losses, {**metrics, "adversarial_gate": torch.tensor(factor)}, {"sounds": len(x)})
        with _autocast(x, self.precision):
            real, fake = self.discriminator(x), self.discriminator(xhat.detach())
        yield Turn("discriminator", {"discriminator": factor * scales_hinge(real, fake)})

    def _part(self, step: int) -> slice:
        """The samples to learn from, a function of seed and step: the same on every rank and after a stop."""
        whole = self.tokenizer.frames * self.settings.downsample
        length = min(self.settings.crop or whole, whole)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        start = int(torch.randint(0, whole - length + 1, (), generator=generator))
        return slice(start, start + length)

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


def codec_cost(tokenizer: AudioTokenizer, x: Tensor, xhat: Tensor) -> dict[str, Tensor]:
    """L1 and share of the energy of the waveform + multi-scale log-mel of the sound (arXiv:2210.13438, which has no term of energies)."""
    settings, loudest = tokenizer.settings, tokenizer.loudest
    assert isinstance(settings, Codec)
    difference = (x - xhat).flatten(1)
    share = difference.square().mean(1) / (x.square().flatten(1).mean(1) + SILENT)
    return {
        "waveform": settings.waveform_weight * difference.abs().mean(),
        "energy": settings.energy_weight * share.mean(),
        "mel": settings.mel_weight * multi_scale_mel_loss(x * loudest, xhat * loudest, tokenizer.sample_rate),
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
    rates = settings.learning_rate, settings.betas, settings.weight_decay
    if isinstance(tokenizer.settings, Codec) and tokenizer.settings.loudness is None:
        tokenizer.settings = tokenizer.settings.model_copy(update={"loudness": loudness(batches)})
    if isinstance(tokenizer, MelTokenizer):
        return MelLearner(tokenizer, *rates, precision)
    return CodecLearner(tokenizer, settings.steps, *rates, settings.seed, precision)


def loudness(batches: ValueBatches) -> float:
    """Root mean square of the first sounds of the first epoch, in three digits."""
    return float(f"{max(float(np.sqrt(np.square(batches.some(LOUDNESS_OF), dtype=np.float64).mean())), 1e-4):.3g}")


def _reconstruction(
    tokenizer: AudioTokenizer | MelTokenizer, batch: Any, precision: Precision, part: slice = slice(None)
) -> tuple[Tensor, Reconstruction]:
    """That part of the network's input, along its last axis, and what the autoencoder makes of it."""
    x = tokenizer.to_network(torch.as_tensor(np.asarray(batch)).to(tokenizer.device))[..., part]
    with _autocast(x, precision):
        return x, tokenizer.autoencoder.train()(x)


def _autocast(x: Tensor, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
