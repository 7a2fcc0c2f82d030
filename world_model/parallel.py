"""Whole segments written in a few steps: all codes at once, the least certain hidden again (MaskGIT, arXiv:2202.04200, section 3.2).

Each step predicts every hidden code of every row; of the N codes of a segment, floor(N cos(pi r / 2)) stay hidden after the share r of the
steps, those whose log-probability, jolted by Gumbel noise that dies away, is lowest. A code that was kept never changes. Needs a model that
learnt from hidden codes (see masked). A row's draws are a function of its prompt and its seed. Its logits come of one pass over all rows:
what else is in the batch may change their last bits, and so, in bfloat16, in rare cases a code.

Of a stream on the clock, the codes of all steps are one segment; other streams of the clock may be given, and are seen before and behind.
"""

from collections.abc import Callable, Mapping, Sequence
from math import cos, floor, pi
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldloom.world_model.decoder import Decoder, Whole
from worldloom.world_model.example import runs_of
from worldloom.world_model.grammar import BEFORE, BETWEEN, Grammar
from worldloom.world_model.next_token import uniform
from worldloom.world_model.sampling import Hear, Rules, choose
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.vocabulary import CodeStream
from worldloom.world_model.weave import weave_one

_CODE, _ORDER = 0xC0DE, 0x0DE4  # what a draw is for
Order = Literal["confidence", "random", "raster"]


@torch.inference_mode()
def fill_in(
    model: WorldModel | Decoder,
    grammar: Grammar,
    prompts: Sequence[np.ndarray],
    streams: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 12,
    temperature: float | Mapping[str, float] = 1.0,
    top_k: int | Mapping[str, int] = 0,
    top_p: float | Mapping[str, float] = 1.0,
    jolt: float = 4.5,
    guidance: float = 1.0,
    order: Order = "confidence",
    given: Sequence[Mapping[str, np.ndarray]] | None = None,
    lengths: Sequence[int | None] | None = None,
    hear: Hear | None = None,
) -> list[np.ndarray]:
    """Each prompt (<bos> and whole segments) with one more segment, of its stream in `streams`, and <eos>; int64 tokens.

    `given`: for every row, codes of other streams of the clock, woven into the steps of its stream.
    `temperature`, `top_k` and `top_p` as in sampling. `order`: which codes are kept first, the surest, any, or those in front; `jolt`
    scales the noise on the surest (4.5 in the paper), 0 keeps the likeliest. `guidance` s takes u + s (c - u), for logits c in sight of
    the prompt and u without it. `lengths`: codes of every row's segment, which must be said where a stream's length varies, or nobody
    would know how many to hide; None for one of fixed shape. `hear` is called with every row after each step.
    """
    if not len(prompts) == len(streams) == len(seeds):
        raise ValueError(
            f"every prompt has one stream and one seed, got {len(prompts)} prompts, {len(streams)} streams, {len(seeds)} seeds"
        )
    if steps < 1:
        raise ValueError(f"at least one step is needed, got {steps}")
    if order not in _FIRST:
        raise ValueError(f"there is no order {order!r}; there are {', '.join(_FIRST)}")
    rules = Rules(grammar, temperature, top_k, top_p)
    decoder = model if isinstance(model, Decoder) else Decoder(model)
    beside = [{}] * len(prompts) if given is None else given
    if not prompts:
        return []
    long = [None] * len(prompts) if lengths is None else lengths
    rows = [_Row(grammar, *each) for each in zip(prompts, streams, seeds, beside, long, strict=True)]
    for step in range(steps):
        seen = _hidden(decoder, [row.tokens for row in rows])
        free = None if guidance == 1 else _hidden(decoder, [row.alone() for row in rows])
        for number, level in sorted({(row.number, level) for row in rows for level in range(row.levels)}):
            places = {at: row.places(level) for at, row in enumerate(rows) if row.number == number}
            ids = grammar.vocabulary.level(number, level)
            logits = seen.logits(decoder, {at: rows[at].at[each] for at, each in places.items()}, ids)
            if free is not None:
                alone = {at: rows[at].at[each] - rows[at].prompted + len(rows[at].first) for at, each in places.items()}
                unguided = free.logits(decoder, alone, ids)
                logits = unguided + guidance * (logits - unguided)
            _propose(rows, places, logits, rules.of(number), ids.start, step)
        for number, row in enumerate(rows):
            row.keep(_FIRST[order], step, steps, jolt)
            if hear is not None:
                hear(number, row.tokens.tolist())
    return [row.tokens for row in rows]


def _propose(
    rows: Sequence["_Row"], places: Mapping[int, np.ndarray], logits: torch.Tensor, rule: tuple[float, int, float], first: int, step: int
) -> None:
    """Draws a code for every hidden place, row by row as `logits` are; `first` is the token of code 0."""
    noise = np.concatenate([rows[at].luck(_CODE, each, step) for at, each in places.items()])
    drawn = choose(logits, *rule, torch.from_numpy(noise).to(logits.device))
    sure = logits.gather(1, drawn[:, None])[:, 0] - logits.logsumexp(1)
    ends = np.cumsum([len(each) for each in places.values()])[:-1]
    parts = zip(places.items(), np.split(drawn.cpu().numpy(), ends), np.split(sure.cpu().double().numpy(), ends), strict=True)
    for (at, each), codes, certainty in parts:
        rows[at].propose(each, codes + first, certainty)


def kept_hidden(codes: int, hidden: int, step: int, steps: int) -> int:
    """Of `codes` in all and `hidden` now, how many stay hidden after `step` (0, 1, ...): none after the last, at least one is written."""
    if step == steps - 1:
        return 0
    return max(0, min(floor(codes * cos(pi / 2 * (step + 1) / steps)), hidden - 1))


class _Kept(NamedTuple):
    """What decides which of n hidden codes are kept at a step."""

    places: np.ndarray  # int64 [n]
    sure: np.ndarray  # float64 [n]: log-probabilities of what was drawn
    luck: np.ndarray  # float64 [n], in (0, 1), anew at each step
    jolt: float  # of the noise on `sure`, which dies away
    ever: np.ndarray  # float64 [n], in (0, 1), the same at each step


_FIRST: dict[str, Callable[[_Kept], np.ndarray]] = {
    "confidence": lambda kept: kept.sure - kept.jolt * np.log(-np.log(kept.luck)),
    "random": lambda kept: kept.ever,
    "raster": lambda kept: -kept.places.astype(np.float64),
}


def _length_of(stream: CodeStream, asked: int | None) -> int:
    """Codes of a segment."""
    least, most = max(stream.min_length, 1), stream.max_length
    if asked is None and not stream.fixed:
        raise ValueError(
            f"segments of {stream.name!r} differ in length, so they are written token by token; ask for a stream of a fixed shape, or say "
            f"how many codes it has, 1 to {most}"
        )
    if asked is not None and not least <= asked <= most:
        rule = f"{most}" if stream.fixed else f"1 to {most}"
        raise ValueError(f"a segment of {stream.name!r} has {rule} codes, and {asked} are asked for")
    return most if asked is None else asked


class _Row:
    """One sample, whole from the first: what is not yet known is hidden."""

    def __init__(
        self, grammar: Grammar, prompt: np.ndarray, stream: str, seed: int, given: Mapping[str, np.ndarray], length: int | None
    ) -> None:
        ids = grammar.vocabulary
        self.number = ids.index(stream)
        about = ids.streams[self.number]
        self.codes = _length_of(about, length)
        clock = ids.clock.streams if ids.clock is not None else ()
        if given and not {stream, *given} <= {*clock}:
            raise ValueError(f"only streams of one clock stand beside each other; {stream} and {', '.join(given)} do not")
        prompt = np.asarray(prompt, dtype=np.int64)
        state = grammar.follow(ids.own(prompt).tolist())
        if state.stream != BETWEEN or self.number not in grammar.openable(state) or (stream in clock and state.step != BEFORE):
            raise ValueError(f"<{stream}> may not open behind this prompt: it is there already, or a segment is still open")
        codes = {**given, stream: np.zeros(self.codes, np.int64)}
        woven = weave_one(grammar, [(name, codes[name]) for name in grammar.arranged(list(codes))])
        self.tokens = np.concatenate([prompt, woven.tokens[1:]])
        # Where its codes stand; where the length varies, the closing token behind them is one of the same choice.
        self.at = len(prompt) - 1 + np.flatnonzero(woven.legal == self.number)[: self.codes]
        self.tokens[self.at] = ids.mask
        self.prompted, self.levels, self.seed = len(prompt), about.levels, seed
        self.first = np.append(ids.unseen, ids.bos)
        self.known = np.zeros(self.codes, bool)
        self._drawn = np.zeros(self.codes, np.int64)
        self._sure = np.zeros(self.codes)

    def alone(self) -> np.ndarray:
        """The same without the prompt's segments, and nothing seen."""
        return np.concatenate([self.first, self.tokens[self.prompted :]])

    def places(self, level: int) -> np.ndarray:
        """Which codes of a level are hidden."""
        hidden = np.flatnonzero(~self.known)
        mine: np.ndarray = hidden[hidden % self.levels == level]
        return mine

    def luck(self, purpose: int, places: np.ndarray, step: int) -> np.ndarray:
        return uniform(purpose, np.full(len(places), self.seed), step * self.codes + places)

    def propose(self, places: np.ndarray, tokens: np.ndarray, sure: np.ndarray) -> None:
        self._drawn[places], self._sure[places] = tokens, sure

    def keep(self, first: Callable[[_Kept], np.ndarray], step: int, steps: int, jolt: float) -> None:
        """Keeps those of the proposed codes that come first, as many as are due."""
        places = np.flatnonzero(~self.known)
        stay = kept_hidden(self.codes, len(places), step, steps)
        luck, ever = (self.luck(_ORDER, places, at).clip(1e-12, 1 - 1e-12) for at in (step, 0))
        value = first(_Kept(places, self._sure[places], luck, jolt * (1 - (step + 1) / steps), ever))
        best = places[np.argsort(value, kind="stable")[stay:]]
        self.known[best] = True
        self.tokens[self.at[best]] = self._drawn[best]


class _Hidden(NamedTuple):
    """Hidden states of rows one behind the other."""

    states: Tensor  # [N, D]
    begins: list[int]  # of every row

    def logits(self, decoder: Decoder, places: Mapping[int, np.ndarray], ids: range) -> Tensor:
        """[n, C] of the codes `ids` at some places of some rows."""
        at = np.concatenate([self.begins[row] + each for row, each in places.items()])
        return decoder.logits(self.states[torch.from_numpy(at).to(self.states.device)], (ids,))


def _hidden(decoder: Decoder, rows: Sequence[np.ndarray]) -> _Hidden:
    """Of rows that each see themselves whole."""
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    lengths = np.array([len(rows[row]) for row in by_length], dtype=np.int64)
    begins = dict(zip(by_length, (np.cumsum(lengths) - lengths).tolist(), strict=True))
    tokens = torch.from_numpy(np.concatenate([rows[row] for row in by_length])).to(decoder.device)
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()]).to(decoder.device)
    runs = [run._replace(causal=False) for run in runs_of(lengths)]
    states = decoder.through(tokens, positions, int(lengths[-1]), Whole(decoder.shape, runs))
    return _Hidden(states, [begins[row] for row in range(len(rows))])
