"""Whole segments written in a few steps: all codes at once, the least certain hidden again (MaskGIT, arXiv:2202.04200, section 3.2).

Each step predicts every hidden code of every row; of the N codes of a segment, floor(N cos(pi r / 2)) stay hidden after the share r of the
steps, those whose log-probability, jolted by Gumbel noise that dies away, is lowest. A code that was kept never changes. Needs a model that
learnt from hidden codes (see masked). A row's result is a function of its prompt and its seed, whatever else is in the batch.

Of a stream on the clock, the codes of all steps are one segment; other streams of the clock may be given, and are seen before and behind.
"""

from collections.abc import Mapping, Sequence
from math import cos, floor, pi

import numpy as np
import torch
from torch import Tensor

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import runs_of
from worldloom.world_model.grammar import BEFORE, BETWEEN, Grammar
from worldloom.world_model.next_token import uniform
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.weave import weave_one

_CODE, _ORDER = 0xC0DE, 0x0DE4  # what a draw is for


@torch.inference_mode()
def fill_in(
    model: WorldModel,
    grammar: Grammar,
    prompts: Sequence[np.ndarray],
    streams: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 12,
    temperature: float = 1.0,
    jolt: float = 4.5,
    guidance: float = 1.0,
    given: Sequence[Mapping[str, np.ndarray]] | None = None,
) -> list[np.ndarray]:
    """Each prompt (<bos> and whole segments) with one more segment, of its stream in `streams`, and <eos>; int64 tokens.

    `given`: for every row, codes of other streams of the clock, woven into the steps of its stream.
    `temperature` 0 takes the likeliest codes; `jolt` scales the noise on the order in which codes are kept (4.5 in the paper), 0 keeps the
    likeliest. `guidance` s takes u + s (c - u), for logits c in sight of the prompt and u without it.
    ValueError for a stream whose length varies: nobody would know how many codes to hide.
    """
    if not len(prompts) == len(streams) == len(seeds):
        raise ValueError(
            f"every prompt has one stream and one seed, got {len(prompts)} prompts, {len(streams)} streams, {len(seeds)} seeds"
        )
    if steps < 1:
        raise ValueError(f"at least one step is needed, got {steps}")
    beside = [{}] * len(prompts) if given is None else given
    rows = [_Row(grammar, *each) for each in zip(prompts, streams, seeds, beside, strict=True)]
    for step in range(steps):
        logits = _logits(model, [row.tokens for row in rows])
        if guidance != 1:
            free = _logits(model, [row.alone() for row in rows])
            logits = [_behind(u, len(c)) + guidance * (c - _behind(u, len(c))) for c, u in zip(logits, free, strict=True)]
        for row, of_row in zip(rows, logits, strict=True):
            row.write(of_row, step, steps, temperature, jolt)
    return [row.tokens for row in rows]


def kept_hidden(codes: int, hidden: int, step: int, steps: int) -> int:
    """Of `codes` in all and `hidden` now, how many stay hidden after `step` (0, 1, ...): none after the last, at least one is written."""
    if step == steps - 1:
        return 0
    return max(0, min(floor(codes * cos(pi / 2 * (step + 1) / steps)), hidden - 1))


class _Row:
    """One sample, whole from the first: what is not yet known is hidden."""

    def __init__(self, grammar: Grammar, prompt: np.ndarray, stream: str, seed: int, given: Mapping[str, np.ndarray]) -> None:
        ids = grammar.vocabulary
        number = ids.index(stream)
        about = ids.streams[number]
        if not about.fixed:
            raise ValueError(
                f"segments of {stream!r} differ in length, so they are written token by token; ask for a stream of a fixed shape"
            )
        clock = ids.clock.streams if ids.clock is not None else ()
        if given and not {stream, *given} <= {*clock}:
            raise ValueError(f"only streams of one clock stand beside each other; {stream} and {', '.join(given)} do not")
        prompt = np.asarray(prompt, dtype=np.int64)
        state = grammar.follow(prompt.tolist())
        if state.stream != BETWEEN or number not in grammar.openable(state) or (stream in clock and state.step != BEFORE):
            raise ValueError(f"<{stream}> may not open behind this prompt: it is there already, or a segment is still open")
        codes = {**given, stream: np.zeros(about.max_length, np.int64)}
        woven = weave_one(grammar, [(name, codes[name]) for name in grammar.arranged(list(codes))])
        self.tokens = np.concatenate([prompt, woven.tokens[1:]])
        self.at = len(prompt) - 1 + np.flatnonzero(woven.legal == number)
        self.tokens[self.at] = ids.mask
        self.prompted, self.codes, self.seed, self.bos = len(prompt), about.max_length, seed, ids.bos
        self.spans = [ids.level(number, level) for level in range(about.levels)]
        self.hidden = np.ones(about.max_length, bool)

    def alone(self) -> np.ndarray:
        """The same without the prompt's segments."""
        return np.concatenate([[self.bos], self.tokens[self.prompted :]])

    def write(self, logits: Tensor, step: int, steps: int, temperature: float, jolt: float) -> None:
        """Draws the hidden codes from `logits` [length, V] and keeps the surest of them."""
        if not self.hidden.any():
            return
        places = np.flatnonzero(self.hidden)
        level = places % len(self.spans)
        first = np.array([span.start for span in self.spans])[level]
        size = len(self.spans[0])
        columns = torch.from_numpy(first)[:, None] + torch.arange(size)
        at = torch.from_numpy(self.at[places])
        log_p = torch.log_softmax(logits[at.to(logits.device)].cpu().gather(1, columns).double(), dim=1)
        drawn = log_p.argmax(1)
        key = np.full(len(places), step * self.codes) + places
        if temperature > 0:
            p = torch.softmax(log_p / temperature, dim=1).cumsum(1)
            luck = torch.from_numpy(uniform(_CODE, np.full(len(places), self.seed), key))[:, None]
            drawn = torch.searchsorted(p, luck * p[:, -1:], right=True)[:, 0].clamp_(max=size - 1)
        sure = log_p.gather(1, drawn[:, None])[:, 0].numpy()
        if jolt:
            noise = uniform(_ORDER, np.full(len(places), self.seed), key).clip(1e-12, 1 - 1e-12)
            sure = sure - jolt * (1 - (step + 1) / steps) * np.log(-np.log(noise))
        stay = kept_hidden(self.codes, len(places), step, steps)
        surest = np.argsort(sure, kind="stable")[stay:]
        self.hidden[places[surest]] = False
        self.tokens[self.at[places[surest]]] = (first + drawn.numpy())[surest]


def _behind(logits: Tensor, length: int) -> Tensor:
    """The logits of a row without its prompt, at the places that they have in one of `length` tokens with it."""
    return torch.cat([logits.new_zeros(length - len(logits), logits.shape[1]), logits])


def _logits(model: WorldModel, rows: Sequence[np.ndarray]) -> list[Tensor]:
    """[T, V] of every row, each seeing itself whole."""
    device = model.output.device
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    lengths = [len(rows[row]) for row in by_length]
    tokens = torch.from_numpy(np.concatenate([rows[row] for row in by_length])).to(device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    runs = [run._replace(causal=False) for run in runs_of(np.array(lengths))]
    hidden = torch.split(model(tokens, positions, PackedAttention(runs)), lengths)
    found = dict(zip(by_length, (model.logits(part) for part in hidden), strict=True))
    return [found[row] for row in range(len(rows))]
