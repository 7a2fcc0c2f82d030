"""How legal a model stays where nobody applies the grammar: what a tool that only knows the exported folder would get."""

from collections.abc import Sequence

from worldloom.world_model.decoder import Decoder
from worldloom.world_model.grammar import END, Grammar
from worldloom.world_model.sampling import Ranges, Row, Rules, prompt, write


def legal_share(decoder: Decoder, grammar: Grammar, seeds: Sequence[int], temperature: float = 1.0) -> float:
    """Of the tokens sampled behind <bos> from all ids, the share that the grammar allows where they stand.

    One sample for every seed; it ends with <eos>, or with its first token that is not legal, behind which nothing could be said to be.
    """
    rows = [_Free(grammar, seed) for seed in seeds]
    write(decoder, Rules(grammar, temperature, 0, 1.0), rows)
    return sum(len(row.tokens) - row.prompted - row.astray for row in rows) / sum(len(row.tokens) - row.prompted for row in rows)


class _Free(Row):
    """A sample that may say anything."""

    def __init__(self, grammar: Grammar, seed: int) -> None:
        super().__init__(prompt(grammar, []), seed)
        self.grammar = grammar
        self.state = grammar.step(grammar.start(), grammar.vocabulary.bos)
        self.astray = False
        self.every: Ranges = (range(grammar.vocabulary.size),)

    @property
    def stream(self) -> int:
        return self.state.stream

    @property
    def legal(self) -> Ranges:
        return self.grammar.legal(self.state)

    def allowed(self) -> Ranges:
        return self.every

    def write(self, token: int) -> None:
        self.tokens.append(token)
        self.astray = not any(token in ids for ids in self.legal)
        if not self.astray:
            self.state = self.grammar.step(self.state, token)

    def done(self) -> bool:
        return self.astray or self.state.stream == END
