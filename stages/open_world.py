"""A trained world, opened from its artifact: the model, the tokenizers of its streams and the dataset it was trained on, joined.

Values in, values out: what is given is encoded by the streams' tokenizers, the model goes on under the grammar, its codes are decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.preprocess import serving
from worldloom.stages.rollouts import Policy, Step, beside, rollout
from worldloom.stages.settings import Settings
from worldloom.stages.streams import kind_of
from worldloom.tokenizers.load import load_tokenizer
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

        A row's result is a function of the row and its seed, whatever else is in the batch. What is given on the clock, where others on it
        are wanted, stands in their steps: each is written from what comes before it, or, by `fill_steps`, in sight of all.
        """
        if self._shared(given, want or (), choosing):
            return self.read(self._beside(given, list(want or ()), seeds, choosing))
        prompts = self.prompts(given)
        if choosing.fill_steps:
            return self.read(self._filled(prompts, want, seeds, choosing))
        return self.read(self._generated(prompts, want, seeds, choosing))

    def rollout(
        self, context: NDArray[Any] | Mapping[str, NDArray[Any]], actions: NDArray[Any] | Policy | None, **options: Any
    ) -> Iterator[Step]:
        """Frames [B, n, height, width, 3] and actions in, steps out as they come; see rollouts.rollout."""
        return rollout(self, context, actions, **{"choosing": Choosing(), **options})

    @property
    def _clocked(self) -> tuple[str, ...]:
        return () if self.vocabulary.clock is None else self.vocabulary.clock.streams

    def _shared(self, given: Sequence[Mapping[str, Any]], want: Sequence[str], choosing: Choosing) -> bool:
        """Whether streams of the clock are wanted beside others, so that they must be written in the same steps."""
        wanted = sum(name in self._clocked for name in want)
        told = any(name in self._clocked for values in given for name in values)
        return wanted > 0 and (told or (wanted > 1 and choosing.fill_steps > 0))

    def _beside(
        self, given: Sequence[Mapping[str, Any]], want: list[str], seeds: Sequence[int], choosing: Choosing
    ) -> list[NDArray[np.int64]]:
        """Rows that are given the same streams of the clock together; the clock's steps first, then what else is wanted."""
        on_clock, others = ([name for name in want if (name in self._clocked) is inside] for inside in (True, False))
        if choosing.guidance != 1 and not choosing.fill_steps:
            raise ValueError("guidance cannot be had beside what is given on the clock, token by token; leave it at 1, or set fill_steps")
        told = [tuple(name for name in self._clocked if name in values) for values in given]
        written: dict[int, NDArray[np.int64]] = {}
        for names in dict.fromkeys(told):
            rows = [row for row, other in enumerate(told) if other == names]
            prompts = self.prompts([{name: value for name, value in given[row].items() if name not in names} for row in rows])
            codes = self._encode([{name: given[row][name] for name in names} for row in rows])
            shown = [{name: codes[name, row] for name in names} for row in range(len(rows))]
            of_rows = [seeds[row] for row in rows]
            make = self._filled_beside if choosing.fill_steps else partial(beside, self)
            made = make(prompts, on_clock, shown, of_rows, choosing)
            if others:
                onward = self._filled if choosing.fill_steps else self._generated
                made = onward([tokens[:-1] for tokens in made], others, [seed + 104_729 for seed in of_rows], choosing)
            written |= dict(zip(rows, made, strict=True))
        return [written[row] for row in range(len(given))]

    def _filled_beside(
        self,
        prompts: Sequence[NDArray[np.int64]],
        wanted: Sequence[str],
        given: Sequence[Mapping[str, NDArray[np.int64]]],
        seeds: Sequence[int],
        choosing: Choosing,
    ) -> list[NDArray[np.int64]]:
        """As `beside`, stream by stream, each in sight of all steps of those before it."""
        shown, made = [dict(row) for row in given], list[NDArray[np.int64]]()
        for number, name in enumerate(wanted):
            made = fill_in(
                self.model,
                self.grammar,
                prompts,
                [name] * len(prompts),
                seeds=[seed + 7919 * number for seed in seeds],
                steps=choosing.fill_steps,
                temperature=choosing.temperature,
                guidance=choosing.guidance,
                given=shown,
            )
            for row, tokens in zip(shown, made, strict=True):
                row[name] = next(segment.codes for segment in self.grammar.parse(tokens) if segment.stream == name)
        return made

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
        tokenizer = serving(load_tokenizer(tokens.input(f"tokenizers.{name}").folder / "tokenizer"), dataset.streams[name])
        assert tokenizer is not None, "the tokens were made by it"
        tokenizers[name] = tokenizer
    return OpenWorld(world.model, world.grammar, tokenizers, Tokens(tokens), dataset)
