"""CoCa (arXiv:2205.01917): one picture encoder, contrasted with captions and writing them, in one forward pass.

Phase 1 of the default recipe trains the picture encoder by classification (classifier.py); phase 2, here, contrasts and captions together,
with weights 1 and 2; starting phase 2 from an untrained encoder is the paper's single phase. The captioning pooler's queries read the
encoder, the contrastive pooler's one query reads what those found (cascade, section 3.2); side by side is an option, as in open_clip.

B batch, T text tokens, Q captioning queries, D width, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.attention_pool import AttentionPool
from worldloom.world_model.encoders.contrastive import Contrastive
from worldloom.world_model.encoders.features import Encoder
from worldloom.world_model.encoders.ranks import ranks, sum_over_ranks
from worldloom.world_model.encoders.text_decoder import TextDecoder

CONTRASTIVE_WEIGHT, CAPTION_WEIGHT = 1.0, 2.0


class Encodings(NamedTuple):
    """Of pictures."""

    tokens: Tensor  # [B, Q, D]: what the text decoder reads
    pooled: Tensor  # [B, D]: what is compared with captions


class CocaLosses(NamedTuple):
    """Unweighted."""

    contrastive: Tensor
    caption: Tensor


class CoCa(nn.Module):
    """An encoder, two poolers and a text decoder."""

    def __init__(
        self,
        encoder: Encoder,
        text: TextDecoder,
        width: int,
        heads: int,
        queries: int = 256,
        cascade: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """`width` is that of the text decoder. Poolers are drawn from `generator`."""
        super().__init__()
        assert isinstance(encoder, nn.Module)
        self.encoder, self.text, self.cascade = encoder, text, cascade
        self.caption_pool = AttentionPool(width, heads, queries, encoder.width, generator=generator)
        self.contrastive_pool = AttentionPool(width, heads, 1, width if cascade else encoder.width, generator=generator)
        self.contrastive = Contrastive()

    def encode(self, pixels: Tensor) -> Encodings:
        """[B, C, H, W] -> Encodings; the encoder runs once."""
        tokens = self.encoder(pixels).tokens
        read = self.caption_pool(tokens)
        return Encodings(read, self.contrastive_pool(read if self.cascade else tokens)[:, 0])

    def forward(self, pixels: Tensor, ids: Tensor, present: Tensor) -> CocaLosses:
        """Captions int64 [B, T] from begin to end token, and where they are no padding. Captioning counts every token of the global batch
        alike."""
        encodings, text = self.encode(pixels), self.text.read(ids, present)
        logits = self.text.logits(text, encodings.tokens)[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view_as(ids[:, 1:])
        counted = present[:, 1:]
        caption = (losses * counted).sum() * ranks() / sum_over_ranks(counted.sum()).clamp(min=1)
        return CocaLosses(self.contrastive(encodings.pooled, text.pooled), caption)
