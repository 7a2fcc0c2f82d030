"""Knowledge distillation (arXiv:1503.02531): a student learns what a frozen teacher says of the same view of a picture.

The direction is KL(teacher || student), reduced as the mean over samples. Teachers' answers that are kept are their top k and the
mass of the tail (`Kept`).

B batch, K classes, k kept classes, D width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kept(NamedTuple):
    """What is kept of a teacher's distribution at one temperature."""

    classes: Tensor  # int64 [B, k], the likeliest first
    log_probabilities: Tensor  # float32 [B, k]
    log_tail: Tensor  # float32 [B]: of all other classes together; -inf where there are none


def soft_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)); logits [B, K]. T^2 keeps gradients from shrinking as T grows."""
    log_student, log_teacher = F.log_softmax(student / temperature, -1), F.log_softmax(teacher.detach() / temperature, -1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def hard_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's first choice; logits [B, K]."""
    return F.cross_entropy(student, teacher.argmax(-1))


def combined_loss(label_loss: Tensor, distillation: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) x the loss of the labels + alpha x that of the teacher."""
    return (1 - alpha) * label_loss + alpha * distillation


def keep(teacher: Tensor, k: int, temperature: float) -> Kept:
    """The top k of softmax(teacher / T); logits [B, K]."""
    logs = F.log_softmax(teacher.float() / temperature, -1)
    top = logs.topk(min(k, logs.shape[-1]), -1)
    others = logs.scatter(-1, top.indices, -torch.inf)
    return Kept(top.indices, top.values, others.logsumexp(-1))


def kept_distillation(student: Tensor, kept: Kept, temperature: float) -> Tensor:
    """`soft_distillation` from what was kept: all classes of the tail are one. With k = K it is the whole KL, otherwise at most that."""
    logs = F.log_softmax(student / temperature, -1)
    chosen = logs.gather(-1, kept.classes)
    divergence = (kept.log_probabilities.exp() * (kept.log_probabilities - chosen)).sum(-1)
    if kept.classes.shape[-1] < student.shape[-1]:
        tail = logs.scatter(-1, kept.classes, -torch.inf).logsumexp(-1)
        divergence = divergence + kept.log_tail.exp() * (kept.log_tail - tail)
    return temperature**2 * divergence.mean()


class FeatureDistillation(nn.Module):
    """1 - cosine between the student's vectors, through a linear projector, and the teacher's; tokens or pooled, [..., D]."""

    def __init__(self, student_width: int, teacher_width: int, generator: torch.Generator | None = None) -> None:
        """The projector is drawn from `generator`, Xavier-uniform."""
        super().__init__()
        self.projector = nn.Linear(student_width, teacher_width)
        with torch.no_grad():
            nn.init.xavier_uniform_(self.projector.weight, generator=generator)
            self.projector.bias.zero_()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """In the projector's own type, float32, under autocast, too."""
        with torch.autocast(student.device.type, enabled=False):
            x = self.projector(student.to(self.projector.weight.dtype))
            return (1 - F.cosine_similarity(x, teacher.detach().to(x.dtype), dim=-1)).mean()
