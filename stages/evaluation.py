"""What a world model can do, measured: bits per token, what it draws and says when asked, what it writes when left alone.

Where the dataset names an oracle, an answer is right if the oracle reads from it exactly what it reads from the question.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import exp, log
from typing import Any, NamedTuple

import numpy as np
import torch

from worldloom.stages.dataset import Dataset
from worldloom.stages.open_world import Choosing, OpenWorld, Sampled
from worldloom.stages.oracles import Oracle, Reading, View
from worldloom.stages.settings import ActionStream, Stream
from worldloom.stages.streams import kind_of
from worldloom.stages.world_model_learner import objectives
from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Example
from worldloom.world_model.loss import Losses, cross_entropy
from worldloom.world_model.next_token import next_token
from worldloom.world_model.vocabulary import Clock
from worldloom.world_model.weave import Codes, reserve, weave

DOCUMENTS = 64  # of a batch when bits are counted


class Direction(NamedTuple):
    """From the value of one stream to that of another."""

    source: str
    target: str

    @property
    def name(self) -> str:
        return f"{self.source}_to_{self.target}"


class Trial(NamedTuple):
    """One question and the world's answer."""

    given: Any  # a value of the source
    asked: Reading  # what the oracle reads in it
    true: Any  # the dataset's own value of the target
    made: Any  # a value of the target; None where the sequence is not legal
    answered: Reading  # what the oracle reads in that
    legal: bool

    @property
    def right(self) -> bool:
        return self.asked is not None and self.answered == self.asked


class Outcome(NamedTuple):
    """All trials of one direction on one split."""

    direction: Direction
    split: str
    trials: tuple[Trial, ...]
    view: View | None = None  # by which the oracle compared the two

    @property
    def properties(self) -> tuple[str, ...]:
        """Names of what was compared, in the order of a reading."""
        if self.view is None:
            return ()
        return self.view.names(max((len(trial.asked) for trial in self.trials if trial.asked is not None), default=0))

    @property
    def accuracy(self) -> float:
        """Share of answers with everything right."""
        return sum(trial.right for trial in self.trials) / len(self.trials)

    def share_right(self, place: int) -> float:
        """Share of answers whose property number `place` is right."""
        same = (
            trial.asked is not None
            and trial.answered is not None
            and place < len(trial.answered)
            and trial.asked[place] == trial.answered[place]
            for trial in self.trials
        )
        return sum(same) / len(self.trials)


class Bits(NamedTuple):
    """How well a split is predicted."""

    # By stream: bits of a code, or of a segment's end, among what the grammar allows; "masked.frame" of a code that was hidden or in a
    # span, where the world learnt that.
    per_token: dict[str, float]
    # Geometric mean over tokens of the probability that the model, without grammar, gives to what is legal; None where no next token was
    # learnt.
    legal_mass: float | None


def answerable(world: OpenWorld, oracle: Oracle | None, fill_steps: int) -> tuple[Direction, ...]:
    """The directions in which a world can answer: by hidden codes backwards on a clock, too, and, where it did not learn next tokens, only
    to streams of fixed shape.
    """
    ids = world.vocabulary
    found = directions(judged(world, oracle), oracle, None if fill_steps else ids.clock)
    if "next_token" in world.objectives:
        return found
    return tuple(pair for pair in found if fill_steps and ids.streams[ids.index(pair.target)].fixed)


def judged(world: OpenWorld, oracle: Oracle | None) -> dict[str, str]:
    """Kind of every stream that the dataset has and the oracle, where there is one, could read: of actions what was done, no rewards."""
    about = world.dataset.streams
    rewards = {name for name, stream in about.items() if isinstance(stream, ActionStream) and stream.role != "action"}
    return {name: kind for name, kind in world.held.items() if oracle is None or name not in rewards}


def directions(streams: Mapping[str, str], oracle: Oracle | None, clock: Clock | None = None) -> tuple[Direction, ...]:
    """Every stream to every other one with which the oracle can compare it; all pairs where there is no oracle.

    On one clock only forwards: what is done is not to be guessed from frames that come later, nor a first frame from what came of it.
    """
    return tuple(
        Direction(source, target)
        for source in streams
        for target in streams
        if source != target and (oracle is None or oracle.between(streams[source], streams[target]) is not None)
        if clock is None or _forwards(clock, source, target)
    )


def _forwards(clock: Clock, source: str, target: str) -> bool:
    order = clock.streams
    if source not in order or target not in order:
        return True
    return source in clock.given or (target not in clock.given and order.index(source) < order.index(target))


def pick_samples(dataset: Dataset, split: str, names: Sequence[str], count: int, seed: int) -> list[int]:
    """Up to `count` samples of a split that have all streams of `names`, drawn without looking at them, in the dataset's order."""
    shuffled = np.random.default_rng(row_seed(seed, f"choose {split}", 0)).permutation(dataset.samples(split)).tolist()
    whole = (i for i in shuffled if all(dataset.content(split, name, i) is not None for name in names))
    return sorted(i for i, _ in zip(whole, range(count), strict=False))


def ask(
    world: OpenWorld,
    direction: Direction,
    split: str,
    rows: Sequence[int],
    oracle: Oracle | None,
    choosing: Choosing,
    seed: int,
    batch: int,
    between: Callable[[], None],
) -> Outcome:
    """Gives the world every row's source and takes its target. `between` is called behind every batch."""
    source, target = direction
    view = None if oracle is None else oracle.between(world.streams[source], world.streams[target])
    abouts = {name: world.dataset.streams[name] for name in direction}
    if world.vocabulary.clock is not None and {*direction} <= {*world.vocabulary.clock.streams}:
        choosing = choosing.model_copy(update={"guidance": 1.0})  # there is no prompt to count: all stands in the steps
    trials: list[Trial] = []
    for part in _batches(rows, batch):
        given = [world.dataset.value(split, source, i) for i in part]
        seeds = [row_seed(seed, f"{direction.name} {split}", i) for i in part]
        made = world.sample([{source: value} for value in given], [target], seeds, choosing)
        for i, value, one in zip(part, given, made, strict=True):
            answer = one.values.get(target)
            trials.append(
                Trial(
                    given=value,
                    asked=_read(view, abouts[source], value),
                    true=world.dataset.value(split, target, i),
                    made=answer,
                    answered=_read(view, abouts[target], answer),
                    legal=one.legal,
                )
            )
        between()
    return Outcome(direction, split, tuple(trials), view)


def kept(world: OpenWorld, split: str, name: str, oracle: Oracle, most: int, seed: int) -> float | None:
    """Of up to `most` samples, the share in which the oracle reads the same behind the stream's tokenizer: what that alone loses.

    None where it does not read such streams, or there are no samples.
    """
    view = next((view for view in oracle.views if world.streams[name] in view.read), None)
    rows = pick_samples(world.dataset, split, [name], most, seed) if view is not None else []
    if view is None or not rows:
        return None
    values = [world.dataset.value(split, name, i) for i in rows]
    tokenizer, about = world.tokenizers[name], world.dataset.streams[name]
    back = tokenizer.decode(tokenizer.encode(kind_of(about.kind).batch(values)))
    read = [(_read(view, about, before), _read(view, about, after)) for before, after in zip(values, back, strict=True)]
    return sum(before is not None and before == after for before, after in read) / len(read)


def dream(world: OpenWorld, count: int, choosing: Choosing, seed: int, batch: int, between: Callable[[], None]) -> list[Sampled]:
    """`count` sequences from nothing; the model itself chooses the streams and their order.

    By hidden codes nobody chooses: they are all streams of fixed shape.
    """
    made: list[Sampled] = []
    ids = world.vocabulary
    fixed = [name for name in world.streams if ids.streams[ids.index(name)].fixed]
    for part in _batches(range(count), batch):
        seeds = [row_seed(seed, "dream", i) for i in part]
        made.extend(world.sample([{} for _ in part], fixed if choosing.fill_steps else None, seeds, choosing))
        between()
    return made


def distinct(world: OpenWorld, direction: Direction, split: str, rows: Sequence[int], samples: int, choosing: Choosing, seed: int) -> float:
    """How many different answers a prompt gets, over `samples` times that it is asked, on average over the rows: 1 where all differ."""
    given = [world.dataset.value(split, direction.source, row) for row in rows]
    seeds = [row_seed(seed, f"distinct {direction.name} {split} {number}", row) for row in rows for number in range(samples)]
    made = world.sample([{direction.source: value} for value in given for _ in range(samples)], [direction.target], seeds, choosing)
    answers = [one.tokens.tobytes() for one in made]
    return sum(len(set(answers[first : first + samples])) for first in range(0, len(answers), samples)) / len(answers)


def agreement(world: OpenWorld, dreams: Sequence[Sampled], oracle: Oracle) -> float | None:
    """Of the sequences with at least two streams that the oracle reads, the share in which it reads the same in all; None without any."""
    told = [readings for one in dreams if len(readings := readings_of(world, one, oracle)) > 1]
    return sum(len(set(readings)) == 1 and None not in readings for readings in told) / len(told) if told else None


def readings_of(world: OpenWorld, one: Sampled, oracle: Oracle) -> list[Reading]:
    """What the oracle reads, by its first view, in each value of a sequence whose kind that knows."""
    view = oracle.views[0]
    return [_read(view, world.dataset.streams[name], value) for name, value in one.values.items() if world.streams[name] in view.read]


@torch.inference_mode()
def bits(world: OpenWorld, split: str, seed: int, between: Callable[[], None], blind: bool = False) -> Bits:
    """Predicts a whole split by what the world learnt, each sample's streams in an order drawn from the seed, as in training.

    `blind`: without what it sees.
    """
    # By stream (its levels together), and for the order of streams; "masked.frame" of another objective than next_token.
    nats, counts = Counter[str](), Counter[str]()
    unmasked, positions = 0.0, 0
    learnt = objectives(dict.fromkeys(world.objectives, 1.0), full_share=0.0, weights={})
    for part in _batches(range(world.tokens.samples(split)), DOCUMENTS):
        woven = reserve(weave(world.grammar, *_documents(world, split, part, seed)), world.vocabulary)
        seen = _seen(world, split, part, blind)
        for name, (make, _) in learnt.items():
            example = make(woven, world.grammar, np.asarray(part), seed)
            found = _losses(world, example, seen)
            for choice, lost, labels in zip(example.choices, found.sums.tolist(), found.counts.tolist(), strict=True):
                nats[_series(name, choice.name)] += lost
                counts[_series(name, choice.name)] += labels
        if "next_token" in learnt:
            # A pass of its own, because without the full softmax an example leaves out what nothing is to be learnt from.
            free = _losses(world, next_token(woven, world.grammar, np.asarray(part), seed, full_share=1.0), seen)
            unmasked += float(free.sums.sum())
            positions += int(free.counts.sum())
        between()
    names = [series for objective in learnt for stream in world.vocabulary.streams if counts[series := _series(objective, stream.name)]]
    per_token = {name: nats[name] / counts[name] / log(2) for name in names}
    masked = sum(lost for name, lost in nats.items() if "." not in name)
    return Bits(per_token, exp((masked - unmasked) / positions) if positions else None)


def _series(objective: str, stream: str) -> str:
    return stream if objective == "next_token" else f"{objective}.{stream}"


def _seen(world: OpenWorld, split: str, part: Sequence[int], blind: bool) -> torch.Tensor | None:
    """[rows, W]: what the reserved places of some samples' documents hold."""
    if world.sight is None:
        return None
    seen = torch.from_numpy(world.sight.samples.of(split, np.asarray(part)))
    return (torch.full_like(seen, torch.nan) if blind else seen).flatten(0, 1)


def _losses(world: OpenWorld, example: Example, seen: torch.Tensor | None) -> Losses:
    hidden = world.model(example.inputs, example.positions, PackedAttention(example.runs), seen)
    return cross_entropy(hidden, world.model.output, example.choices, example.weights)


def row_seed(seed: int, purpose: str, row: int) -> int:
    """A seed of its own for every row of every purpose, so that no result depends on the batch that it was in."""
    words = np.random.SeedSequence([seed, row, *purpose.encode()]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def _documents(world: OpenWorld, split: str, rows: Sequence[int], seed: int) -> tuple[np.ndarray, dict[str, Codes]]:
    """The order of streams and the codes of some samples, as `weave` takes them."""
    numbers = {name: world.vocabulary.index(name) for name in world.held}
    codes = {}
    for name in numbers:
        ragged = world.tokens.gather(split, name, rows)
        codes[name] = Codes(ragged.values, np.diff(ragged.offsets))
    order = np.full((len(rows), len(numbers)), -1, np.int64)
    for at, row in enumerate(rows):
        there = [name for name in numbers if codes[name].lengths[at]]
        shuffled = world.grammar.arranged(np.random.default_rng((seed, row)).permutation(there).tolist())
        order[at, : len(there)] = [numbers[name] for name in shuffled]
    return order, codes


def _batches(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def _read(view: View | None, stream: Stream, value: Any) -> Reading:
    return None if view is None or value is None else view.read[stream.kind](value, stream)
