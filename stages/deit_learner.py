"""DeiT (arXiv:2012.12877): a ViT whose second class token learns from a teacher of any form, best one of convolutions.

Default: the teacher's hard label, smoothed, beside the true one, pictures repeated in a batch with views of their own, and at inference the
sum of both heads' logits. The rest of the paper's recipe is a choice: `mixing`, `erase`, `randaugment`, `label_smoothing`, and of the stage
`ema`. The teacher looks at the same pictures, mixed and erased.
"""

from collections.abc import Iterator

from torch import Tensor

from worldloom.stages.distill_learner import agreement, answers, same_classes
from worldloom.stages.encoder_learner import EncoderLearner, Recipe, taught_view
from worldloom.stages.encoder_settings import Deit
from worldloom.stages.learner import Turn
from worldloom.stages.picture_batches import Pictures
from worldloom.world_model.encoders.deit import DeiT, DeitLogits, combine, deit_loss, deit_soft_loss
from worldloom.world_model.encoders.joined import Namer
from worldloom.world_model.encoders.vit import ViT


class DeitLearner(EncoderLearner):
    """From labels by the class token, from a teacher by the distillation token."""

    def __init__(self, encoder: ViT, about: Deit, teacher: Namer, classes: tuple[str, ...], side: int, recipe: Recipe) -> None:
        self.encoder, self.about, self.recipe, self.teacher = encoder, about, recipe, teacher
        self.classes = same_classes(teacher.classes, classes)
        self.module = self.deit = DeiT(encoder, len(classes))
        self.view = taught_view(about, side)
        self.players = (recipe.player(self.module),)

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        self.module.train()
        x, target, first = self.recipe.lesson(batch, self.view, self.about.mixing, len(self.classes), step, self.device)
        told = answers(self.teacher, x, self.recipe)
        with self.recipe.autocast(x):
            found = self.deit(x)
        said = DeitLogits(*(each.float() for each in found))
        right = (combine(DeitLogits(*(each.detach() for each in said)), self.about.inference).argmax(1) == first).float().mean()
        metrics = {"accuracy": right, "agreement_with_teacher": agreement(said.distilled, told.argmax(1))}
        yield Turn("encoder", {"deit": self._loss(said, target, told)}, metrics, {"pictures": len(x)})

    def _loss(self, said: DeitLogits, target: Tensor, told: Tensor) -> Tensor:
        about = self.about
        if about.form == "soft":
            return deit_soft_loss(said, target, told, about.alpha, about.temperature, about.reduction, about.label_smoothing)
        return deit_loss(said, target, told, about.smoothing, about.smoothing_over, about.label_smoothing)

    @property
    def namer(self) -> Namer:
        return Namer(self.deit, self.classes, self.about.inference)
