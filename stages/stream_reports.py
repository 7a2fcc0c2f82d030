"""The report of a tokenizer that serves several streams: each is measured apart, all stand on one card."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldloom.stages.card import CARD, FIGURES, Block, Card, Curves, Gallery, Picture, Sound, Text, write_card, write_figures
from worldloom.stages.code_figures import RATES
from worldloom.stages.dataset import Dataset
from worldloom.stages.disk import unlink
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.tokenizers.learned import LearnedTokenizer

Report = Callable[[TrainTokenizer, Any, Dataset, Path, int], None]


def report_streams(
    report: Report, settings: TrainTokenizer, tokenizer: LearnedTokenizer, dataset: Dataset, out: Path, threads: int
) -> None:
    """`report` for every stream; what it leaves for those of `also` lies in streams/<name>/, their figures and blocks on the card."""
    report(settings, tokenizer, dataset, out, threads)
    if not settings.also:
        return
    card, figures = _card(out), json.loads((out / FIGURES).read_bytes())
    blocks, headline, measured = list(card.blocks), list(card.headline), [f"## {settings.stream}\n\n{tokenizer.measured}"]
    for name in settings.also:
        folder = out / "streams" / name
        folder.mkdir(parents=True, exist_ok=True)
        report(settings.model_copy(update={"stream": name, "also": ()}), tokenizer, dataset, folder, threads)
        measured.append(f"## {name}\n\n{tokenizer.measured}")
        theirs = _card(folder)
        figures |= json.loads((folder / FIGURES).read_bytes())
        blocks.append(Text(text=f"The same tokenizer on {name}:"))
        blocks += [_moved(block, f"streams/{name}") for block in theirs.blocks if not isinstance(block, Curves)]  # one training, one curve
        headline += theirs.headline[:1]
        os.replace(folder / RATES, out / RATES.replace(".json", f"-{name}.json"))  # of this machine: no part of the artifact
        (folder / RATES).parent.rmdir()
        for done in (CARD, FIGURES):
            unlink(folder / done)
    tokenizer.measured = "\n".join(measured)
    write_figures(out, figures)
    write_card(out, Card(title=card.title, blocks=tuple(blocks), headline=tuple(headline)))


def _card(folder: Path) -> Card:
    return Card.model_validate_json((folder / CARD).read_bytes())


def _moved(block: Block, folder: str) -> Block:
    """The block with its files where they lie, seen from the artifact."""
    if isinstance(block, Picture):
        return block.model_copy(update={"file": f"{folder}/{block.file}"})
    if isinstance(block, Sound):
        return block.model_copy(update={"file": f"{folder}/{block.file}", "picture": f"{folder}/{block.picture}"})
    if isinstance(block, Gallery):
        names = ("file", "sound", "before")
        items = tuple(
            item.model_copy(update={name: f"{folder}/{value}" for name in names if (value := getattr(item, name)) is not None})
            for item in block.items
        )
        return block.model_copy(update={"items": items})
    return block
