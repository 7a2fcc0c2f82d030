"""Captions of pictures by CoCa (arXiv:2205.01917): a picture is encoded once, and the text decoder runs once a token, on what it remembers.

B batch, W beams, T text tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.world_model.encoders.coca import CoCa

Choose = Callable[[Tensor], Tensor]  # logits [B, V] -> ids [B]


class Written(NamedTuple):
    """One caption a picture."""

    ids: Tensor  # int64 [B, T] from the begin token to the end token, which then fills the row
    scores: Tensor  # float32 [B]: mean log-probability of the tokens behind the first, up to the end token and with it


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
def write_captions(model: CoCa, pixels: Tensor, begin: int, end: int, length: int, choose: Choose = greedy) -> Written:
    """Captions of at most `length` tokens, begin and end included."""
    return _write(model, model.encode(pixels).tokens, begin, end, length, choose)


@torch.inference_mode()
def beam_search(model: CoCa, pixels: Tensor, begin: int, end: int, length: int, beams: int = 4) -> Written:
    """Of the captions that a beam keeps, and the greedy one, which a narrow beam may lose on the way, the one with the best score."""
    tokens = model.encode(pixels).tokens
    plain = _write(model, tokens, begin, end, length, greedy)
    found = _beam(model, tokens, begin, end, length, beams)
    longer = max(plain.ids.shape[1], found.ids.shape[1])
    ours, theirs = (F.pad(each.ids, (0, longer - each.ids.shape[1]), value=end) for each in (found, plain))
    better = found.scores > plain.scores
    return Written(ours.where(better[:, None], theirs), found.scores.where(better, plain.scores))


def _write(model: CoCa, picture: Tensor, begin: int, end: int, length: int, choose: Choose) -> Written:
    B = len(picture)
    memory = model.text.begin(picture)
    ids, done = torch.full((B,), begin, device=picture.device), torch.zeros(B, dtype=torch.bool, device=picture.device)
    rows, total, count = [ids], torch.zeros(B, device=picture.device), torch.zeros(B, device=picture.device)
    while len(rows) < length and not bool(done.all()):
        logits, memory = model.text.step(ids, memory)
        ids = choose(logits).masked_fill(done, end)
        logs = F.log_softmax(logits.float(), -1).gather(1, ids[:, None])[:, 0]
        total, count = total + logs.masked_fill(done, 0), count + ~done
        done = done | (ids == end)
        rows.append(ids)
    return Written(torch.stack(rows, dim=1), total / count.clamp(min=1))


def _beam(model: CoCa, picture: Tensor, begin: int, end: int, length: int, beams: int) -> Written:
    B = len(picture)
    memory = model.text.begin(picture.repeat_interleave(beams, 0))
    rows = torch.full((B * beams, 1), begin, device=picture.device)
    totals = torch.full((B, beams), -torch.inf, device=picture.device)
    totals[:, 0] = 0  # all beams begin alike: one of them goes on
    counts = torch.zeros(B, beams, device=picture.device)
    while rows.shape[1] < length and not bool((rows[:, -1] == end).all()):
        logits, memory = model.text.step(rows[:, -1], memory)
        done = rows[:, -1] == end
        logs = F.log_softmax(logits.float(), -1)
        logs[done] = -torch.inf
        logs[done, end] = 0  # a finished caption has one future, which costs nothing
        V = logs.shape[-1]
        totals, place = (totals[..., None] + logs.view(B, beams, V)).flatten(1).topk(beams, -1)
        source = (place // V + torch.arange(B, device=place.device)[:, None] * beams).flatten()
        counts = counts.flatten()[source].view(B, beams) + (~done[source]).view(B, beams)
        rows = torch.cat([rows[source], (place % V).view(-1, 1)], dim=1)
        memory = memory.of(source)
    scores, best = (totals / counts.clamp(min=1)).max(1)
    return Written(rows[best + torch.arange(B, device=rows.device) * beams], scores)
