"""Rolling a world out: streams on a clock go on step by step, for ever, in flat memory; what comes from outside is given as it comes.

    <bos> segments of the prompt (</clip> ... </push> of one step) x at most `window` <eos, never written>

Eviction: when a step would be the `window` + 1st, the oldest `slide` steps go. <bos>, the prompt's segments and the last steps stay, move
up to the positions that they would have in a sample of their own, and their keys and values are computed anew: what comes next follows from
the tokens in sight, however they came there. A row's codes are a function of its prompt, its seed and what it was given.

B rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldloom.world_model.decoder import Cache, Decoder
from worldloom.world_model.grammar import BEFORE, BETWEEN, Grammar
from worldloom.world_model.next_token import uniform
from worldloom.world_model.sampling import Rules, choose
from worldloom.world_model.transformer import WorldModel

NOISE = 0x2011  # keeps these draws apart from those of sampling

Codes = Mapping[str, NDArray[np.int64]]  # of a step, by stream: [B, codes of a step]


class Rollout:
    """B rows that stand at the same place: segment by segment, each given or drawn from the model."""

    def __init__(
        self,
        model: WorldModel | Decoder,
        grammar: Grammar,
        prompts: Sequence[NDArray[np.int64]],
        streams: Sequence[str],
        *,
        seeds: Sequence[int],
        temperature: float | Mapping[str, float] = 1.0,
        top_k: int | Mapping[str, int] = 0,
        top_p: float | Mapping[str, float] = 1.0,
        window: int | None = None,
        slide: int = 1,
    ) -> None:
        """`prompts`: <bos> and whole segments, none on the clock; `streams`: those of the clock that there are; `window`: steps in sight,
        by default as many as a sample has.
        """
        ids = grammar.vocabulary
        if ids.clock is None or not streams or not {*streams} <= {*ids.clock.streams}:
            known = "none" if ids.clock is None else ", ".join(ids.clock.streams)
            raise ValueError(f"a rollout needs streams on the clock, got {', '.join(streams) or 'none'}; on it are {known}")
        if len(seeds) != len(prompts) or not len(prompts):
            raise ValueError(f"a rollout has at least one row, and a seed for each, got {len(prompts)} prompts and {len(seeds)} seeds")
        window = ids.steps if window is None else window
        if not 1 <= slide <= window:
            raise ValueError(f"slide must be from 1 to window ({window} steps), got {slide}")
        for tokens in prompts:
            state = grammar.follow(ids.own(tokens).tolist())
            if state.stream != BETWEEN or state.step != BEFORE:
                raise ValueError("the prompt of a rollout is <bos> and whole segments of streams that are not on the clock")
        self.decoder, self.grammar = model if isinstance(model, Decoder) else Decoder(model), grammar
        self.order = tuple(grammar.arranged(list(streams)))
        self.window, self.slide = window, slide
        self.rules = Rules(grammar, temperature, top_k, top_p)
        self.seeds = np.array(seeds)
        self.at = 0  # which of `order` comes next
        self._steps = 0  # in the window, the one in progress too
        self._drawn = 0
        of_step = sum(ids.streams[ids.index(name)].step_length + 2 for name in self.order)
        device = self.decoder.device
        self._prompts = torch.tensor([len(tokens) for tokens in prompts], device=device)
        self._longest = max(map(len, prompts))  # tokens of the longest row
        self._tokens = torch.full((len(prompts), self._longest + window * of_step), ids.bos, device=device)
        for row, tokens in enumerate(prompts):
            self._tokens[row, : len(tokens)] = torch.from_numpy(np.asarray(tokens, np.int64))
        self._lengths = self._prompts.clone()
        self._new: int | None = None  # tokens that the cache has not seen; None: all
        self._of_step = of_step
        self._cache = Cache(self.decoder, len(prompts))

    @torch.inference_mode()
    def segment(self, given: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """The codes [B, codes of a step] of the stream whose turn it is: those given, or drawn."""
        ids = self.grammar.vocabulary
        number = ids.index(self.order[self.at])
        stream = ids.streams[number]
        if self.at == 0:
            self._next_step()
        self.at = (self.at + 1) % len(self.order)
        self._write(torch.full((len(self.seeds), 1), ids.indicator(number), device=self._tokens.device))
        if given is None:
            codes = self._draw(number)
        else:
            codes = self._checked(stream.name, given, stream.step_length, stream.codebook_size)
            level = np.arange(stream.step_length) % stream.levels
            self._write(torch.from_numpy(codes + level * stream.codebook_size + ids.span(number).start).to(self._tokens.device))
        self._write(torch.full((len(self.seeds), 1), ids.closing(number), device=self._tokens.device))
        return codes

    def step(self, given: Codes | None = None) -> dict[str, NDArray[np.int64]]:
        """One whole turn, from the stream whose turn it is on until it is its turn again; `given` by stream, the others are drawn."""
        return {name: self.segment((given or {}).get(name)) for name in (*self.order[self.at :], *self.order[: self.at])}

    def skip(self) -> None:
        """Leaves out the stream whose turn it is: the last step of a sample may lack some."""
        self.at = (self.at + 1) % len(self.order)

    def _checked(self, name: str, given: NDArray[np.int64], codes: int, size: int) -> NDArray[np.int64]:
        if given.shape != (len(self.seeds), codes) or not (given.min() >= 0 and given.max() < size):
            raise ValueError(
                f"a step of {name!r} has {codes} codes from 0 to {size - 1} for each of {len(self.seeds)} rows, "
                f"got {given.shape} from {given.min(initial=0)} to {given.max(initial=0)}"
            )
        return given.astype(np.int64)

    def _write(self, tokens: Tensor) -> None:
        """Tokens [B, n] behind those of each row."""
        at = self._lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        self._tokens.scatter_(1, at, tokens)
        self._lengths += tokens.shape[1]
        self._longest += tokens.shape[1]
        self._new = None if self._new is None else self._new + tokens.shape[1]

    def _draw(self, stream: int) -> NDArray[np.int64]:
        """The codes [B, codes of a step] of a stream by number, drawn and written."""
        ids, about = self.grammar.vocabulary, self.grammar.vocabulary.streams[stream]
        places = self._drawn + np.arange(about.step_length)
        self._drawn += about.step_length
        noise = torch.from_numpy(np.stack([uniform(NOISE, np.full(len(places), seed), places) for seed in self.seeds], axis=1))
        noise, rule, codes = noise.to(self._tokens.device), self.rules.of(stream), list[Tensor]()
        for place in range(about.step_length):
            legal = ids.level(stream, place % about.levels)
            codes.append(choose(self.decoder.logits(self._hidden(), (legal,)), *rule, noise[place]))
            self._write((codes[-1] + legal.start)[:, None])
        found: NDArray[np.int64] = torch.stack(codes, dim=1).cpu().numpy()
        return found

    def _hidden(self) -> Tensor:
        """[B, D] behind the last token of every row."""
        if self._new is None:
            lengths = self._lengths.tolist()
            hidden = self._cache.begin([row[:length] for row, length in zip(self._tokens.tolist(), lengths, strict=True)])
        else:
            positions = self._lengths[:, None] - self._new + torch.arange(self._new, device=self._tokens.device)
            hidden = self._cache.go_on(self._tokens.gather(1, positions), positions, self._longest)
        self._new = 0
        return hidden

    def _next_step(self) -> None:
        """Begins a step; where the window is full, its oldest steps go."""
        self._steps += 1
        if self._steps <= self.window:
            return
        gone = self.slide * self._of_step
        columns = torch.arange(self._tokens.shape[1], device=self._tokens.device)
        moved = torch.where(columns < self._prompts[:, None], columns, columns + gone).clamp_(max=self._tokens.shape[1] - 1)
        self._tokens = self._tokens.gather(1, moved)
        self._lengths -= gone
        self._longest -= gone
        self._steps -= self.slide
        self._new = None


def roll(rollout: Rollout, context: Codes, actions: Callable[[Codes], Codes]) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Puts `context` in front, then goes on for ever: in go actions, out comes a whole turn, up to the next frame.

    `context` by stream: [B, n, codes of a step] for n steps of the streams that a step begins with, n or n - 1 for others, whose last is
    then for `actions` to say, or for the model. `actions` sees what came last, and says codes by stream; what it leaves out is drawn.
    """
    lead = context[rollout.order[0]].shape[1]
    given: dict[str, NDArray[np.int64]] = {}
    for step in range(lead):
        given = {name: codes[:, step] for name, codes in context.items() if step < codes.shape[1]}
        if step + 1 < lead:
            rollout.step(given)
    first = next((at for at, name in enumerate(rollout.order) if name not in given), len(rollout.order))
    last = {name: rollout.segment(given[name]) for name in rollout.order[:first]}
    while True:
        last = rollout.step(actions(last))
        yield last
