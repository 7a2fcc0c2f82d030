"""All measurements of one evaluation, in their order, and the figures that they give."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from worldloom.stages.evaluate_world_model import ANSWERING
from worldloom.stages.evaluation import (
    DOCUMENTS,
    Bits,
    Direction,
    Outcome,
    agreement,
    answerable,
    ask,
    bits,
    distinct,
    dream,
    judged,
    kept,
    pick_samples,
    row_seed,
)
from worldloom.stages.evaluation_rollouts import Rolled, can_roll, roll_out
from worldloom.stages.open_world import Choosing, OpenWorld, Sampled
from worldloom.stages.oracles import Oracle, oracle_of
from worldloom.stages.worker import Worker
from worldloom.world_model.decoder import Decoder
from worldloom.world_model.free import legal_share
from worldloom.world_model.next_token import ORDER

if TYPE_CHECKING:
    from worldloom.stages.evaluate_world_model import EvaluateWorldModel

SPLITS = ("validation", "held_out")
LEGAL, LEGAL_FREE = "legal_share", "legal_share_free"


class Measured(NamedTuple):
    """What an evaluation found out."""

    world: OpenWorld
    oracle: Oracle | None
    bits: dict[str, Bits]  # by split
    blind: dict[str, Bits]  # by split, of a world that sees something: the same without that
    outcomes: tuple[Outcome, ...]
    dreams: tuple[Sampled, ...]
    kept: dict[tuple[str, str], float]  # by split and stream: what its tokenizer alone keeps readable
    distinct: dict[Direction, float]  # share of different answers to one prompt
    legal_free: float | None  # share of legal tokens without the grammar; None where no next token was learnt
    rolled: tuple[Rolled, ...] = ()
    fill_steps: int = 0  # in which answers were written; 0: token by token


def measure(world: OpenWorld, settings: "EvaluateWorldModel", worker: Worker) -> Measured:
    """Runs every measurement of what the world learnt; Interrupted between two batches if the run is asked to stop."""
    oracle = oracle_of(world.dataset.oracle)
    choosing, onward = choosing_of(world, settings), "next_token" in world.objectives
    splits = [split for split in SPLITS if world.dataset.samples(split)] or ["train"]
    fill_steps = world.fill_steps_of(settings.fill_steps)
    pairs = answerable(world, oracle, fill_steps)
    rows = {
        (split, pair): pick_samples(world.dataset, split, pair, prompts_of(world, pair, settings), settings.seed)
        for split in splits
        for pair in pairs
    }
    dreams = settings.unconditional if onward or fill_steps else 0
    counts = [*(len(chosen) for chosen in rows.values()), dreams]
    total = sum(-(-count // settings.batch) for count in counts) + len({pair for (_, pair), chosen in rows.items() if chosen})
    counted = [split for split in splits if split != "train" and world.tokens.samples(split)]
    total += sum(-(-world.tokens.samples(split) // DOCUMENTS) for split in counted) * (1 if world.sight is None else 2)
    rolls = settings.rollouts if onward and can_roll(world, settings.rollout_given) else 0
    total += len(splits) * 3 * -(-rolls // settings.batch)  # with true actions, with shuffled ones, with none
    between = _progress(worker, total)
    dreaming = choosing.model_copy(update={"temperature": settings.dream_temperature, "guidance": 1.0})
    plain = choosing.model_copy(update={"guidance": 1.0, "fill_steps": 0})  # rollouts are written as learnt
    return Measured(
        world=world,
        oracle=oracle,
        bits={split: bits(world, split, settings.seed, between) for split in counted},
        blind={} if world.sight is None else {split: bits(world, split, settings.seed, between, blind=True) for split in counted},
        outcomes=tuple(
            ask(world, pair, split, chosen, oracle, choosing, settings.seed, settings.batch, between)
            for (split, pair), chosen in rows.items()
            if chosen
        ),
        kept={} if oracle is None else _kept(world, splits, oracle, settings),
        distinct=_distinct(world, rows, dreaming, settings, between),
        legal_free=_legal_free(world, settings) if onward else None,
        rolled=tuple(
            rolled
            for split in splits
            if rolls
            and (rolled := roll_out(world, split, rolls, oracle, plain, settings.seed, settings.batch, between, settings.rollout_given))
            is not None
        ),
        dreams=tuple(
            dream(
                world,
                dreams,
                # The model chooses the streams where it can, and that is a next token.
                dreaming.model_copy(update={"fill_steps": 0}) if onward else dreaming,
                settings.seed,
                settings.batch,
                between,
            )
        ),
        fill_steps=fill_steps,
    )


def _legal_free(world: OpenWorld, settings: "EvaluateWorldModel") -> float:
    seeds = [row_seed(settings.seed, "free", row) for row in range(settings.unconditional)]
    return legal_share(Decoder(world.model, torch.float32), world.grammar, seeds)


def choosing_of(world: OpenWorld, settings: "EvaluateWorldModel") -> Choosing:
    """How answers are chosen; ValueError for the temperature of a stream that the world does not have, or a way of writing."""
    temperature = settings.temperature
    if isinstance(temperature, dict):
        if unknown := sorted(set(temperature) - {*world.streams}):
            raise ValueError(f"temperature is given for {unknown[0]!r}; this world has the streams {', '.join(world.streams)}")
        temperature = dict.fromkeys((*world.streams, ORDER), ANSWERING) | temperature
    return Choosing(
        temperature=temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        guidance=settings.guidance,
        fill_steps=world.fill_steps_of(settings.fill_steps),
    )


def _distinct(
    world: OpenWorld,
    rows: dict[tuple[str, Direction], list[int]],
    choosing: Choosing,
    settings: "EvaluateWorldModel",
    between: Callable[[], None],
) -> dict[Direction, float]:
    """Of every direction, on the first split that has samples for it, at the temperature of sequences from nothing."""
    found: dict[Direction, float] = {}
    for (split, pair), chosen in rows.items():
        if chosen and pair not in found:
            some = chosen[: _varied(world, pair, settings)]
            found[pair] = distinct(world, pair, split, some, settings.answers, choosing, settings.seed)
            between()
    return found


def _varied(world: OpenWorld, pair: Direction, settings: "EvaluateWorldModel") -> int:
    """How many samples of a direction are asked several times: fewer where the answer is long."""
    longest = world.vocabulary.streams[world.vocabulary.index(pair.target)].max_length
    return max(1, min(settings.varied, settings.batch // settings.answers, settings.most_codes // (longest * settings.answers)))


def _kept(world: OpenWorld, splits: list[str], oracle: Oracle, settings: "EvaluateWorldModel") -> dict[tuple[str, str], float]:
    found = {
        (split, name): kept(world, split, name, oracle, settings.prompts, settings.seed)
        for split in splits
        for name in judged(world, oracle)
    }
    return {place: share for place, share in found.items() if share is not None}


def prompts_of(world: OpenWorld, pair: Direction, settings: "EvaluateWorldModel") -> int:
    """How many samples a direction asks about: fewer where the answer is long."""
    longest = world.vocabulary.streams[world.vocabulary.index(pair.target)].max_length
    return min(settings.prompts, max(1, settings.most_codes // longest))


def figures_of(measured: Measured) -> dict[str, float]:
    """The figures by their stable names."""
    found: dict[str, float] = {}
    for split, (per_token, legal_mass) in measured.bits.items():
        prefix = "" if split == "validation" else f"{split}_"
        found |= {f"world.{prefix}bits_per_token.{name}": value for name, value in per_token.items()}
        if legal_mass is not None:
            found[f"world.{prefix}legal_mass"] = legal_mass
        if split in measured.blind:
            found |= {f"world.{prefix}bits_per_token_unseen.{name}": value for name, value in measured.blind[split].per_token.items()}
    for (split, name), share in measured.kept.items():
        found[f"{name}.kept" if split == "validation" else f"{name}.{split}_kept"] = share
    if measured.oracle is not None:
        for outcome in measured.outcomes:
            found[accuracy_name(outcome.direction, outcome.split)] = outcome.accuracy
            for place, name in enumerate(outcome.properties):
                found[accuracy_name(outcome.direction, outcome.split, name)] = outcome.share_right(place)
        agreed = agreement(measured.world, measured.dreams, measured.oracle)
        if agreed is not None:
            found["unconditional.agreement"] = agreed
    found |= {f"{direction.name}.distinct_share": share for direction, share in measured.distinct.items()}
    if measured.legal_free is not None:
        found[LEGAL_FREE] = measured.legal_free
    for split, horizons, *_ in measured.rolled:
        prefix = "" if split == "validation" else f"{split}_"
        for at in horizons:
            values = {name: value for name, value in at._asdict().items() if name != "horizon" and value is not None}
            found |= {f"rollout.{prefix}{name}_{at.horizon}": value for name, value in values.items()}
    legal = [trial.legal for outcome in measured.outcomes for trial in outcome.trials] + [one.legal for one in measured.dreams]
    if legal:
        found[LEGAL] = sum(legal) / len(legal)
    if measured.dreams:
        found["distinct_share"] = len({one.tokens.tobytes() for one in measured.dreams}) / len(measured.dreams)
    return found


def accuracy_name(direction: Direction, split: str, of: str = "") -> str:
    """caption_to_frame.accuracy on validation, caption_to_frame.held_out_accuracy elsewhere; `of` one property, .shape_accuracy."""
    return f"{direction.name}.{'_'.join(part for part in ('' if split == 'validation' else split, of, 'accuracy') if part)}"


def _progress(worker: Worker, total: int) -> Callable[[], None]:
    done = 0

    def between() -> None:
        nonlocal done
        done += 1
        worker.report(done, total, "batches", {})
        worker.check()

    return between
