"""DeiT (arXiv:2012.12877): a ViT with a second class token that learns from a teacher.

Default: the teacher's hard label, smoothed, beside the true label, at equal weights; at inference the logits of both heads are summed.
The paper's variants are options: hard labels without smoothing (equation 3), soft labels (equation 2), and late fusion of the softmaxes.

B batch, K classes.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.distillation import combined_loss, soft_distillation
from worldloom.world_model.encoders.vit import ViT

Inference = Literal["sum", "mean", "softmaxes"]
Smoothing = Literal["others", "all"]


class DeitLogits(NamedTuple):
    """Of the two heads, [B, K] each."""

    classes: Tensor
    distilled: Tensor


class DeiT(nn.Module):
    """Pictures [B, C, H, W] -> DeitLogits; both heads start at zero."""

    def __init__(self, encoder: ViT, classes: int) -> None:
        super().__init__()
        if encoder.class_token is None or encoder.distillation_token is None:
            raise ValueError("DeiT needs a class token and a distillation token; set class_token and distillation_token")
        self.encoder = encoder
        self.head, self.distillation_head = nn.Linear(encoder.width, classes), nn.Linear(encoder.width, classes)
        for head in (self.head, self.distillation_head):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, pixels: Tensor) -> DeitLogits:
        x = self.encoder.sequence(pixels)
        return DeitLogits(self.head(x[:, 0]), self.distillation_head(x[:, 1]))


def combine(logits: DeitLogits, inference: Inference = "sum") -> Tensor:
    """[B, K] whose softmax is the prediction: the sum of the logits (default), their mean (the official evaluation), or the logarithm of
    the mean of both softmaxes (the paper's late fusion).

    Sum and mean agree on the likeliest class and differ in probabilities (a mean is a sum at temperature 2); late fusion is another
    classifier, and may choose another class.
    """
    if inference == "softmaxes":
        both = torch.stack([F.log_softmax(each, -1) for each in logits])
        return both.logsumexp(0) - torch.log(both.new_tensor(2.0))
    total = logits.classes + logits.distilled
    return total if inference == "sum" else total / 2


def smoothed(labels: Tensor, classes: int, epsilon: float, smoothing: Smoothing = "others") -> Tensor:
    """float32 [B, K]: the label has 1 - epsilon, the rest goes to the other K - 1 classes, or, with "all", to all K as in torch."""
    if smoothing == "all":
        epsilon = epsilon * (classes - 1) / classes
    target = torch.full((len(labels), classes), epsilon / max(classes - 1, 1), device=labels.device)
    return target.scatter(1, labels[:, None], 1 - epsilon)


def deit_loss(
    logits: DeitLogits,
    target: Tensor,
    teacher: Tensor,
    epsilon: float = 0.1,
    smoothing: Smoothing = "others",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean of the loss of the labels and that of the teacher's smoothed hard labels. Epsilon 0 is the paper's hard distillation.

    `target` is int64 [B] or, with mixed pictures, probabilities [B, K]; `teacher` [B, K] are logits for the same, mixed, pictures.
    `label_smoothing` is that of the target, over all classes.
    """
    wanted = smoothed(teacher.argmax(-1), teacher.shape[-1], epsilon, smoothing)
    labels = F.cross_entropy(logits.classes, target, label_smoothing=label_smoothing)
    return (labels + F.cross_entropy(logits.distilled, wanted)) / 2


def deit_soft_loss(
    logits: DeitLogits,
    target: Tensor,
    teacher: Tensor,
    alpha: float = 0.1,
    temperature: float = 3.0,
    reduction: Literal["batch", "numbers"] = "batch",
    label_smoothing: float = 0.0,
) -> Tensor:
    """(1 - alpha) x the loss of the labels + alpha T^2 KL (equation 2, the paper's alpha and T).

    The official code takes the mean over all numbers, "numbers", which is K times smaller.
    """
    soft = soft_distillation(logits.distilled, teacher, temperature)
    labels = F.cross_entropy(logits.classes, target, label_smoothing=label_smoothing)
    return combined_loss(labels, soft if reduction == "batch" else soft / teacher.shape[-1], alpha)
