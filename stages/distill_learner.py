"""Knowledge distillation (arXiv:1503.02531) into any encoder: teacher and student look at the same view of every picture.

`soft` and `hard` learn what the teacher answers, and leave a classifier; `features` and `tokens` learn the teacher's vectors through a
projector that is thrown away, and need no classes. The teacher is frozen and in no checkpoint. Of whole pictures, which look the same every
time, its answers may be kept: it is asked once, and its likeliest classes and the mass of all others stay in memory.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.stages.augment import View
from worldloom.stages.encoder_features import AT_ONCE, signed
from worldloom.stages.encoder_learner import EncoderLearner, Recipe
from worldloom.stages.encoder_settings import Distill
from worldloom.stages.learner import Turn
from worldloom.stages.picture_batches import Pictures
from worldloom.stages.value_batches import Values
from worldloom.world_model.encoders.build import Network
from worldloom.world_model.encoders.classifier import Classifier
from worldloom.world_model.encoders.distillation import (
    FeatureDistillation,
    Kept,
    hard_distillation,
    keep,
    kept_distillation,
    soft_distillation,
)
from worldloom.world_model.encoders.features import Features
from worldloom.world_model.encoders.joined import Namer


class DistillLearner(EncoderLearner):
    """From a teacher's answers, and from labels where there are some: (1 - alpha) x labels + alpha x teacher."""

    def __init__(
        self, encoder: Network, about: Distill, teacher: Namer, classes: tuple[str, ...] | None, values: Values, side: int, recipe: Recipe
    ) -> None:
        """`classes` are those of the labels; None: there are none, and the teacher alone is learnt from. `values` are the pictures that it
        is asked about at the first step where its answers are to be kept."""
        self.encoder, self.about, self.recipe, self.teacher, self.values = encoder, about, recipe, teacher, values
        self.classes = same_classes(teacher.classes, classes)
        self.module = self.classifier = Classifier(encoder, len(self.classes))
        self.view = View(side, (about.crop_from, 1.0), about.flip)
        self.players = (recipe.player(self.module),)
        self.kept: Kept | None = None

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        self.module.train()
        (x,) = self.recipe.views(batch, (self.view,), self.device)
        with self.recipe.autocast(x):
            said = self.classifier(x)
        said = said.float()
        distilled, choice = self._distilled(said, x, batch)
        alpha = 1.0 if batch.labels is None else self.about.alpha
        losses, metrics = {"teacher": alpha * distilled}, {"agreement_with_teacher": agreement(said, choice)}
        if batch.labels is not None:
            labels = torch.from_numpy(batch.labels).to(x.device)
            losses["labels"] = (1 - alpha) * F.cross_entropy(said, labels)
            metrics["accuracy"] = (said.detach().argmax(1) == labels).float().mean()
        yield Turn("encoder", losses, metrics, {"pictures": len(x)})

    def _distilled(self, said: Tensor, x: Tensor, batch: Pictures) -> tuple[Tensor, Tensor]:
        """The loss of the student's logits [B, K], and the teacher's first choice [B]."""
        about = self.about
        if about.keep is not None:
            if self.kept is None:
                self.kept = asked_once(self.teacher, self.values, about.keep, about.temperature, self.recipe, x.device)
            rows = torch.from_numpy(np.searchsorted(self.values.samples, batch.sample)).to(x.device)
            kept = Kept(*(each[rows] for each in self.kept))
            return kept_distillation(said, kept, about.temperature), kept.classes[:, 0]
        told = answers(self.teacher, x, self.recipe)
        loss = soft_distillation(said, told, about.temperature) if about.form == "soft" else hard_distillation(said, told)
        return loss, told.argmax(1)

    @property
    def namer(self) -> Namer:
        return Namer(self.classifier, self.classes, "sum")


class _Projected(nn.Module):
    """A student whose vectors, projected, are those of a teacher."""

    def __init__(self, encoder: Network, teacher_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder, self.distillation = encoder, FeatureDistillation(encoder.width, teacher_width, generator)

    def forward(self, pixels: Tensor, told: Features, tokens: bool) -> Tensor:
        seen: Features = self.encoder(pixels)
        loss: Tensor = self.distillation(*((seen.tokens, told.tokens) if tokens else (seen.pooled, told.pooled)))
        return loss


class FeatureLearner(EncoderLearner):
    """From a teacher's vectors: of the whole picture, or token by token."""

    def __init__(self, encoder: Network, about: Distill, teacher: Network, side: int, recipe: Recipe) -> None:
        self.encoder, self.about, self.recipe, self.teacher = encoder, about, recipe, teacher
        if about.form == "tokens":
            blank = torch.zeros(1, 3, side, side)
            with torch.no_grad():
                mine, its = (network.eval()(blank).tokens.shape[1] for network in (encoder, teacher))
            if mine != its:
                raise ValueError(
                    f"form tokens needs as many tokens of a picture as the teacher has, the student has {mine}, the teacher {its}; "
                    "choose patches and strides that agree, or form features"
                )
        self.module = self.projected = _Projected(encoder, teacher.width, torch.Generator().manual_seed(recipe.seed + 1))
        self.view = View(side, (about.crop_from, 1.0), about.flip)
        self.players = (recipe.player(self.module),)

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        self.module.train()
        (x,) = self.recipe.views(batch, (self.view,), self.device)
        self.teacher.to(self.device)
        with self.recipe.autocast(x):
            with torch.no_grad():
                told = self.teacher(x)
            loss = self.projected(x, told, self.about.form == "tokens")
        yield Turn("encoder", {"teacher": loss}, {}, {"pictures": len(x)})


@torch.no_grad()
def answers(teacher: Namer, x: Tensor, recipe: Recipe) -> Tensor:
    """The teacher's logits [B, K], float32."""
    teacher.model.to(x.device)
    with recipe.autocast(x):
        return teacher.logits(x).float()


def asked_once(teacher: Namer, values: Values, k: int, temperature: float, recipe: Recipe, device: torch.device) -> Kept:
    """What the teacher says of each of the pictures, whole."""
    parts = np.array_split(np.arange(len(values)), -(-len(values) // AT_ONCE))
    kept = [keep(answers(teacher, signed(values[part]).to(device), recipe), k, temperature) for part in parts]
    return Kept(*(torch.cat(columns) for columns in zip(*kept, strict=True)))


def agreement(said: Tensor, choice: Tensor) -> Tensor:
    """Share of the pictures that are named as the teacher's first choice [B] is; logits [B, K]."""
    return (said.detach().argmax(1) == choice).float().mean()


def same_classes(teacher: tuple[str, ...], labels: tuple[str, ...] | None) -> tuple[str, ...]:
    """The teacher's classes; ValueError where those of the labels are others, or stand in another order."""
    if labels is not None and teacher != labels:
        lacking = sorted(set(teacher) ^ set(labels))
        named = f"{lacking[0]!r} is a class of one of them only" if lacking else "they stand in another order"
        raise ValueError(f"the teacher names {len(teacher)} classes and the labels {len(labels)}: {named}; give both the same labels")
    return teacher
