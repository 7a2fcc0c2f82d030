"""A head that names what an encoder sees (arXiv:2010.11929, section 3.1)."""

import torch
from torch import Tensor, nn

from worldloom.world_model.encoders.features import Encoder, Features


class Classifier(nn.Module):
    """Pictures [B, C, H, W] -> logits [B, classes]. The head starts at zero; a hidden tanh layer is for pre-training only."""

    def __init__(self, encoder: Encoder, classes: int, hidden: int | None = None, generator: torch.Generator | None = None) -> None:
        """The hidden layer's weights are drawn from `generator`."""
        super().__init__()
        assert isinstance(encoder, nn.Module)
        self.encoder = encoder
        self.pre_logits = nn.Linear(encoder.width, hidden) if hidden else None
        self.head = nn.Linear(hidden or encoder.width, classes)
        with torch.no_grad():
            if self.pre_logits is not None:
                nn.init.xavier_uniform_(self.pre_logits.weight, generator=generator)
                self.pre_logits.bias.zero_()
            self.head.weight.zero_()
            self.head.bias.zero_()

    def forward(self, pixels: Tensor) -> Tensor:
        features: Features = self.encoder(pixels)
        pooled = features.pooled if self.pre_logits is None else self.pre_logits(features.pooled).tanh()
        logits: Tensor = self.head(pooled)
        return logits
