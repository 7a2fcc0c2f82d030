"""CoCa (arXiv:2205.01917): one picture encoder, contrasted with captions and writing them, in one forward pass.

Phase 1 of the default recipe trains the picture encoder by classification (classifier.py); phase 2, here, contrasts and captions together,
with weights 1 and 2; starting phase 2 from an untrained encoder is the paper's single phase. The captioning pooler's queries read the
encoder, the contrastive pooler's one query reads what those found (cascade, section 3.2); side by side is an option, as in open_clip.

B batch, T text tokens, Q captioning queries, D width, V vocabulary.
"""

from collections.abc import Callable
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


Choose = Callable[[Tensor], Tensor]  # logits [B, V] -> ids [B]


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token."""
    return logits.argmax(-1)


class TopP:
    """A token drawn among the likeliest whose probabilities reach `share`, or among the `most` likeliest; draws from `generator`."""

    def __init__(self, generator: torch.Generator, share: float = 1.0, most: int = 0, temperature: float = 1.0) -> None:
        self.generator, self.share, self.most, self.temperature = generator, share, most, temperature

    def __call__(self, logits: Tensor) -> Tensor:
        chances, ids = (logits.float() / self.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        left_out = chances.cumsum(-1) - chances >= self.share
        if self.most:
            left_out[:, self.most :] = True
        drawn = torch.multinomial(chances.masked_fill(left_out, 0).cpu(), 1, generator=self.generator).to(ids.device)
        return ids.gather(1, drawn)[:, 0]


@torch.inference_mode()
def write_captions(model: CoCa, pixels: Tensor, begin: int, end: int, length: int, choose: Choose = greedy) -> Tensor:
    """int64 [B, at most length]: from the begin token to the end token, which then fills the row; the picture is encoded once and the text
    decoder runs once a token."""
    memory = model.text.begin(model.encode(pixels).tokens)
    ids = torch.full((len(pixels),), begin, device=pixels.device)
    rows, done = [ids], torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    while len(rows) < length and not bool(done.all()):
        logits, memory = model.text.step(ids, memory)
        ids = choose(logits).masked_fill(done, end)
        done = done | (ids == end)
        rows.append(ids)
    return torch.stack(rows, dim=1)


@torch.inference_mode()
def beam_search(model: CoCa, pixels: Tensor, begin: int, end: int, length: int, beams: int = 4) -> Tensor:
    """int64 [B, at most length]: of the captions that a beam keeps the one with the highest mean log-probability a token."""
    B, tokens = len(pixels), model.encode(pixels).tokens
    memory = model.text.begin(tokens.repeat_interleave(beams, 0))
    rows = torch.full((B * beams, 1), begin, device=pixels.device)
    scores = torch.full((B, beams), -torch.inf, device=pixels.device)
    scores[:, 0] = 0  # all beams begin alike: one of them goes on
    lengths = torch.zeros(B, beams, device=pixels.device)
    while rows.shape[1] < length and not bool((rows[:, -1] == end).all()):
        logits, memory = model.text.step(rows[:, -1], memory)
        done = rows[:, -1] == end
        logs = F.log_softmax(logits.float(), -1)
        logs[done] = -torch.inf
        logs[done, end] = 0  # a finished caption has one future, which costs nothing
        V = logs.shape[-1]
        scores, place = (scores[..., None] + logs.view(B, beams, V)).flatten(1).topk(beams, -1)
        source = (place // V + torch.arange(B, device=place.device)[:, None] * beams).flatten()
        lengths = lengths.flatten()[source].view(B, beams) + (~done[source]).view(B, beams)
        rows = torch.cat([rows[source], (place % V).view(-1, 1)], dim=1)
        memory = memory._replace(own=[(key[source], value[source]) for key, value in memory.own])
    best = (scores / lengths.clamp(min=1)).argmax(1) + torch.arange(B, device=rows.device) * beams
    return rows[best]
