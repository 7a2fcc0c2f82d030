"""A trained world, opened from its artifact: the model, the tokenizers of its streams and the dataset it was trained on, joined.

Values in, values out: what is given is encoded by the streams' tokenizers, the model goes on under the grammar, its codes are decoded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.evaluate_world_model import FILLING
from worldloom.stages.eye import Eye, open_eye
from worldloom.stages.learner import resolve_precision
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.preprocess import serving
from worldloom.stages.rollouts import Policy, Step, beside, rollout
from worldloom.stages.settings import Settings
from worldloom.stages.sights import Sights
from worldloom.stages.streams import kind_of
from worldloom.stages.train_world_model import ObjectiveName
from worldloom.tokenizers.tokenizer import Tokenizer
from worldloom.world_model.decoder import Decoder
from worldloom.world_model.grammar import Grammar, IllegalToken
from worldloom.world_model.infill import infill
from worldloom.world_model.load import from_pretrained
from worldloom.world_model.parallel import fill_in
from worldloom.world_model.sampling import Hear, Want, generate, prompt, wants_of
from worldloom.world_model.span import streams_of
from worldloom.world_model.transformer import WorldModel
from worldloom.world_model.vocabulary import Vocabulary

SEEN = "seen by the encoder"  # no name of a stream: it holds spaces
# Draws are keyed by seed and place. What a row writes in a pass of its own takes a seed far from those of its neighbours, which mostly
# count up by one, or the same noise would decide twice: for each further stream, and for what stands behind the clock's steps. Primes.
_NEXT_STREAM, _BEHIND_CLOCK = 7_919, 104_729


class Choosing(Settings):
    """How the next token is chosen from the model's probabilities; a number, or one for each stream named, the others as by default."""

    temperature: float | dict[str, float] = 1.0
    top_k: int | dict[str, int] = 0  # 0 takes all
    top_p: float | dict[str, float] = 1.0
    guidance: float = 1.0  # how strongly a prompt counts; 1 is the model's own measure
    # Write segments of fixed shape in so many steps, by hidden codes; 0: token by token; None: as the model learnt.
    fill_steps: int | None = None
    fill_order: Literal["confidence", "random", "raster"] = "confidence"  # which of those codes are settled first
    fill_lengths: dict[str, int] = Field(default_factory=dict)  # codes of streams whose length varies, which are then filled in, too


class Sight(NamedTuple):
    """What a world sees ahead of its tokens."""

    artifact: Artifact  # the features that it learnt with
    samples: Sights  # of the dataset's samples

    def look(self, picture: NDArray[np.uint8]) -> torch.Tensor:
        """[T, W] of one picture [H, W, 3], by the encoder that made those of training."""
        with torch.inference_mode():
            found = self.eye.see(picture[None], self.artifact.settings["keep"])[0].float()
        return found.reshape(-1, found.shape[-1])

    @property
    def eye(self) -> Eye:
        return open_eye(self.artifact.input("encoder"))


class Sampled(NamedTuple):
    """One sequence that the model wrote, its prompt included."""

    tokens: NDArray[np.int64]
    legal: bool  # whether the grammar can read it
    values: dict[str, Any]  # decoded, by stream; what was given came back through its tokenizer


class Told(NamedTuple):
    """Rows alike: the streams of the clock that they are given, and the streams that they want."""

    given: tuple[str, ...]
    want: tuple[str, ...]


@dataclass(frozen=True)
class OpenWorld:
    """Everything that sampling from a world needs."""

    model: WorldModel
    grammar: Grammar
    tokenizers: Mapping[str, Tokenizer]
    tokens: Tokens
    dataset: Dataset
    objectives: tuple[ObjectiveName, ...] = ("next_token",)  # that the model was trained with
    sight: Sight | None = None  # where it sees something

    @cached_property
    def decoder(self) -> Decoder:
        """The model as it is sampled from: in bf16, as it was trained, where the hardware multiplies that."""
        return Decoder(self.model, torch.bfloat16 if resolve_precision("auto") == "bf16" else torch.float32)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.grammar.vocabulary

    @property
    def held(self) -> dict[str, str]:
        """Kind of every stream that the dataset has samples of, by name."""
        return {name: kind for name, kind in self.streams.items() if name in self.tokens.streams}

    @property
    def streams(self) -> dict[str, str]:
        """Kind of every stream that the world writes, by name."""
        return {stream.name: stream.kind for stream in self.vocabulary.streams}

    def prompts(self, given: Sequence[Mapping[str, Any]]) -> list[NDArray[np.int64]]:
        """The tokens of rows of values, by stream, in the rows' own order and without <eos>; ValueError for what the world cannot read.

        Those on the clock stand together, in its order, where the first of them is.
        """
        told = [{name: value for name, value in values.items() if name != SEEN} for values in given]
        codes = self._encode(told)
        orders = [self.grammar.arranged(list(values)) for values in told]
        made = [prompt(self.grammar, [(name, codes[name, row]) for name in names]) for row, names in enumerate(orders)]
        for tokens, values in zip(made, given, strict=True):
            if SEEN in values:
                if self.sight is None:
                    raise ValueError("this world sees nothing ahead of its tokens; give the picture as a stream, or train one with `sees`")
                tokens[: self.vocabulary.ahead] = self.decoder.look(self.sight.look(values[SEEN]))
        return made

    def sample(
        self,
        given: Sequence[Mapping[str, Any]],
        want: Want | Sequence[Want],
        seeds: Sequence[int],
        choosing: Choosing,
        hear: Hear | None = None,
    ) -> list[Sampled]:
        """Goes on from every row of `given`; `want` names the streams to write, in order, None leaves that to the model.

        Rows may want different things: `want` is then a list with one of these for each.
        A row's result is a function of the row and its seed, whatever else is in the batch. What is given on the clock, where others on it
        are wanted, stands in their steps: each is written from what comes before it, or, by `fill_steps`, in sight of all. `hear` is called
        with a row's tokens so far as they are written; not where all come at once, in those steps. A row may hold a picture to see under
        SEEN. ValueError for a way of writing that the world did not learn.
        """
        wants = wants_of(want, len(given))
        choosing = choosing.model_copy(update={"fill_steps": self.fill_steps_of(choosing.fill_steps)})
        self._check_learnt(wants, choosing)
        if hear is not None and self.vocabulary.ahead:
            hear = partial(_without_ahead, hear, self.vocabulary)
        try:
            return self.read(self._written(given, wants, seeds, choosing, hear))
        finally:
            self.decoder.forget()

    def fill_steps_of(self, asked: int | None) -> int:
        """In how many steps it writes what is of fixed shape, 0 token by token; None leaves that to what it learnt.

        ValueError for a way of writing that it did not learn.
        """
        if asked is None:
            return FILLING if "masked" in self.objectives and "next_token" not in self.objectives else 0
        objective = "masked" if asked else "next_token"
        if objective not in self.objectives:
            wanted, way = ("hidden codes", "in steps") if asked else ("next tokens", "token by token")
            spans = {*self.objectives} == {"span"}
            raise ValueError(
                f"fill_steps is {asked}, but this world learnt {', '.join(self.objectives)} and not {wanted}, so it cannot write {way}; "
                f"{'have it write codes of given ones anew (infill)' if spans else 'leave fill_steps out'}, "
                f"or train it with the objective {objective}"
            )
        return asked

    def check_learnt_next_tokens(self, writing: str, otherwise: str) -> None:
        """ValueError where it did not: what it wrote token by token would be noise."""
        if "next_token" not in self.objectives:
            raise ValueError(
                f"this world learnt {', '.join(self.objectives)} and not next tokens, so it cannot write {writing} token by token; "
                f"{otherwise}, or train it with the objective next_token"
            )

    def _check_learnt(self, wants: Sequence[Want], choosing: Choosing) -> None:
        if not choosing.fill_steps:
            self.check_learnt_next_tokens("samples", "have it write codes of given ones anew (infill)")
        for name in dict.fromkeys(name for want in wants for name in want or () if name in self.streams):
            if not self._length_known(name, choosing):
                self.check_learnt_next_tokens(name, "say how many codes that gets, leave it out of what is wanted")

    def _written(
        self, given: Sequence[Mapping[str, Any]], wants: Sequence[Want], seeds: Sequence[int], choosing: Choosing, hear: Hear | None
    ) -> list[NDArray[np.int64]]:
        """What `sample` reads, row by row."""
        written: dict[int, NDArray[np.int64]] = {}
        told = [self._told(values, mine, choosing) for values, mine in zip(given, wants, strict=True)]
        for names in dict.fromkeys(told):
            rows = [row for row, other in enumerate(told) if other == names]
            some, of_rows, mine = [given[row] for row in rows], [seeds[row] for row in rows], [wants[row] for row in rows]
            if names is not None:
                made = self._beside(some, names, of_rows, choosing, _of_rows(hear, rows))
            else:
                onward = self._filled if choosing.fill_steps else self._generated
                made = onward(self.prompts(some), mine, of_rows, choosing, _of_rows(hear, rows))
            written |= dict(zip(rows, made, strict=True))
        return [written[row] for row in range(len(given))]

    def rollout(
        self, context: NDArray[Any] | Mapping[str, NDArray[Any]], actions: ArrayLike | Policy | None, **options: Any
    ) -> Iterator[Step]:
        """Frames [B, n, height, width, 3] and actions in, steps out as they come; see rollouts.rollout."""
        return rollout(self, context, actions, **{"choosing": Choosing(), **options})

    @property
    def _clocked(self) -> tuple[str, ...]:
        return () if self.vocabulary.clock is None else self.vocabulary.clock.streams

    def _told(self, values: Mapping[str, Any], want: Want, choosing: Choosing) -> Told | None:
        """What a row is given on the clock and what it wants, where streams of the clock must be written in the same steps; else None."""
        wanted = sum(name in self._clocked for name in want or ())
        told = tuple(name for name in self._clocked if name in values)
        shared = wanted > 0 and (told or (wanted > 1 and choosing.fill_steps))
        return Told(told, tuple(want or ())) if shared else None

    def _beside(
        self, given: Sequence[Mapping[str, Any]], told: Told, seeds: Sequence[int], choosing: Choosing, hear: Hear | None
    ) -> list[NDArray[np.int64]]:
        """Rows that are given the same streams of the clock and want the same; the clock's steps first, then what else is wanted."""
        on_clock, others = ([name for name in told.want if (name in self._clocked) is inside] for inside in (True, False))
        if choosing.guidance != 1 and not choosing.fill_steps:
            raise ValueError("guidance cannot be had beside what is given on the clock, token by token; leave it at 1, or set fill_steps")
        prompts = self.prompts([{name: value for name, value in row.items() if name not in told.given} for row in given])
        codes = self._encode([{name: row[name] for name in told.given} for row in given])
        shown = [{name: codes[name, row] for name in told.given} for row in range(len(given))]
        make = self._filled_beside if choosing.fill_steps else partial(beside, self)
        made = make(prompts, on_clock, shown, seeds, choosing)
        if not others:
            return made
        onward = self._filled if choosing.fill_steps else self._generated
        return onward([tokens[:-1] for tokens in made], [others] * len(made), [seed + _BEHIND_CLOCK for seed in seeds], choosing, hear)

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
            of_stream = [seed + _NEXT_STREAM * number for seed in seeds]
            made = self._fill(prompts, [[name]] * len(prompts), of_stream, choosing, given=shown)
            for row, tokens in zip(shown, made, strict=True):
                mine = self.grammar.parse(self.vocabulary.own(tokens))
                row[name] = next(segment.codes for segment in mine if segment.stream == name)
        return made

    def _filled(
        self,
        prompts: Sequence[NDArray[np.int64]],
        wants: Sequence[Want],
        seeds: Sequence[int],
        choosing: Choosing,
        hear: Hear | None = None,
    ) -> list[NDArray[np.int64]]:
        """Segment by segment, in the order that each row wants: those of known length by `fill_in`, others token by token."""
        asked = [list(want) for want in wants if want is not None]
        if len(asked) < len(wants):
            raise ValueError("hidden codes are filled in where a stream is asked for; name the streams to write")
        written = list(prompts)
        for number in range(max(map(len, asked), default=0)):
            there = [row for row, names in enumerate(asked) if number < len(names)]
            known = [row for row in there if self._length_known(asked[row][number], choosing)]
            for rows, write in ((known, self._fill), ([row for row in there if row not in known], self._generated)):
                before = [written[row] if number == 0 else written[row][:-1] for row in rows]  # without <eos>: another segment follows
                of_segment = [seeds[row] + _NEXT_STREAM * number for row in rows]
                made = write(before, [[asked[row][number]] for row in rows], of_segment, choosing, _of_rows(hear, rows))
                for row, tokens in zip(rows, made, strict=True):
                    written[row] = tokens
        return [tokens if names else np.append(tokens, self.vocabulary.eos) for tokens, names in zip(written, asked, strict=True)]

    def _fill(
        self,
        prompts: Sequence[NDArray[np.int64]],
        wants: Sequence[Want],
        seeds: Sequence[int],
        choosing: Choosing,
        hear: Hear | None = None,
        given: Sequence[Mapping[str, NDArray[np.int64]]] | None = None,
    ) -> list[NDArray[np.int64]]:
        """One segment for each row; `given`: codes of other streams of the clock."""
        names = [name for want in wants for name in want or ()]
        assert choosing.fill_steps
        return fill_in(
            self.decoder,
            self.grammar,
            prompts,
            names,
            seeds=seeds,
            steps=choosing.fill_steps,
            temperature=choosing.temperature,
            top_k=choosing.top_k,
            top_p=choosing.top_p,
            guidance=choosing.guidance,
            order=choosing.fill_order,
            given=given,
            lengths=[choosing.fill_lengths.get(name) for name in names],
            hear=hear,
        )

    def _length_known(self, stream: str, choosing: Choosing) -> bool:
        """Whether it is known how many codes to hide."""
        return stream in choosing.fill_lengths or self.vocabulary.streams[self.vocabulary.index(stream)].fixed

    def _generated(
        self,
        prompts: Sequence[NDArray[np.int64]],
        wants: Sequence[Want],
        seeds: Sequence[int],
        choosing: Choosing,
        hear: Hear | None = None,
    ) -> list[NDArray[np.int64]]:
        return generate(
            self.decoder,
            self.grammar,
            prompts,
            wants,
            temperature=choosing.temperature,
            top_k=choosing.top_k,
            top_p=choosing.top_p,
            guidance=choosing.guidance,
            seeds=seeds,
            hear=hear,
        )

    def infill(
        self, given: Sequence[Mapping[str, Any]], holes: Sequence[Mapping[str, Sequence[int]]], seeds: Sequence[int], choosing: Choosing
    ) -> list[Sampled]:
        """Every row of `given` with other codes where it has holes: the places of a stream's codes, counted from 0; of a stream on the
        clock, over all steps.

        ValueError for a hole beyond the codes, or a world that did not learn spans.
        """
        try:
            written = infill(
                self.decoder,
                self.grammar,
                self._holed(given, holes),
                seeds=seeds,
                temperature=choosing.temperature,
                top_k=choosing.top_k,
                top_p=choosing.top_p,
            )
        finally:
            self.decoder.forget()
        return self.read(written)

    def _holed(self, given: Sequence[Mapping[str, Any]], holes: Sequence[Mapping[str, Sequence[int]]]) -> list[NDArray[np.int64]]:
        """Whole samples with <mask> in their holes."""
        samples = []
        for prompt_of, of_row in zip(self.prompts(given), holes, strict=True):
            tokens, ids = np.append(prompt_of, self.vocabulary.eos), self.vocabulary
            streams = streams_of(ids, tokens)
            for name, places in of_row.items():
                codes = np.flatnonzero(streams == ids.index(name))
                if not len(places) or min(places) < 0 or max(places) >= len(codes):
                    raise ValueError(f"{name} has {len(codes)} codes in this row; its hole must lie within them, got {places}")
                tokens[codes[np.asarray(places)]] = ids.mask
            samples.append(tokens)
        return samples

    def read(self, written: Sequence[NDArray[np.int64]]) -> list[Sampled]:
        """Parses and decodes whole sequences."""
        written = [self.vocabulary.own(tokens) for tokens in written]
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


def _without_ahead(hear: Hear, ids: Vocabulary, row: int, tokens: Sequence[int]) -> None:
    hear(row, ids.own(tokens).tolist())


def _of_rows(hear: Hear | None, rows: Sequence[int]) -> Hear | None:
    """For some of the rows, which are numbered anew there."""
    return None if hear is None else lambda number, tokens: hear(rows[number], tokens)


def open_world(artifact: Artifact, tokens_of: str | None = None) -> OpenWorld:
    """From the artifact of a stage that trains a world model; ArtifactError where it, or what it came from, is not whole.

    Where it learnt from several sets of tokens, `tokens_of` names the one that `tokens` and `dataset` are; None takes the first by name.
    """
    if artifact.produces != "world_model":
        raise ValueError(f"{artifact.name} ({artifact.kind}) leaves a {artifact.produces}, not a world model")
    sets = sets_of_tokens(artifact)
    if tokens_of is not None and tokens_of not in sets:
        raise ValueError(f"{artifact.name} did not learn from {tokens_of!r}; it learnt from {', '.join(sets) or 'one set of tokens'}")
    for name in ("config.json", "model.safetensors", "vocabulary.json"):
        artifact.path(f"world/{name}")
    world = from_pretrained(artifact.folder / "world")
    return join_world(world.model, world.grammar, artifact, sets, tokens_of)


def sets_of_tokens(artifact: Artifact) -> dict[str, Artifact]:
    """The sets of tokens that a world learns from, by the names in its settings; "" where there is only one."""
    sets = {field.partition(".")[2]: artifact.input(field) for field in sorted(artifact.inputs) if field.split(".")[0] == "tokens"}
    if not sets:
        artifact.input("tokens")  # says what is missing
    return sets


def encoded_by(stream: str, sets: Iterable[Artifact]) -> Artifact:
    """The first of several sets of tokens that has the stream: its tokenizer, and what its values are, are that set's."""
    return next(one for one in sets if f"tokenizers.{stream}" in one.inputs)


def join_world(
    model: WorldModel, grammar: Grammar, artifact: Artifact, sets: Mapping[str, Artifact], tokens_of: str | None = None
) -> OpenWorld:
    """A model of the artifact with the tokenizers and the dataset of the tokens that it learns from, and with the features that it sees."""
    tokens = sets[next(iter(sets)) if tokens_of is None else tokens_of]
    dataset, tokenizers = Dataset(tokens.input("data")), dict[str, Tokenizer]()
    for name in grammar.streams:
        made = encoded_by(name, (tokens, *sets.values()))
        # What another set has, this one's dataset does not hold, but it may be written and shown all the same.
        dataset.add_from_elsewhere(name, Dataset(made.input("data")).streams[name])
        tokenizer = serving(open_tokenizer(made.input(f"tokenizers.{name}").folder / "tokenizer"), dataset.streams[name])
        assert tokenizer is not None, "the tokens were made by it"
        tokenizers[name] = tokenizer
    sight = None
    if "sees.features" in artifact.inputs:
        features = artifact.input("sees.features")
        sight = Sight(features, Sights(features, Tokens(tokens)))
    objectives = tuple(artifact.settings.get("objectives", {"next_token": 1.0}))
    return OpenWorld(model, grammar, tokenizers, Tokens(tokens), dataset, objectives, sight)
