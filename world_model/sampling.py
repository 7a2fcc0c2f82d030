"""Sampling with a cache of keys and values; every row of a batch is in its own state of the grammar and wants streams of its own.

A row's result is a function of its prompt, its seed and what it wants: noise is counter-based, no row sees another, and the decoder adds
up alike for any number of rows. Logits are computed only for the ids that may follow, of all rows in the same legal set at once.

B rows, V vocabulary, C ids of a legal set.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from worldloom.world_model.decoder import Cache, Decoder
from worldloom.world_model.grammar import BETWEEN, END, Grammar
from worldloom.world_model.kernels import compiled
from worldloom.world_model.next_token import ORDER, uniform
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.weave import weave_one

NOISE = 0x5EED  # keeps these draws apart from those of training
_AHEAD = 64  # draws of a row that are made at a time
_SPARSE = 0.75  # the cache is made smaller once so few of its rows are still written

Ranges = tuple[range, ...]
Want = Sequence[str] | None
Hear = Callable[[int, Sequence[int]], None]  # the number of a row, and its tokens so far


def prompt(grammar: Grammar, segments: Sequence[tuple[str, Sequence[int] | np.ndarray]]) -> np.ndarray:
    """The tokens of a sample that is to be gone on with: <bos> and whole segments, in the order given; nothing is seen ahead of it."""
    return np.concatenate([grammar.vocabulary.unseen, weave_one(grammar, segments).tokens[:-1]])


@torch.inference_mode()
def generate(
    model: WorldModel | Decoder,
    grammar: Grammar,
    prompts: Sequence[np.ndarray],
    want: Want | Sequence[Want] = None,
    *,
    seeds: Sequence[int],
    temperature: float | Mapping[str, float] = 1.0,
    top_k: int | Mapping[str, int] = 0,
    top_p: float | Mapping[str, float] = 1.0,
    guidance: float = 1.0,
    length: int | None = None,
    hear: Hear | None = None,
) -> list[np.ndarray]:
    """Every prompt (tokens from <bos> on, maybe in the middle of a segment), gone on with to its <eos>; int64 tokens.

    `want` names the streams to write, in turn, after whatever segment the prompt leaves open; None leaves the choice to the model, <eos>
    too. It is one for all rows, or a list with one for each. `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave out
    nothing; each is one number, or one for each stream that is named ("order" for what stands between segments), else 1, 0 and 1.
    `guidance` s takes u + s (c - u), for logits c behind the prompt and u behind <bos> alone (arXiv:2207.12598). A sample has at most
    `length` tokens (None: as long as it may get). `hear` hears of every token that is drawn.
    """
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    rules = Rules(grammar, temperature, top_k, top_p)
    wants = wants_of(want, len(prompts))
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    rows = [_Row(grammar, tokens, mine, seed, length) for tokens, mine, seed in zip(prompts, wants, seeds, strict=True)]
    write(decoder, rules, rows, guidance, hear)
    return [np.array(row.tokens, dtype=np.int64) for row in rows]


@torch.inference_mode()
def write(decoder: Decoder, rules: "Rules", rows: Sequence["Row"], guidance: float = 1.0, hear: Hear | None = None) -> None:
    """Goes on with every row until it is done."""
    writer = _Writer(decoder, rows, guidance)
    numbers = {id(row): number for number, row in enumerate(rows)}
    while left := [row for row in writer.rows if row is not None and not row.done()]:
        hidden = writer.hidden(left)
        for (stream, ids), members in _alike(left).items():
            mine = slice(None) if len(members) == len(left) else torch.tensor(members, device=decoder.device)
            if sum(map(len, ids)) == 1:
                drawn = [ids[0].start] * len(members)
            else:
                noise = torch.tensor([left[member].noise() for member in members], dtype=torch.float64, device=decoder.device)
                picked = choose(writer.mixed(hidden, ids, mine), *rules.of(stream), noise)
                drawn = _tokens(ids, picked.tolist())
            for member, token in zip(members, drawn, strict=True):
                left[member].write(token)
                if hear is not None:
                    hear(numbers[id(left[member])], left[member].tokens)


def choose(logits: Tensor, temperature: float, top_k: int, top_p: float, noise: Tensor) -> Tensor:
    """One column for every row of `logits` [B, C], where -inf is never chosen; `noise` [B], float64 in [0, 1), decides."""
    if temperature == 0:
        return logits.argmax(dim=1)
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and not 0 < top_k < logits.shape[1] and top_p == 1:
        kernels = compiled()
        if kernels is not None:
            return kernels.draw(logits.contiguous(), noise.contiguous(), max(temperature, 1e-30))
    # The likeliest at 0 and the divisor no denormal, so that a temperature close to nothing gives neither infinities nor 0 / 0.
    logits = (logits - logits.amax(dim=1, keepdim=True)) / max(temperature, 1e-30)
    if 0 < top_k < logits.shape[1]:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    p = logits.exp_()
    if top_p < 1:
        sorted_p, ids = p.double().sort(dim=1, descending=True, stable=True)
        # An id stays if those before it do not reach top_p: the likeliest always stays.
        before = sorted_p.cumsum(dim=1) - sorted_p
        out = before >= top_p * sorted_p.sum(dim=1, keepdim=True)
        p = p.scatter(1, ids, sorted_p.masked_fill(out, 0.0).to(p.dtype))
    reached = p.cumsum(dim=1, dtype=torch.float64)
    total = reached[:, -1]
    # Below the total even where the product rounds up to it, so that an id of probability 0 is never met.
    target = torch.minimum(noise * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(reached, target[:, None], right=True)[:, 0]


class Rules:
    """How each stream's tokens are chosen."""

    def __init__(
        self, grammar: Grammar, temperature: float | Mapping[str, float], top_k: int | Mapping[str, int], top_p: float | Mapping[str, float]
    ) -> None:
        names = [stream.name for stream in grammar.vocabulary.streams]
        for what, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
            if isinstance(value, Mapping) and (unknown := sorted(set(value) - {*names, ORDER})):
                raise ValueError(f"{what} names {', '.join(unknown)}, but the streams are {', '.join([*names, ORDER])}")
        self._between = self._rule(ORDER, temperature, top_k, top_p)
        self._streams = [self._rule(name, temperature, top_k, top_p) for name in names]

    def of(self, stream: int) -> tuple[float, int, float]:
        """Temperature, top_k and top_p of a stream by number, negative between segments."""
        return self._streams[stream] if stream >= 0 else self._between

    @staticmethod
    def _rule(
        name: str, temperature: float | Mapping[str, float], top_k: int | Mapping[str, int], top_p: float | Mapping[str, float]
    ) -> tuple[float, int, float]:
        t = temperature.get(name, 1.0) if isinstance(temperature, Mapping) else temperature
        k = top_k.get(name, 0) if isinstance(top_k, Mapping) else top_k
        p = top_p.get(name, 1.0) if isinstance(top_p, Mapping) else top_p
        if t < 0 or k < 0 or not 0 < p <= 1:
            raise ValueError(f"temperature and top_k must be at least 0 and top_p in (0, 1], got {t}, {k}, {p}")
        return t, k, p


class Row(ABC):
    """A sample being written: what it has so far, and what may follow."""

    def __init__(self, tokens: np.ndarray, seed: int) -> None:
        self.tokens: list[int] = np.asarray(tokens, dtype=np.int64).tolist()
        if not self.tokens:
            raise ValueError("a prompt begins with <bos>; this one is empty")
        self.seed, self.prompted = seed, len(self.tokens)
        self._noise: list[float] = []
        self._noise_from = 0

    @property
    @abstractmethod
    def stream(self) -> int:
        """Number of the open stream, negative between segments."""

    @abstractmethod
    def allowed(self) -> Ranges:
        """What may follow: the legal ids or, of them, what is asked for."""

    @abstractmethod
    def write(self, token: int) -> None:
        """Takes one token more."""

    @abstractmethod
    def done(self) -> bool:
        """Whether the sample is whole; if nothing is left to choose, its last tokens are written without asking the model."""

    def noise(self) -> float:
        """The draw, in [0, 1), that decides on the next token: a function of the seed and of its place."""
        place = len(self.tokens)
        if not 0 <= place - self._noise_from < len(self._noise):
            self._noise_from = place
            self._noise = uniform(NOISE, np.full(_AHEAD, self.seed), place + np.arange(_AHEAD)).tolist()
        return self._noise[place - self._noise_from]


class _Row(Row):
    """A sample that goes on by the grammar."""

    def __init__(self, grammar: Grammar, tokens: np.ndarray, want: Want, seed: int, length: int | None) -> None:
        super().__init__(tokens, seed)
        self.grammar = grammar
        ids = grammar.vocabulary
        self.want = None if want is None else [ids.indicator(ids.index(name)) for name in grammar.arranged(want)]
        longest = 2 + sum(stream.tokens for stream in ids.streams) if length is None else length
        self.state = grammar.follow(ids.own(self.tokens).tolist(), grammar.start(longest))
        self.legal = grammar.legal(self.state)

    @property
    def stream(self) -> int:
        return self.state.stream

    def allowed(self) -> Ranges:
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

    def write(self, token: int) -> None:
        if self.want and token == self.want[0]:
            self.want.pop(0)
        self.state = self.grammar.step(self.state, token)
        self.tokens.append(token)
        self.legal = self.grammar.legal(self.state)

    def done(self) -> bool:
        while self.state.stream != END:
            if (self.state.stream >= 0 and (self.want is None or self.want)) or self.grammar.onward(self.state) is not None:
                return False  # a forced token in the middle: what follows it needs its keys and values
            allowed = self.allowed()
            if len(allowed) > 1 or len(allowed[0]) > 1 or (self.state.stream == BETWEEN and self.want):
                return False
            self.write(allowed[0].start)
        return True


class _Writer:
    """Feeds what rows have written since the last call, and gives what the model has to say behind it."""

    def __init__(self, decoder: Decoder, rows: Sequence[Row], guidance: float) -> None:
        self.decoder, self.guidance = decoder, guidance
        self.guided = guidance != 1
        self.rows: list[Row | None] = list(rows)  # None: a row that is done and whose place in the cache is still there
        self.cache = Cache(decoder, 0)
        self.begun = False

    def hidden(self, left: Sequence[Row]) -> Tensor:
        """[B, D] for `left`, some of the rows in their order; with guidance those of the free rows follow, [2B, D]."""
        self._drop(left)
        size, ahead = self.decoder.shape.vocab_size, self.decoder.shape.ahead
        bos = left[0].tokens[ahead]
        places = [place for place, row in enumerate(self.rows) if row is not None]
        if not self.begun:
            # The free rows hold the same tokens without the prompt's segments, and see nothing.
            free = [[*range(size, size + ahead), bos, *row.tokens[row.prompted :]] for row in left] if self.guided else []
            self.cache, self.begun = Cache(self.decoder, len(left) + len(free)), True
            return self.cache.begin([*(row.tokens for row in left), *free])
        tokens = [bos if row is None else row.tokens[-1] for row in self.rows]
        positions = [0 if row is None else len(row.tokens) - 1 for row in self.rows]
        if self.guided:
            tokens += tokens
            positions += [0 if row is None else ahead + len(row.tokens) - row.prompted for row in self.rows]
            places += [place + len(self.rows) for place in places]
        device = self.decoder.device
        taken, places_of = (torch.tensor(each, device=device)[:, None] for each in (tokens, positions))
        hidden = self.cache.go_on(taken, places_of, max(positions) + 1)
        return hidden if len(places) == len(hidden) else hidden[torch.tensor(places, device=device)]

    def mixed(self, hidden: Tensor, ids: Ranges, rows: Tensor | slice) -> Tensor:
        """Logits [n, C] of `ids` for some of the rows that `hidden` was given for, guided."""
        if not self.guided:
            return self.decoder.logits(hidden[rows], ids)
        given, free = (self.decoder.logits(part[rows], ids) for part in hidden.chunk(2))
        return free + self.guidance * (given - free)

    def _drop(self, left: Sequence[Row]) -> None:
        if not self.begun or len(left) <= _SPARSE * len(self.rows):
            going = set(map(id, left))
            keep = [place for place, row in enumerate(self.rows) if id(row) in going]
            if self.begun and len(keep) < len(self.rows):
                both = keep + [place + len(self.rows) for place in keep] * self.guided
                self.cache.keep(torch.tensor(both, device=self.decoder.device))
            self.rows = list(left)
        elif len(left) < sum(row is not None for row in self.rows):
            going = set(map(id, left))
            self.rows = [row if id(row) in going else None for row in self.rows]


def wants_of(want: Want | Sequence[Want], rows: int) -> list[Want]:
    """What each row wants."""
    if want is None or all(isinstance(name, str) for name in want):
        return [want] * rows  # type: ignore[list-item]
    if len(want) != rows:
        raise ValueError(f"{rows} prompts need one list of streams for all, or as many lists, got {len(want)}")
    return list(want)


def _alike(rows: Sequence[Row]) -> dict[tuple[int, Ranges], list[int]]:
    """Which rows choose from the same ids within the same stream."""
    found: dict[tuple[int, Ranges], list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault((row.stream, row.allowed()), []).append(number)
    return found


def _tokens(ids: Ranges, columns: Sequence[int]) -> list[int]:
    """The ids that stand at these columns."""
    if len(ids) == 1:
        return [ids[0].start + column for column in columns]
    every = [token for one in ids for token in one]
    return [every[column] for column in columns]
