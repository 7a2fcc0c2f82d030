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
from torch.nn import functional as F

from worldloom.world_model.attention import CachedAttention
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
        model: WorldModel,
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
            state = grammar.follow(tokens.tolist())
            if state.stream != BETWEEN or state.step != BEFORE:
                raise ValueError("the prompt of a rollout is <bos> and whole segments of streams that are not on the clock")
        self.model, self.grammar = model, grammar
        self.order = tuple(grammar.arranged(list(streams)))
        self.window, self.slide = window, slide
        self.rules = Rules(grammar, temperature, top_k, top_p)
        self.seeds = np.array(seeds)
        self.at = 0  # which of `order` comes next
        self._steps = 0  # in the window, the one in progress too
        self._drawn = 0
        of_step = sum(ids.streams[ids.index(name)].step_length + 2 for name in self.order)
        device, shape = model.output.device, model.shape
        self._prompts = torch.tensor([len(tokens) for tokens in prompts], device=device)
        room = max(map(len, prompts)) + window * of_step
        self._tokens = torch.full((len(prompts), room), ids.bos, device=device)
        for row, tokens in enumerate(prompts):
            self._tokens[row, : len(tokens)] = torch.from_numpy(np.asarray(tokens, np.int64))
        self._lengths = self._prompts.clone()
        self._new: int | None = None  # tokens that the cache has not seen; None: all
        self._of_step = of_step
        self._cache = CachedAttention(shape.depth, len(prompts), room, shape.kv_heads, shape.head_width, model.output)

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
            codes = np.stack([self._draw(number, ids.level(number, place % stream.levels)) for place in range(stream.step_length)], axis=1)
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
        self._new = None if self._new is None else self._new + tokens.shape[1]

    def _draw(self, stream: int, legal: range) -> NDArray[np.int64]:
        """One code of a stream by number for every row, written."""
        logits = F.linear(self._hidden(), self.model.output[legal.start : legal.stop]).float()
        noise = uniform(NOISE, self.seeds, np.full(len(self.seeds), self._drawn))
        drawn = choose(logits, *self.rules.of(stream), torch.from_numpy(noise).to(logits.device))
        self._drawn += 1
        self._write((drawn + legal.start)[:, None])
        codes: NDArray[np.int64] = drawn.cpu().numpy()
        return codes

    def _hidden(self) -> Tensor:
        """[B, D] behind the last token of every row."""
        if self._new is None:
            # Behind the end of a short row stands anything: nobody sees it, and what is written later overwrites it.
            width = int(self._lengths.max())
            positions = torch.arange(width, device=self._tokens.device).expand(len(self.seeds), width)
            last = self._lengths - 1
        else:
            width = self._new
            positions = self._lengths[:, None] - width + torch.arange(width, device=self._tokens.device)
            last = torch.full_like(self._lengths, width - 1)
        tokens = self._tokens.gather(1, positions)
        self._new = 0
        hidden: Tensor = self.model(tokens.flatten(), positions.flatten(), self._cache.at(positions, int(self._lengths.max())))
        return hidden[torch.arange(len(last), device=last.device) * width + last]

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
