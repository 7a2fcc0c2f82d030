"""The network that a tokenizer's pictures are compared by: a trained encoder, LPIPS weights, or a random one."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from worldloom.stages.artifact import Artifact
from worldloom.stages.eye import Eye, open_eye
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.tokenizers.image_settings import VqGan
from worldloom.tokenizers.perceptual import PerceptualLoss, lpips_perceptual, random_perceptual


class EyeDepths(nn.Module):
    """An encoder as the network of a perceptual loss."""

    def __init__(self, eye: Eye) -> None:
        super().__init__()
        self.eye = eye

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        return self.eye.stages(pictures)

    def pooled(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.eye(pictures).pooled.float()
        return found


def judge_of(settings: TrainTokenizer, inputs: Mapping[str, Artifact]) -> PerceptualLoss:
    """What the settings name; distances in figures are called after it."""
    if settings.perceptual is not None:
        eye = open_eye(inputs["perceptual"])
        return PerceptualLoss(EyeDepths(eye), None, eye.name)
    weights = settings.tokenizer.perceptual_weights if isinstance(settings.tokenizer, VqGan) else None
    return lpips_perceptual(Path(weights)) if weights else random_perceptual()
