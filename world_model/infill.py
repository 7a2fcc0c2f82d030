"""Holes in given segments, filled by a model that learnt spans: what lies before a hole and behind it is seen, what it held is written.

Each run of <mask> is one hole. It becomes a sentinel, as in training, and its codes are written at the end, as many as there are masks.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from worldloom.world_model.decoder import Decoder
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.sampling import Ranges, Row, Rules, write
from worldloom.world_model.span import put_back, take_out
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.vocabulary import Vocabulary


def infill(
    model: WorldModel | Decoder,
    grammar: Grammar,
    samples: Sequence[np.ndarray],
    *,
    seeds: Sequence[int],
    temperature: float | Mapping[str, float] = 1.0,
    top_k: int | Mapping[str, int] = 0,
    top_p: float | Mapping[str, float] = 1.0,
) -> list[np.ndarray]:
    """Whole samples (int64, from <bos> to <eos>) with codes where they had <mask>; the choice as in sampling.

    ValueError for a sample that would not be one of the grammar, whatever stood in its holes, or has more holes than there are sentinels.
    """
    if len(seeds) != len(samples):
        raise ValueError(f"{len(samples)} samples need as many seeds, got {len(seeds)}")
    rules = Rules(grammar, temperature, top_k, top_p)
    rows = [_Hole(grammar, np.asarray(tokens, dtype=np.int64), seed) for tokens, seed in zip(samples, seeds, strict=True)]
    write(model if isinstance(model, Decoder) else Decoder(model), rules, rows)
    return [put_back(np.array(row.tokens), grammar.vocabulary) if row.plan else np.array(row.tokens) for row in rows]


class _Hole(Row):
    """A sample whose holes are written behind it: which stream stands at each place, and so what may, is known from the first."""

    def __init__(self, grammar: Grammar, tokens: np.ndarray, seed: int) -> None:
        ids = grammar.vocabulary
        masked = np.flatnonzero(tokens == ids.mask)
        places = _expected(grammar, tokens)
        runs = np.split(masked, np.flatnonzero(np.diff(masked) > 1) + 1) if len(masked) else []
        if len(runs) > ids.sentinels:
            raise ValueError(
                f"a sample has {len(runs)} holes, and this world knows {ids.sentinels} sentinels; "
                f"{'fill fewer at a time' if ids.sentinels else 'train it with the objective span'}"
            )
        made = take_out(tokens, ids, [int(run[0]) for run in runs], [len(run) for run in runs]) if runs else None
        super().__init__(tokens if made is None else made.tokens[: made.tail + 1], seed)
        self.plan = [
            step for number, run in enumerate(runs) for step in (_only(ids.sentinel(number)), *(places[at] for at in run.tolist()))
        ]
        self.plan += [_only(ids.eos)] * bool(self.plan)
        self.at = 1  # the first sentinel is given

    @property
    def stream(self) -> int:
        return self.plan[self.at][0]

    @property
    def legal(self) -> Ranges:
        return self.plan[self.at][1]

    def allowed(self) -> Ranges:
        return self.legal

    def write(self, token: int) -> None:
        self.tokens.append(token)
        self.at += 1

    def done(self) -> bool:
        if self.plan and self.at == len(self.plan) - 1:
            self.write(self.legal[0].start)
        return self.at >= len(self.plan)


def _only(token: int) -> tuple[int, Ranges]:
    return -1, (range(token, token + 1),)


def _expected(grammar: Grammar, tokens: np.ndarray) -> dict[int, tuple[int, Ranges]]:
    """For each <mask>: the stream whose code stands there, and the ids of such codes."""
    ids: Vocabulary = grammar.vocabulary
    found: dict[int, tuple[int, Ranges]] = {}
    state = grammar.start()
    for at, token in enumerate(tokens.tolist()):
        if token >= ids.size:
            continue
        if token == ids.mask and state.stream >= 0:
            codes = ids.level(state.stream, state.codes % ids.streams[state.stream].levels)
            found[at] = state.stream, (codes,)
            token = codes.start
        state = grammar.step(state, token)
    return found
