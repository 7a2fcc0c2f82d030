"""Sampling with a cache of keys and values; every row of a batch is in its own state of the grammar.

A row's result is a function of its prompt and its seed: noise is counter-based, and no row sees another.

B rows, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldloom.world_model.attention import CachedAttention
from worldloom.world_model.grammar import BETWEEN, END, Grammar
from worldloom.world_model.next_token import ORDER, uniform
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.weave import weave_one

NOISE = 0x5EED  # keeps these draws apart from those of training


class Generated(NamedTuple):
    """Whole samples, prompts included, and how far the model alone would have gone astray."""

    tokens: list[np.ndarray]  # int64, from <bos> to <eos>
    illegal: dict[str, float]  # mean probability that the model gave to illegal tokens, by stream and for "order"


def prompt(grammar: Grammar, segments: Sequence[tuple[str, Sequence[int] | np.ndarray]]) -> np.ndarray:
    """The tokens of a sample that is to be gone on with: <bos> and whole segments, in the order given."""
    return weave_one(grammar, segments).tokens[:-1]


@torch.inference_mode()
def generate(
    model: WorldModel,
    grammar: Grammar,
    prompts: Sequence[np.ndarray],
    want: Sequence[str] | None = None,
    *,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    length: int | None = None,
) -> Generated:
    """Goes on from every prompt (tokens from <bos> on, maybe in the middle of a segment) to its <eos>.

    `want` names the streams to write, in turn, after whatever segment the prompt leaves open; None leaves the choice to the model, <eos>
    too. `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave out nothing. `guidance` s takes u + s (c - u), for logits c
    behind the prompt and u behind <bos> alone (arXiv:2207.12598). A sample has at most `length` tokens (None: as long as it may get).
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature and top_k must be at least 0 and top_p in (0, 1], got {temperature}, {top_k}, {top_p}")
    rows = [_Row(grammar, tokens, want, seed, length) for tokens, seed in zip(prompts, seeds, strict=True)]
    writer = _Writer(model, grammar, rows, guided=guidance != 1)
    masks = _Masks(grammar, model.output.device)
    while rows := [row for row in rows if not row.done()]:
        logits = writer.logits(rows, guidance)
        may = masks(row.legal for row in rows)
        outside = (1 - (torch.softmax(logits, dim=1) * may).sum(dim=1)).clamp_(min=0)
        logits.masked_fill_(~masks(row.allowed() for row in rows), -torch.inf)
        noise = uniform(NOISE, np.array([row.seed for row in rows]), np.array([len(row.tokens) for row in rows]))
        drawn = choose(logits, temperature, top_k, top_p, torch.from_numpy(noise).to(logits.device))
        for row, token, illegal in zip(rows, drawn.tolist(), outside.tolist(), strict=True):
            row.write(token, illegal)
    return Generated([np.array(row.tokens, dtype=np.int64) for row in writer.all], _by_stream(grammar, writer.all))


def choose(logits: Tensor, temperature: float, top_k: int, top_p: float, noise: Tensor) -> Tensor:
    """One id for every row of `logits` [B, V], where -inf is never chosen; `noise` [B], float64 in [0, 1), decides."""
    if temperature == 0:
        return logits.argmax(dim=1)
    # The likeliest at 0, and in float64, so that a temperature close to nothing gives neither infinities nor 0 / 0.
    logits = (logits - logits.amax(dim=1, keepdim=True)).double() / temperature
    if 0 < top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    p = torch.softmax(logits, dim=1)
    if top_p < 1:
        sorted_p, ids = p.sort(dim=1, descending=True, stable=True)
        # An id stays if those before it do not reach top_p: the likeliest always stays.
        out = sorted_p.cumsum(dim=1) - sorted_p >= top_p
        p = p.scatter(1, ids, sorted_p.masked_fill(out, 0.0))
    reached = p.cumsum(dim=1)
    total = reached[:, -1]
    # Below the total even where the product rounds up to it, so that an id of probability 0 is never met.
    target = torch.minimum(noise * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(reached, target[:, None], right=True)[:, 0]


class _Row:
    """One sample being written."""

    def __init__(self, grammar: Grammar, tokens: np.ndarray, want: Sequence[str] | None, seed: int, length: int | None) -> None:
        self.grammar, self.seed = grammar, seed
        self.tokens: list[int] = np.asarray(tokens, dtype=np.int64).tolist()
        if not self.tokens:
            raise ValueError("a prompt begins with <bos>; this one is empty")
        self.prompted = len(self.tokens)
        ids = grammar.vocabulary
        self.want = None if want is None else [ids.indicator(ids.index(name)) for name in grammar.arranged(want)]
        longest = 2 + sum(stream.tokens for stream in ids.streams) if length is None else length
        self.state = grammar.follow(self.tokens, grammar.start(longest))
        self.legal = grammar.legal(self.state)
        self.illegal: list[tuple[int, float]] = []

    def allowed(self) -> tuple[range, ...]:
        """What may follow: the legal ids or, between segments, the one that was asked for."""
        if self.want is None or self.state.stream != BETWEEN:
            return self.legal
        token = self.want[0] if self.want else self.grammar.vocabulary.eos
        onward = self.grammar.onward(self.state)
        if onward is not None and not any(token in ids for ids in self.legal):
            token = self.grammar.vocabulary.indicator(onward)
        if not any(token in ids for ids in self.legal):
            raise ValueError(
                f"{self.grammar.describe(token)} was asked for, but the sample has it already or has no room for it "
                f"({self.state.left} tokens left); ask for each stream once, and none that the prompt holds"
            )
        return (range(token, token + 1),)

    def write(self, token: int, illegal: float) -> None:
        self.illegal.append((self.state.stream, illegal))
        self._write(token)

    def _write(self, token: int) -> None:
        if self.want and token == self.want[0]:
            self.want.pop(0)
        self.state = self.grammar.step(self.state, token)
        self.tokens.append(token)
        self.legal = self.grammar.legal(self.state)

    def done(self) -> bool:
        """Whether the sample is whole; if nothing is left to choose, its last tokens are written without asking the model."""
        while self.state.stream != END:
            allowed = self.allowed()
            if len(allowed) > 1 or len(allowed[0]) > 1 or (self.state.stream == BETWEEN and self.want):
                return False
            if (self.state.stream >= 0 and (self.want is None or self.want)) or self.grammar.onward(self.state) is not None:
                return False  # a forced token in the middle: what follows it needs its keys and values
            self._write(allowed[0].start)
        return True


class _Writer:
    """Feeds what rows have written since the last call, and gives the logits behind it."""

    def __init__(self, model: WorldModel, grammar: Grammar, rows: Sequence[_Row], guided: bool) -> None:
        self.model, self.all = model, list(rows)
        self.bos = grammar.vocabulary.bos
        self.rows = list(rows)
        self.guided = guided
        shape = model.shape
        longest = max((row.prompted + row.state.left for row in rows), default=0)
        self.cache = CachedAttention(shape.depth, len(rows) * (1 + guided), longest, shape.kv_heads, shape.head_width, model.output)
        self.fed = False

    def logits(self, rows: Sequence[_Row], guidance: float) -> Tensor:
        """[B, V] for `rows`, some of those of the last call in their order."""
        self._drop(rows)
        if not self.guided:
            return self._feed([row.tokens for row in rows])
        # The guiding rows hold the same tokens without the prompt's segments.
        both = self._feed([row.tokens for row in rows] + [[self.bos, *row.tokens[row.prompted :]] for row in rows])
        given, free = both.chunk(2)
        return free + guidance * (given - free)

    def _drop(self, rows: Sequence[_Row]) -> None:
        if len(rows) == len(self.rows):
            return
        left = set(map(id, rows))
        keep = [place for place, row in enumerate(self.rows) if id(row) in left]
        if self.guided:
            keep += [place + len(self.rows) for place in keep]
        self.cache.keep(torch.tensor(keep, device=self.model.output.device))
        self.rows = list(rows)

    def _feed(self, written: Sequence[list[int]]) -> Tensor:
        device = self.model.output.device
        lengths = [len(tokens) for tokens in written]
        if self.fed:
            tokens = torch.tensor([tokens[-1:] for tokens in written], device=device)
            positions = torch.tensor(lengths, device=device)[:, None] - 1
            last = torch.arange(len(written), device=device)
        else:
            # Behind the end of a short prompt stands anything: nobody sees it, and what is written later overwrites it.
            width = max(lengths)
            tokens = torch.tensor([tokens + [self.bos] * (width - len(tokens)) for tokens in written], device=device)
            positions = torch.arange(width, device=device).expand(len(written), width)
            last = torch.arange(len(written), device=device) * width + torch.tensor(lengths, device=device) - 1
            self.fed = True
        hidden = self.model(tokens.flatten(), positions.flatten(), self.cache.at(positions, max(lengths)))
        return self.model.logits(hidden[last])


class _Masks:
    """Legal sets as rows of booleans, each made once."""

    def __init__(self, grammar: Grammar, device: torch.device) -> None:
        self.size, self.device = grammar.vocabulary.size, device
        self.number: dict[tuple[range, ...], int] = {}
        self.table = torch.zeros(0, self.size, dtype=torch.bool, device=device)

    def __call__(self, legal: Iterable[tuple[range, ...]]) -> Tensor:
        """bool [B, V]."""
        sets = list(legal)
        for ranges in sets:
            if ranges not in self.number:
                self.number[ranges] = len(self.number)
                row = torch.zeros(1, self.size, dtype=torch.bool, device=self.device)
                for ids in ranges:
                    row[:, ids.start : ids.stop] = True
                self.table = torch.cat([self.table, row])
        return self.table[torch.tensor([self.number[ranges] for ranges in sets], device=self.device)]


def _by_stream(grammar: Grammar, rows: Sequence[_Row]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for stream, illegal in chain.from_iterable(row.illegal for row in rows):
        found.setdefault(grammar.vocabulary.streams[stream].name if stream >= 0 else ORDER, []).append(illegal)
    return {name: float(np.mean(values)) for name, values in found.items()}
