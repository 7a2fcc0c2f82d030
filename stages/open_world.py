"""A trained world, opened from its artifact: the model, the tokenizers of its streams and the dataset it was trained on, joined.

Values in, values out: what is given is encoded by the streams' tokenizers, the model goes on under the grammar, its codes are decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.preprocess import serving
from worldloom.stages.settings import Settings
from worldloom.stages.streams import kind_of
from worldloom.tokenizers.tokenizer import Tokenizer
from worldloom.world_model.grammar import Grammar, IllegalToken
from worldloom.world_model.load import from_pretrained
from worldloom.world_model.parallel import fill_in
from worldloom.world_model.sampling import generate, prompt
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.vocabulary import Vocabulary


class Choosing(Settings):
    """How the next token is chosen from the model's probabilities."""

    temperature: float = 1.0
    top_k: int = 0  # 0 takes all
    top_p: float = 1.0
    guidance: float = 1.0  # how strongly a prompt counts; 1 is the model's own measure
    fill_steps: int = 0  # write segments of fixed shape in so many steps, by hidden codes, if the model learnt from them; 0: token by token


class Sampled(NamedTuple):
    """One sequence that the model wrote, its prompt included."""

    tokens: NDArray[np.int64]
    legal: bool  # whether the grammar can read it
    values: dict[str, Any]  # decoded, by stream; what was given came back through its tokenizer


@dataclass(frozen=True)
class OpenWorld:
    """Everything that sampling from a world needs."""

    model: WorldModel
    grammar: Grammar
    tokenizers: Mapping[str, Tokenizer]
    tokens: Tokens
    dataset: Dataset

    @property
    def vocabulary(self) -> Vocabulary:
        return self.grammar.vocabulary

    @property
    def streams(self) -> dict[str, str]:
        """Kind of every stream that the world writes, by name."""
        return {stream.name: stream.kind for stream in self.vocabulary.streams if stream.name in self.grammar.streams}

    def prompts(self, given: Sequence[Mapping[str, Any]]) -> list[NDArray[np.int64]]:
        """The tokens of rows of values, by stream, in the rows' own order and without <eos>; ValueError for what the world cannot read."""
        codes = self._encode(given)
        return [prompt(self.grammar, [(name, codes[name, row]) for name in values]) for row, values in enumerate(given)]

    def sample(
        self,
        given: Sequence[Mapping[str, Any]],
        want: Sequence[str] | None,
        seeds: Sequence[int],
        choosing: Choosing,
    ) -> list[Sampled]:
        """Goes on from every row of `given`; `want` names the streams to write, in order, None leaves that to the model.

        A row's result is a function of the row and its seed, whatever else is in the batch.
        """
        prompts = self.prompts(given)
        if choosing.fill_steps:
            return self.read(self._filled(prompts, want, seeds, choosing))
        return self.read(self._generated(prompts, want, seeds, choosing))

    def _filled(
        self, prompts: Sequence[NDArray[np.int64]], want: Sequence[str] | None, seeds: Sequence[int], choosing: Choosing
    ) -> list[NDArray[np.int64]]:
        """Segment by segment, in the order of `want`: those of fixed shape by `fill_in`, others token by token."""
        if want is None:
            raise ValueError("hidden codes are filled in where a stream is asked for; name the streams to write")
        written = list(prompts)
        for number, name in enumerate(want):
            of_segment = [seed + 7919 * number for seed in seeds]
            if self.vocabulary.streams[self.vocabulary.index(name)].fixed:
                written = fill_in(
                    self.model,
                    self.grammar,
                    written,
                    [name] * len(written),
                    seeds=of_segment,
                    steps=choosing.fill_steps,
                    temperature=choosing.temperature,
                    guidance=choosing.guidance,
                )
            else:
                written = self._generated(written, [name], of_segment, choosing)
            if number + 1 < len(want):
                written = [tokens[:-1] for tokens in written]  # without <eos>: the next segment follows
        return written

    def _generated(
        self, prompts: Sequence[NDArray[np.int64]], want: Sequence[str] | None, seeds: Sequence[int], choosing: Choosing
    ) -> list[NDArray[np.int64]]:
        return generate(
            self.model,
            self.grammar,
            prompts,
            want=None if want is None else list(want),
            temperature=choosing.temperature,
            top_k=choosing.top_k,
            top_p=choosing.top_p,
            guidance=choosing.guidance,
            seeds=list(seeds),
        ).tokens

    def read(self, written: Sequence[NDArray[np.int64]]) -> list[Sampled]:
        """Parses and decodes whole sequences."""
        parsed = [self._parse(tokens) for tokens in written]
        values: list[dict[str, Any]] = [{} for _ in parsed]
        for name in self.streams:
            rows = [row for row, segments in enumerate(parsed) if segments and name in segments]
            if rows:
                for row, value in zip(rows, self._decode(name, [(parsed[row] or {})[name] for row in rows]), strict=True):
                    values[row][name] = value
        return [
            Sampled(np.asarray(tokens), segments is not None, row) for tokens, segments, row in zip(written, parsed, values, strict=True)
        ]

    def _encode(self, given: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], NDArray[np.int64]]:
        """Codes by stream and row."""
        codes = {}
        for name in dict.fromkeys(name for values in given for name in values):
            if name not in self.streams:
                raise ValueError(f"this world has no stream {name!r}; it has {', '.join(self.streams)}")
            rows = [row for row, values in enumerate(given) if name in values]
            batch = kind_of(self.streams[name]).batch([given[row][name] for row in rows])
            longest = self.vocabulary.streams[self.vocabulary.index(name)].max_length
            for row, encoded in zip(rows, self.tokenizers[name].encode(batch), strict=True):
                codes[name, row] = np.asarray(encoded, np.int64).reshape(-1)
                if len(codes[name, row]) > longest:
                    raise ValueError(
                        f"this {name} is {len(codes[name, row])} codes long, and the world has seen at most {longest}; "
                        f"say it shorter, or in words like those of the dataset"
                    )
        return codes

    def _parse(self, tokens: NDArray[np.int64]) -> dict[str, NDArray[np.int64]] | None:
        try:
            return {segment.stream: segment.codes for segment in self.grammar.parse(tokens)}
        except IllegalToken:
            return None

    def _decode(self, name: str, codes: Sequence[NDArray[np.int64]]) -> Iterator[Any]:
        shape = self.tokenizers[name].shape
        yield from self.tokenizers[name].decode(list(codes) if shape is None else np.stack([one.reshape(shape) for one in codes]))


def open_world(artifact: Artifact) -> OpenWorld:
    """From the artifact of a stage that trains a world model; ArtifactError where it, or what it came from, is not whole."""
    if artifact.produces != "world_model":
        raise ValueError(f"{artifact.name} ({artifact.kind}) leaves a {artifact.produces}, not a world model")
    tokens = artifact.input("tokens")
    for name in ("config.json", "model.safetensors", "vocabulary.json"):
        artifact.path(f"world/{name}")
    world = from_pretrained(artifact.folder / "world")
    dataset, tokenizers = Dataset(tokens.input("data")), dict[str, Tokenizer]()
    for name in world.grammar.streams:
        tokenizer = serving(open_tokenizer(tokens.input(f"tokenizers.{name}").folder / "tokenizer"), dataset.streams[name])
        assert tokenizer is not None, "the tokens were made by it"
        tokenizers[name] = tokenizer
    return OpenWorld(world.model, world.grammar, tokenizers, Tokens(tokens), dataset)
