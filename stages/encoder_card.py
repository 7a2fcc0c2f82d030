"""An evaluation of an encoder as a card: tables of what it names and finds, its captions, and what it sees."""

from pathlib import Path

import numpy as np
import torch

from worldloom.stages.card import Block, Card, Cell, Gallery, Item, Table, Text, write_picture
from worldloom.stages.encoder_evaluation import Captioned, Measured
from worldloom.stages.encoder_pictures import SIDE, looks, show_attention, show_redrawn
from worldloom.stages.evaluate_encoder import EvaluateEncoder
from worldloom.world_model.encoders.joined import Redrawer
from worldloom.world_model.encoders.simmim import hide_units

HEADLINES = 4  # figures
WAYS = {"greedy": "greedily", "top_p": "drawn by top-p", "beam": "by beam search"}


def encoder_card(measured: Measured, settings: EvaluateEncoder, out: Path) -> Card:
    """Writes the card's pictures below `out` and returns the card."""
    blocks: list[Block | None] = [_captions(each, settings.shown, out) for each in measured.captioned[:1]]
    blocks += [_named(measured), _by_words(measured), _found(measured), _caption_table(measured)]
    if measured.judged.redrawer is not None:
        blocks.append(_redrawn(measured.judged.redrawer, measured.shown, settings.seed, out))
    if looks(measured.judged.encoder):
        blocks.append(show_attention(measured.judged.encoder, measured.shown, out))
    left_out = list(measured.left_out)
    if not looks(measured.judged.encoder):
        left_out.append("Attention: this encoder has no class token that looks at its patches.")
    if left_out:
        blocks.append(Text(text="Left out. " + " ".join(left_out)))
    kept = tuple(block for block in blocks if block is not None)
    return Card(title=f"What {measured.judged.name} sees", blocks=kept, headline=_headline(measured))


def _headline(measured: Measured) -> tuple[str, ...]:
    """Of the first split: what it names by neighbours and by words, what it finds, what it writes."""
    endings = ("_knn_accuracy", "_zero_shot_accuracy", "_recall", "_beam_caption_accuracy")
    found = [next((name for name in measured.figures if name.endswith(ending)), None) for ending in endings]
    return tuple(name for name in found if name is not None)[:HEADLINES]


def _named(measured: Measured) -> Table | None:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (row.by, row.split, row.way, row.pictures, _rounded(row.neighbours), _rounded(row.probe)) for row in measured.named
    )
    counts = ", ".join(f"{count} of {by}" for by, count in measured.classes.items())
    columns = ("class", "split", "features", "pictures", "k-NN accuracy", "linear probe")
    return Table(title=f"Classes named by features: {counts}", columns=columns, rows=rows) if rows else None


def _by_words(measured: Measured) -> Table | None:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (row.by, row.split, row.pictures, measured.classes[row.by], _rounded(row.accuracy)) for row in measured.by_words
    )
    columns = ("class", "split", "pictures", "classes", "accuracy")
    return Table(title="Classes named by the nearest prompt", columns=columns, rows=rows) if rows else None


def _found(measured: Measured) -> Table | None:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (row.split, row.pairs, row.at, _rounded(row.to_captions), _rounded(row.to_pictures)) for row in measured.found
    )
    title = "Share of pairs found again among so many, no two of which say the same"
    return (
        Table(title=title, columns=("split", "pairs", "nearest", "captions of pictures", "pictures of captions"), rows=rows)
        if rows
        else None
    )


def _caption_table(measured: Measured) -> Table | None:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (each.split, len(each.captions), WAYS[way], _rounded(each.accuracy(way))) for each in measured.captioned for way in WAYS
    )
    title = "Captions that say what the dataset's own say"
    return Table(title=title, columns=("split", "pictures", "written", "share right"), rows=rows) if rows else None


def _captions(captioned: Captioned, shown: int, out: Path) -> Gallery:
    items = []
    for number, caption in enumerate(captioned.captions[:: max(1, len(captioned.captions) // shown)][:shown]):
        scale = max(1, SIDE // caption.picture.shape[0])
        file = write_picture(out, f"captioned-{number:02d}", caption.picture.repeat(scale, axis=0).repeat(scale, axis=1))
        said = dict.fromkeys(caption.written[way] for way in WAYS if way != "beam")
        detail = f"dataset: {caption.true}; otherwise written: {' | '.join(said)}"
        items.append(Item(file=file, caption=caption.written["beam"], verdict="right" if caption.right["beam"] else "wrong", detail=detail))
    return Gallery(items=tuple(items), title=f"Pictures of {captioned.split} and captions written by beam search")


def _redrawn(redrawer: Redrawer, shown: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", seed: int, out: Path) -> Block:
    grid = redrawer.model.encoder.patches.grid(*shown.shape[1:3])
    hidden = hide_units(len(shown), grid, redrawer.unit, redrawer.ratio, torch.Generator().manual_seed(seed))
    return show_redrawn(redrawer.model, shown, hidden, out)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
