"""An evaluation as a card: what the world drew and said, with the oracle's verdicts, and the figures behind it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from worldloom.stages.card import Block, Card, Cell, Curves, Gallery, Item, Table, Text, Verdict, write_clip, write_picture
from worldloom.stages.contact_sheet import Pinned, contact_sheet
from worldloom.stages.disk import write_file
from worldloom.stages.evaluation import Direction, Outcome, Trial, readings_of
from worldloom.stages.evaluation_figures import LEGAL, LEGAL_FREE, Measured, accuracy_name
from worldloom.stages.evaluation_rollouts import Horizon, Rolled
from worldloom.stages.open_world import Sampled
from worldloom.stages.rollouts import clock_of
from worldloom.stages.show import SHOWN_KINDS, show

LETTERS = 120  # of a text on the card
OVERVIEW = 12  # pictures on the sheet
# Where no oracle says what a split's samples are.
SPLITS = {"validation": "samples that training never saw", "held_out": "samples held out from training"}
Shown = TypeVar("Shown")


def evaluation_card(measured: Measured, shown: int, out: Path) -> Card:
    """Writes the card's pictures below `out` and returns the card; galleries hold `shown` examples at most.

    pictures/overview.png is not on it: one sheet of what was drawn, for places that show a single picture.
    """
    ordered = sorted(measured.outcomes, key=lambda outcome: _prominence(measured, outcome))
    examples = [block for outcome in ordered if (block := _examples(measured, outcome, shown, out)) is not None]
    if ordered and _draws(measured, ordered[0]):
        _overview(measured, ordered[0], out)
    rolled = [block for each in measured.rolled for block in _rolled(measured, each, shown, out)]
    blocks = [
        _filled(measured),
        *examples,
        *rolled,
        _dreams(measured, shown, out),
        _properties(measured),
        _kept(measured),
        _distinct(measured),
        _bits(measured),
    ]
    return Card(
        title="What the world model can do", blocks=tuple(block for block in blocks if block is not None), headline=_headline(measured)
    )


def _overview(measured: Measured, outcome: Outcome, out: Path) -> None:
    pinned = [
        Pinned(trial.made, _words(trial.given), None if measured.oracle is None else trial.right)
        for trial in outcome.trials
        if trial.made is not None and measured.world.streams[outcome.direction.source] == "text"
    ]
    if pinned:
        write_picture(out, "overview", contact_sheet(_spread(pinned, OVERVIEW)))


def _filled(measured: Measured) -> Block | None:
    if not measured.fill_steps:
        return None
    return Text(text=f"Answers of fixed shape are written in {measured.fill_steps} steps, by hidden codes; all others token by token.")


def _headline(measured: Measured) -> tuple[str, ...]:
    legal = (*(LEGAL,) * bool(measured.outcomes or measured.dreams), *(LEGAL_FREE,) * (measured.legal_free is not None))
    if measured.oracle is None or not measured.outcomes:
        return (*(f"world.bits_per_token.{name}" for bits in measured.bits.values() for name in bits.per_token), *legal)
    drawn_first = sorted(measured.outcomes, key=lambda outcome: _draws(measured, outcome), reverse=True)
    return (*(accuracy_name(outcome.direction, outcome.split) for outcome in drawn_first), *legal)


def _prominence(measured: Measured, outcome: Outcome) -> tuple[bool, bool]:
    """Pictures drawn come first, and those of combinations never seen before all."""
    return not _draws(measured, outcome), outcome.split != "held_out"


def _draws(measured: Measured, outcome: Outcome) -> bool:
    return measured.world.streams[outcome.direction.target] == "image"


def _examples(measured: Measured, outcome: Outcome, shown: int, out: Path) -> Block | None:
    """A gallery where the direction has a picture on one side, else a table."""
    kinds = measured.world.streams
    source, target = outcome.direction
    heavy = {kinds[source], kinds[target]} & {"video", "audio"}  # clips and sounds are large: fewer of them
    trials = _spread(outcome.trials, -(-shown // 4) if heavy else shown)
    if not trials:
        return None
    names = (measured.oracle and measured.oracle.splits) or SPLITS
    title = f"{source} → {target}: {names.get(outcome.split, outcome.split)}"
    if not {kinds[source], kinds[target]} & SHOWN_KINDS:
        rows = tuple((_words(trial.given), _words(trial.made), _verdict(measured, trial)) for trial in trials)
        return Table(title=title, columns=(source, target, "verdict"), rows=rows)
    stem = _stem(f"{outcome.direction.name}-{outcome.split}")
    items = [_item(measured, outcome.direction, trial, f"{stem}-{number:03d}", out) for number, trial in enumerate(trials)]
    return Gallery(title=title, items=tuple(item for item in items if item is not None))


def _item(measured: Measured, direction: Direction, trial: Trial, name: str, out: Path) -> Item | None:
    """What was made, or what was given where that cannot be shown; an original beside it where both can."""
    source, target = (measured.world.dataset.streams[each] for each in direction)
    verdict = _verdict(measured, trial)
    detail = ""
    if measured.oracle is not None and verdict == "wrong":
        detail = f"{measured.oracle.say(trial.answered)}; asked for {measured.oracle.say(trial.asked)}"
    elif measured.oracle is None and target.kind not in SHOWN_KINDS:
        detail = f"in the dataset: {_words(trial.true)}"  # nobody judges: show what the dataset has for this
    if trial.made is None:
        return None
    if target.kind not in SHOWN_KINDS:
        given = show(out, name, trial.given, source)
        assert given is not None, "one of the two can be shown"
        return Item(file=given.file, sound=given.sound, caption=_words(trial.made), verdict=verdict, detail=detail)
    made = show(out, name, trial.made, target)
    assert made is not None
    original = show(out, f"{name}-before", trial.given, source)
    if original is None and measured.oracle is None and trial.true is not None:
        original = show(out, f"{name}-before", trial.true, target)
    before = None if original is None else original.file
    caption = f"from {direction.source}" if source.kind in SHOWN_KINDS else _words(trial.given)
    return Item(file=made.file, sound=made.sound, caption=caption, verdict=verdict, detail=detail, before=before)


def _rolled(measured: Measured, rolled: Rolled, shown: int, out: Path) -> list[Block]:
    """Curves over the horizon, the same as a table, and clips beside how they went on."""
    names = (measured.oracle and measured.oracle.splits) or SPLITS
    title = f"Rolled out from {'one frame' if rolled.given == 1 else f'{rolled.given} frames'}: {names.get(rolled.split, rolled.split)}"
    lines = [{name: value for name, value in at._asdict().items() if value is not None} for at in rolled.horizons]
    file = f"logs/rollout-{_stem(rolled.split)}.jsonl"
    (out / "logs").mkdir(exist_ok=True)
    write_file(out / file, "".join(json.dumps(line) + "\n" for line in lines).encode())
    columns = tuple(name for name in Horizon._fields if any(name in line for line in lines))
    curves: list[Block] = [
        Curves(file=file, x="horizon", series=tuple(name for name in columns if name.endswith(of)), title=f"{title}: {what}", unit=unit)
        for of, what, unit in (
            ("psnr", "likeness to the true frames", "dB"),
            ("code_accuracy", "codes as in the true frames", "share"),
            ("action_accuracy", "the action read from the frames", "share"),
        )
        if any(name.endswith(of) for name in columns)
    ]
    rows = tuple(tuple(_rounded(line.get(name)) for name in columns) for line in lines)
    rate = getattr(measured.world.dataset.streams[clock_of(measured.world).streams[0]], "frame_rate", 8.0)
    items = tuple(
        Item(
            file=write_clip(out, _stem(f"rolled-{rolled.split}-{number:03d}"), dreamed, rate),
            before=write_clip(out, _stem(f"rolled-{rolled.split}-{number:03d}-before"), true, rate),
            caption="true, and dreamed with the same actions",
        )
        for number, (true, dreamed) in enumerate(list(zip(rolled.true, rolled.dreamed, strict=True))[: -(-shown // 4)])
    )
    shown_clips: list[Block] = [Gallery(title=title, items=items)] if items else []
    return [*shown_clips, *curves, Table(title=title, columns=columns, rows=rows)]


def _dreams(measured: Measured, shown: int, out: Path) -> Block | None:
    """What the world writes from nothing; where the oracle reads two values of a sequence, right means that they agree."""
    kinds = measured.world.streams
    items: list[Item] = []
    for number, one in enumerate(measured.dreams[:shown]):
        seen = {name: value for name, value in one.values.items() if kinds[name] in SHOWN_KINDS}
        if seen:
            words = "; ".join(_words(value) for name, value in one.values.items() if name not in seen)
            streams = measured.world.dataset.streams
            written = ((name, show(out, _stem(f"nothing-{number:03d}-{name}"), value, streams[name])) for name, value in seen.items())
            made = {name: each for name, each in written if each is not None}
            looks = sorted(made, key=lambda name: kinds[name] == "audio")  # a sound's picture only where there is no other
            sound = next((each.sound for each in made.values() if each.sound), None)
            before = made[looks[1]].file if len(looks) > 1 and kinds[looks[1]] != "audio" else None
            caption = words or "without words"
            items.append(Item(file=made[looks[0]].file, before=before, sound=sound, caption=caption, verdict=_agrees(measured, one)))
    if items:
        return Gallery(title="Nothing → everything", items=tuple(items))
    rows = tuple(tuple(_words(one.values.get(name)) for name in kinds) for one in measured.dreams[:shown])
    return Table(title="Nothing → everything", columns=tuple(kinds), rows=rows) if rows else None


def _agrees(measured: Measured, one: Sampled) -> Verdict | None:
    readings = readings_of(measured.world, one, measured.oracle) if measured.oracle else []
    if len(readings) < 2:
        return None
    return "right" if len(set(readings)) == 1 and readings[0] is not None else "wrong"


def _properties(measured: Measured) -> Block | None:
    """One row for every direction and split, one column for every property."""
    if measured.oracle is None or not measured.outcomes:
        return None
    names = list(dict.fromkeys(name for outcome in measured.outcomes for name in outcome.properties))
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            f"{outcome.direction.source} → {outcome.direction.target}",
            outcome.split,
            len(outcome.trials),
            *(round(outcome.share_right(outcome.properties.index(name)), 4) if name in outcome.properties else None for name in names),
            round(outcome.accuracy, 4),
        )
        for outcome in measured.outcomes
    )
    return Table(title="Share right, by property", columns=("direction", "split", "prompts", *names, "all"), rows=rows)


def _kept(measured: Measured) -> Block | None:
    """What tokenizers alone lose, whatever the model does."""
    if not measured.kept:
        return None
    rows = tuple((name, split, round(share, 4)) for (split, name), share in measured.kept.items())
    return Table(title="Share that the oracle reads the same behind the stream's tokenizer", columns=("stream", "split", "kept"), rows=rows)


def _distinct(measured: Measured) -> Block | None:
    if not measured.distinct:
        return None
    rows = tuple((f"{direction.source} → {direction.target}", round(share, 4)) for direction, share in measured.distinct.items())
    return Table(
        title="Share of different answers to one and the same prompt, asked several times", columns=("direction", "distinct"), rows=rows
    )


def _bits(measured: Measured) -> Block | None:
    if not measured.bits:
        return Text(text="The dataset has no samples to evaluate on but those of training.")
    names = list(dict.fromkeys(name for bits in measured.bits.values() for name in bits.per_token))
    counted = [*measured.bits.items(), *((f"{split}, nothing seen", bits) for split, bits in measured.blind.items())]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (split, *(_rounded(bits.per_token.get(name)) for name in names), _rounded(bits.legal_mass)) for split, bits in counted
    )
    note = (
        "Bits per token by stream, also of hidden codes and spans; legal: what the model gives to legal tokens without the grammar's help"
    )
    return Table(title=note, columns=("split", *names, "legal"), rows=rows)


def _spread(items: Sequence[Shown], most: int) -> list[Shown]:
    """Up to `most` items, evenly spaced: neighbours in a folder are much alike."""
    return [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(np.round(value, 4))


def _verdict(measured: Measured, trial: Trial) -> Verdict | None:
    if measured.oracle is None:
        return None
    return "right" if trial.right else "wrong"


def _words(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype == np.float32 and value.size <= 64:
        value = " ".join(f"{number:g}" for number in value.ravel())  # actions
    text = value if isinstance(value, str) else f"{type(value).__name__} {getattr(value, 'shape', '')}".strip()
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


def _stem(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_") or "picture"
