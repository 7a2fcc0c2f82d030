"""What trains an image tokenizer: the losses of VQ-VAE, VQ-GAN and dVAE around one autoencoder.

Parameters stay float32; under precision bf16 the networks compute in bfloat16 by autocast, and codebook, losses and statistics in float32.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloom.stages.learner import Learner, Player, Precision, Turn, resolve_precision
from worldloom.stages.open_tokenizer import NETWORKS
from worldloom.stages.settings import ImageStream, VideoStream
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import ValueBatches
from worldloom.tokenizers.autoencoder import Reconstruction
from worldloom.tokenizers.discriminator import PatchDiscriminator, smallest_side
from worldloom.tokenizers.dvae import kl_share, kl_weight, logit_laplace_nll, split_output, temperature
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import Dvae, VqGan, VqVae
from worldloom.tokenizers.learned import LearnedTokenizer
from worldloom.tokenizers.lecam import LeCam
from worldloom.tokenizers.measures import psnr
from worldloom.tokenizers.perceptual import PerceptualLoss, random_perceptual
from worldloom.tokenizers.quantizers.codebooks import health
from worldloom.tokenizers.quantizers.gumbel_quantizer import GumbelQuantizer
from worldloom.tokenizers.video import VideoTokenizer, fold_frames
from worldloom.tokenizers.vqgan import adaptive_weight, gate, generator_loss, hinge, known
from worldloom.tokenizers.vqvae import reconstruction_loss

MEASURE_EVERY = 10  # steps between PSNRs of a training batch
VARIANCE_OF = 1024  # pictures


class VqGanLearner:
    """L1 + perceptual + commitment, and from some step on a patch discriminator (arXiv:2012.09841).

    One forward pass of the autoencoder and one of the discriminator over what it made serve both turns; features of the real pictures are
    computed once, and no network is differentiated twice.
    """

    def __init__(
        self,
        tokenizer: LearnedTokenizer,
        settings: VqGan,
        steps: int,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        seed: int,
        precision: Precision,
        judge: PerceptualLoss | None = None,
    ) -> None:
        """`judge` compares pictures, where the perceptual loss counts; None: a random network does."""
        self.tokenizer = tokenizer
        self.autoencoder = autoencoder = tokenizer.autoencoder
        self.settings = settings
        self.precision = precision
        self.start = round(settings.adversarial_from * steps)
        self.ramp = round(settings.adversarial_ramp * steps)
        self.perceptual = (judge or random_perceptual()) if settings.perceptual_weight else None
        self.discriminator: PatchDiscriminator | None = None
        self.lecam = LeCam() if settings.lecam_weight else None
        players = [Player("generator", autoencoder, learning_rate, betas, weight_decay)]
        if settings.adversarial_weight and self.start < steps:
            smallest = smallest_side(settings.discriminator_layers)
            if (size := min(tokenizer.value_shape[-3:-1])) < smallest:
                raise ValueError(
                    f"a discriminator of {settings.discriminator_layers} layers needs pictures of at least {smallest} pixels, "
                    f"these have {size}; set tokenizer.discriminator_layers lower or tokenizer.adversarial_weight to 0"
                )
            generator = torch.Generator().manual_seed(seed)
            self.discriminator = PatchDiscriminator(settings.discriminator_width, settings.discriminator_layers, generator)
            players.append(Player("discriminator", self.discriminator, settings.discriminator_learning_rate, (0.5, 0.9)))
        self.players = tuple(players)

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        self.autoencoder.train()
        x = _input(self.tokenizer, batch)
        with _autocast(x, self.precision):
            made: Reconstruction = self.autoencoder(x)
        xhat = made.output.float()
        # Losses are differentiated down to here, each once; what they ask of the pictures then goes through the decoder together.
        seen = xhat.detach().requires_grad_()
        losses = {"l1": (x - seen).abs().mean()}
        if self.perceptual is not None:
            self.perceptual.to(x.device)
            with _autocast(x, self.precision):
                with torch.no_grad():
                    real_features = self.perceptual.features(fold_frames(x))
                distance = self.perceptual.distance(real_features, self.perceptual.features(fold_frames(seen)))
            losses[self.perceptual.name] = self.settings.perceptual_weight * distance
        gradients = {name: torch.autograd.grad(loss, seen)[0] for name, loss in losses.items()}
        losses = {name: known(xhat, loss, gradients[name]) for name, loss in losses.items()}
        losses["codebook"] = made.quantized.loss
        metrics = _metrics(self.tokenizer, batch, made, step)
        factor = gate(step, self.start, self.ramp)
        if self.discriminator is None or factor == 0:
            yield Turn("generator", losses, metrics, {"pictures": len(x)})
            return
        with _autocast(x, self.precision):
            fake = self.discriminator(fold_frames(seen))  # for both turns
        adversarial = generator_loss(fake)
        (gradient,) = torch.autograd.grad(adversarial, seen, retain_graph=True)
        ratio = adaptive_weight(xhat, sum(gradients.values(), torch.zeros_like(xhat)), gradient, self.autoencoder.last_weight)
        weight = self.settings.adversarial_weight * ratio
        losses["adversarial"] = factor * weight * known(xhat, adversarial, gradient)
        metrics = {**metrics, "gradient_ratio": ratio, "adversarial_weight": weight, "adversarial_gate": factor}
        yield Turn("generator", losses, metrics, {"pictures": len(x)})
        with _autocast(x, self.precision):
            real = self.discriminator(fold_frames(x))
        judged = {"discriminator": factor * hinge(real, fake)}
        if self.lecam is not None:
            judged["lecam"] = factor * self.settings.lecam_weight * self.lecam.penalty(real, fake)
        yield Turn(
            "discriminator",
            judged,
            {"logit_real": real.detach().float().mean(), "logit_fake": fake.detach().float().mean()},
        )

    def state(self) -> dict[str, Any]:
        return {} if self.lecam is None else {"lecam": self.lecam.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        if self.lecam is not None:
            self.lecam.load_state(state["lecam"])


class VqVaeLearner:
    """Squared error over the data's variance + commitment (arXiv:1711.00937)."""

    def __init__(
        self,
        tokenizer: LearnedTokenizer,
        settings: VqVae,
        variance: float,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        precision: Precision,
    ) -> None:
        self.tokenizer = tokenizer
        self.autoencoder = autoencoder = tokenizer.autoencoder
        self.settings = settings
        self.variance = variance
        self.precision = precision
        self.players = (Player("generator", autoencoder, learning_rate, betas, weight_decay),)

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        self.autoencoder.train()
        x = _input(self.tokenizer, batch)
        with _autocast(x, self.precision):
            made: Reconstruction = self.autoencoder(x)
        losses = {"reconstruction": reconstruction_loss(x, made.output, self.variance), "codebook": made.quantized.loss}
        yield Turn("generator", losses, _metrics(self.tokenizer, batch, made, step), {"pictures": len(x)})

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


class DvaeLearner:
    """Logit-Laplace likelihood or squared error + KL to the uniform prior, codes relaxed by Gumbel noise (arXiv:2102.12092, appendix A)."""

    def __init__(
        self,
        tokenizer: LearnedTokenizer,
        settings: Dvae,
        variance: float,
        steps: int,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        precision: Precision,
    ) -> None:
        self.tokenizer = tokenizer
        self.autoencoder = autoencoder = tokenizer.autoencoder
        self.settings = settings
        self.variance = variance
        self.precision = precision
        self.fall = round(settings.temperature_fall * steps)
        self.rise = round(settings.kl_rise * steps)
        self.players = (Player("generator", autoencoder, learning_rate, betas, weight_decay),)

    def turns(self, batch: Any, step: int) -> Iterator[Turn]:
        self.autoencoder.train()
        quantizer = self.autoencoder.quantizer
        assert isinstance(quantizer, GumbelQuantizer)
        quantizer.temperature = temperature(step, self.fall, self.settings.temperature)
        quantizer.kl_weight = kl_share(kl_weight(step, self.rise, self.settings.last_kl_weight), self.settings.downsample)
        x = _input(self.tokenizer, batch)
        with _autocast(x, self.precision):
            made: Reconstruction = self.autoencoder(x)
        losses = {**self._reconstruction(x, made.output), "kl": made.quantized.loss}
        metrics = _metrics(self.tokenizer, batch, made, step)
        yield Turn("generator", losses, {**metrics, "temperature": quantizer.temperature}, {"pictures": len(x)})

    def _reconstruction(self, x: Tensor, output: Tensor) -> dict[str, Tensor]:
        if self.settings.reconstruction == "l2":
            return {"reconstruction": reconstruction_loss(x, output, self.variance)}
        return {"nll": logit_laplace_nll(x, *split_output(output)).mean()}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


def image_tokenizer(settings: TrainTokenizer, stream: ImageStream) -> ImageTokenizer:
    """The untrained tokenizer that the settings ask for; ValueError where the cells do not divide the stream's pictures."""
    assert isinstance(settings.tokenizer, VqGan | VqVae | Dvae)
    form = {"height": stream.height, "width": stream.width, "resample": stream.resample}
    return ImageTokenizer.build(settings.tokenizer.resolved(settings.steps), form, settings.seed, NETWORKS)


def video_tokenizer(settings: TrainTokenizer, stream: VideoStream) -> VideoTokenizer:
    """The untrained tokenizer that the settings ask for; ValueError where the cells do not divide the stream's frames."""
    assert isinstance(settings.tokenizer, VqGan | VqVae | Dvae)
    form = {"height": stream.height, "width": stream.width, "frames": stream.frames, "frame_rate": stream.frame_rate}
    return VideoTokenizer.build(settings.tokenizer.resolved(settings.steps), form, settings.seed, NETWORKS)


def learner_of(
    settings: TrainTokenizer, tokenizer: LearnedTokenizer, batches: ValueBatches, judge: PerceptualLoss | None = None
) -> Learner:
    """The learner of the tokenizer's type; `judge` compares pictures."""
    about = settings.tokenizer
    precision = resolve_precision(settings.precision)
    rate, betas, decay = settings.learning_rate, settings.betas, settings.weight_decay
    if isinstance(about, VqGan):
        return VqGanLearner(tokenizer, about, settings.steps, rate, betas, decay, settings.seed, precision, judge)
    if isinstance(about, VqVae):
        return VqVaeLearner(tokenizer, about, variance(batches), rate, betas, decay, precision)
    assert isinstance(about, Dvae)
    return DvaeLearner(tokenizer, about, variance(batches), settings.steps, rate, betas, decay, precision)


def variance(batches: ValueBatches) -> float:
    """Of the first pictures of the first epoch, in [-1, 1]: what squared errors are divided by."""
    return max(float((batches.some(VARIANCE_OF) / 127.5).var()), 1e-6)


def _input(tokenizer: LearnedTokenizer, batch: Any) -> Tensor:
    return tokenizer.to_network(torch.as_tensor(np.asarray(batch)).to(tokenizer.device))


def _autocast(x: Tensor, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def _metrics(tokenizer: LearnedTokenizer, batch: Any, made: Reconstruction, step: int) -> Mapping[str, Tensor | float]:
    """How the codebook is used, and now and then the PSNR of this batch."""
    metrics: dict[str, Tensor | float] = {**health(tokenizer.autoencoder)}
    if step % MEASURE_EVERY == 0:
        pictures = torch.as_tensor(np.asarray(batch)).to(made.output.device)
        made_pictures = tokenizer.to_values(made.output)
        metrics["psnr"] = psnr(pictures.flatten(0, -4), made_pictures.flatten(0, -4)).mean()
    return metrics
