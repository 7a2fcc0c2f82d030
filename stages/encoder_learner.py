"""What trains an encoder: one learner an objective. Each draws its views by sample and epoch and keeps all that lasts in its module.

What a training leaves for others to open, the text side of a CoCa included, is listed in open_encoder.py.

Parameters stay float32; under precision bf16 the networks compute in bfloat16 by autocast, and losses in float32.

What differs from the papers' recipes: gradients are clipped by their norm over all parameters, where DINO clips each; weight decay
rises along DINO's cosine only where `last_weight_decay` is given.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.stages.augment import Jitter, View, multi_crop, see
from worldloom.stages.encoder_settings import Deit, Dino, Looks, Mixing, SimMim, Supervised
from worldloom.stages.learner import Player, Precision, Turn
from worldloom.stages.mixing import Mixed, mix
from worldloom.stages.order import uniform
from worldloom.stages.picture_batches import Pictures
from worldloom.stages.view_draws import Draws
from worldloom.world_model.encoders.build import Network, NetworkSettings
from worldloom.world_model.encoders.classifier import Classifier
from worldloom.world_model.encoders.dino import Centre, DinoHead, cosine_schedule, dino_loss, entropy, follow, linear_schedule
from worldloom.world_model.encoders.joined import Namer, Redrawer, save_namer, save_redrawer
from worldloom.world_model.encoders.koleo import koleo
from worldloom.world_model.encoders.layers import rate_shares, undecayed
from worldloom.world_model.encoders.load import save_pretrained
from worldloom.world_model.encoders.simmim import SimMIM, hide_by
from worldloom.world_model.encoders.sinkhorn import sinkhorn
from worldloom.world_model.encoders.swin import Swin
from worldloom.world_model.encoders.vit import ViT

AGAIN = 10_000  # between the counters of a picture's views and those of the same picture again
MASK_VIEW = 1_000  # the counter that masks are drawn with, beyond any view's


class Recipe:
    """What every objective takes from the stage's settings."""

    def __init__(
        self,
        steps: int,
        seed: int,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        precision: Precision,
        layer_decay: float = 1.0,
        patch_rate: float = 1.0,
        ema: float | None = None,
        last_weight_decay: float | None = None,
    ) -> None:
        self.steps, self.seed, self.precision = steps, seed, precision
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.layer_decay, self.patch_rate, self.ema = layer_decay, patch_rate, ema
        self.last_weight_decay = last_weight_decay

    def player(self, module: nn.Module) -> Player:
        """Of a module whose encoder is called so; what else there is learns at the full rate."""
        found = rate_shares(module.get_submodule("encoder"), self.layer_decay, self.patch_rate)
        shares = {f"encoder.{name}": share for name, share in found.items() if share < 1}
        return Player(
            "encoder",
            module,
            self.learning_rate,
            self.betas,
            self.weight_decay,
            average=self.ema,
            shares=shares,
            undecayed=undecayed(module),
            last_weight_decay=self.last_weight_decay,
        )

    def views(self, batch: Pictures, views: tuple[View, ...], device: torch.device) -> list[Tensor]:
        """[B, 3, S, S] each; a picture that is there again gets views of its own."""
        pictures = torch.from_numpy(np.asarray(batch.values))
        counters = [number + AGAIN * batch.again for number in range(len(views))]
        draws = [Draws(self.seed, batch.epoch, batch.sample, counter) for counter in counters]
        return [see(pictures, view, each).to(device) for view, each in zip(views, draws, strict=True)]

    def lesson(self, batch: Pictures, view: View, mixing: Mixing | None, classes: int, step: int, device: torch.device) -> Mixed:
        """Pictures, and what they are to be called."""
        assert batch.labels is not None
        (x,), labels = self.views(batch, (view,), device), torch.from_numpy(batch.labels).to(device)
        return mix(mixing, x, labels, classes, self.seed, step, batch.place)

    def autocast(self, x: Tensor) -> AbstractContextManager[Any]:
        return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


class EncoderLearner(ABC):
    """What trains an encoder; all that lasts is in the module."""

    module: nn.Module
    encoder: Network
    players: tuple[Player, ...]

    @abstractmethod
    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        """As every learner's."""

    def save(self, out: Path, about: NetworkSettings) -> None:
        """Writes what is kept, by the layout of open_encoder.py."""
        save_pretrained(out / "encoder", self.judged, about)
        if self.namer is not None:
            save_namer(out, self.namer)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        assert not state

    @property
    def namer(self) -> Namer | None:
        """What names classes, if that was learnt."""
        return None

    @property
    def judged(self) -> Network:
        """The encoder that is kept."""
        return self.encoder

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device


class SupervisedLearner(EncoderLearner):
    """Cross-entropy with smoothed labels."""

    def __init__(self, encoder: Network, about: Supervised, classes: tuple[str, ...], side: int, recipe: Recipe) -> None:
        self.encoder, self.about, self.recipe, self.classes = encoder, about, recipe, classes
        self.module = self.classifier = Classifier(encoder, len(classes))
        self.view = taught_view(about, side)
        self.players = (recipe.player(self.module),)

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        self.module.train()
        given = self.recipe.lesson(batch, self.view, self.about.mixing, len(self.classes), step, self.device)
        with self.recipe.autocast(given.pixels):
            logits = self.classifier(given.pixels)
        loss = F.cross_entropy(logits.float(), given.target, label_smoothing=self.about.smoothing)
        right = (logits.detach().argmax(1) == given.first).float().mean()
        yield Turn("encoder", {"labels": loss}, {"accuracy": right}, {"pictures": len(given.pixels)})

    @property
    def namer(self) -> Namer:
        return Namer(self.classifier, self.classes, "sum")


class SimMimLearner(EncoderLearner):
    """Hidden pixels."""

    def __init__(self, encoder: ViT | Swin, about: SimMim, side: int, recipe: Recipe) -> None:
        self.encoder, self.about, self.recipe = encoder, about, recipe
        self.module = self.model = SimMIM(encoder, torch.Generator().manual_seed(recipe.seed + 1), about.error)
        self.view = View(side, (about.crop_from, 1.0), about.flip)
        self.grid = encoder.patches.grid(side, side)
        self.players = (recipe.player(self.module),)

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        self.module.train()
        (x,) = self.recipe.views(batch, (self.view,), self.device)
        with self.recipe.autocast(x):
            made = self.model(x, self.hidden(batch.epoch, batch.sample).to(x.device))
        yield Turn("encoder", {"hidden_pixels": made.loss}, counts={"pictures": len(x)})

    @property
    def redrawer(self) -> Redrawer:
        """What draws, to be kept beside the encoder."""
        return Redrawer(self.model, self.about.unit, self.about.ratio)

    def save(self, out: Path, about: NetworkSettings) -> None:
        super().save(out, about)
        save_redrawer(out, self.redrawer)

    def hidden(self, epoch: Any, sample: Any) -> Tensor:
        """bool [B, N], drawn by epoch and sample."""
        units = -(-self.grid[0] // self.about.unit) * -(-self.grid[1] // self.about.unit)
        chances = uniform(self.recipe.seed, epoch[:, None], sample[:, None], MASK_VIEW, np.arange(units)[None])
        return hide_by(torch.from_numpy(chances), self.grid, self.about.unit, self.about.ratio)


def taught_view(about: Supervised | Deit, side: int) -> View:
    """The view that a class is learnt from."""
    return View(side, (about.crop_from, 1.0), about.flip, randaugment=about.randaugment, erase=about.erase)


def view_like(looks: Looks) -> View:
    """A view of that look; its size and crop are for others to say."""
    usual = Jitter()
    jitter = Jitter(usual.brightness * looks.jitter, usual.contrast * looks.jitter, usual.saturation * looks.jitter, looks.hue)
    return View(1, (1.0, 1.0), looks.flip, looks.turn, looks.warp, jitter, looks.jittered, looks.grey, looks.blur, looks.solarise)


def spread_apart(features: Tensor) -> Tensor:
    """KoLeo of each of the views [G, B, D], added up."""
    return torch.stack([koleo(view) for view in features]).sum()


def targets_of(told: Tensor, centre: Centre, temperature: float, centring: Literal["mean", "sinkhorn"]) -> Tensor:
    """What a student learns to say, [..., K], of what its teacher says."""
    return centre(told, temperature) if centring == "mean" else sinkhorn(told.flatten(0, -2), temperature).view_as(told)


class DinoPair(nn.Module):
    """Student and teacher, each an encoder with a head, and the centre of what the teacher says."""

    def __init__(self, encoder: Network, about: Dino, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = DinoHead(encoder.width, about.prototypes, about.hidden, about.bottleneck, generator)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.centre = Centre(about.prototypes, about.centre_momentum)

    def forward(self, views: list[Tensor], freeze_last: bool) -> tuple[Tensor, Tensor]:
        """Logits [S, B, K], and the global views' features [G, B, D]; views of one size go through the encoder together."""
        pooled = []
        for size in dict.fromkeys(view.shape[-1] for view in views):
            together = [view for view in views if view.shape[-1] == size]
            pooled.append(self.encoder(torch.cat(together)).pooled.reshape(len(together), len(together[0]), -1))
        return self.head(torch.cat(pooled), freeze_last), torch.cat(pooled)[:2]

    @torch.no_grad()
    def told(self, views: list[Tensor]) -> Tensor:
        """[G, B, K]: the teacher's of the global views."""
        out: Tensor = self.teacher_head(self.teacher(torch.cat(views)).pooled.reshape(len(views), len(views[0]), -1))
        return out

    def follow(self, momentum: float) -> None:
        """Moves the teacher towards the student."""
        follow(self.teacher, self.encoder, momentum)
        follow(self.teacher_head, self.head, momentum)


class DinoLearner(EncoderLearner):
    """Agreement between views; the teacher follows behind the optimizer's step."""

    def __init__(self, encoder: Network, about: Dino, side: int, recipe: Recipe) -> None:
        self.encoder, self.about, self.recipe = encoder, about, recipe
        self.module = self.pair = DinoPair(encoder, about, torch.Generator().manual_seed(recipe.seed + 1))
        local = about.local_size or max(side // 2, 8)
        self.views = multi_crop(side, local, about.local_views, about.global_from, about.local_from, view_like(about.looks))
        self.players = (recipe.player(self.module),)

    @property
    def judged(self) -> Network:
        """The teacher's encoder: a mean over many students, and better than any of them (section 5.2)."""
        return self.pair.teacher

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        about, steps = self.about, self.recipe.steps
        self.pair.train()
        self.pair.teacher.eval()
        views = self.recipe.views(batch, self.views, self.device)
        with self.recipe.autocast(views[0]):
            told = self.pair.told(views[:2])
            said, features = self.pair(views, step < about.frozen * steps)
        temperature = linear_schedule(about.temperature, about.last_temperature, step, round(about.warm_up * steps))
        targets = targets_of(told, self.pair.centre, temperature, about.centring)
        momentum = cosine_schedule(about.momentum, 1.0, step, steps)
        metrics: Mapping[str, Tensor | float] = {"teacher_entropy": entropy(targets), "momentum": momentum}
        losses = {"agreement": dino_loss(said, targets)}
        if about.koleo:
            losses["koleo"] = about.koleo * spread_apart(features)
        yield Turn("encoder", losses, metrics, {"pictures": len(views[0])})
        if about.centring == "mean":
            self.pair.centre.update(told)
        self.pair.follow(momentum)
