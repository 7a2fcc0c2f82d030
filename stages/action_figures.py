"""What the bins of an action tokenizer are worth on rows that they were not fitted to."""

from pathlib import Path

import numpy as np

from worldloom.stages.card import Bars, Block, Card, Table, Text, write_card, write_figures
from worldloom.stages.code_figures import bits, markdown_table, use_of
from worldloom.stages.dataset import Dataset
from worldloom.stages.train_action_tokenizer import TrainActionTokenizer
from worldloom.stages.value_batches import Values, spaced
from worldloom.tokenizers.action import ActionTokenizer

SPLITS = ("held_out", "validation", "train")
MEASURED = 2_000  # samples
SHOWN = 8  # dimensions whose codes are drawn


def report_actions(settings: TrainActionTokenizer, tokenizer: ActionTokenizer, dataset: Dataset, out: Path) -> None:
    """Measures the first split that the bins have not seen; writes figures.json and card.json."""
    name = settings.stream
    split, values = next((split, values) for split in SPLITS if len(values := Values(dataset, split, name)))
    some = values[spaced(len(values), MEASURED)]
    codes = tokenizer.encode(some)
    back = tokenizer.decode(codes)
    rows = some.reshape(-1, tokenizer.dimensions)
    error = np.abs(some - back).reshape(-1, tokenizer.dimensions)
    clipped, use = tokenizer.clipped(rows), use_of([codes], tokenizer.codebook_size, tokenizer.levels)
    figures = {
        f"{name}.error": float(error.mean()),
        f"{name}.clipped": float(clipped.mean()),
        f"{name}.codebook_use": use.share,
        f"{name}.perplexity": use.perplexity,
        f"{name}.bits_per_sample": bits(tokenizer),
    }
    write_figures(out, {figure: round(value, 6) for figure, value in figures.items()})
    how = f"{tokenizer.choices} choices" if tokenizer.choices else f"{tokenizer.binning.bins} bins ({tokenizer.binning.type})"
    table = Table(
        columns=("dimension", "smallest", "largest", "mean error", "largest error", "clipped"),
        rows=tuple(
            (d, *(round(float(x), 6) for x in (rows[:, d].min(), rows[:, d].max(), error[:, d].mean(), error[:, d].max(), clipped[d])))
            for d in range(tokenizer.dimensions)
        ),
        title=f"{len(some):,} samples of {split}",
    )
    tokenizer.measured = f"On {len(some)} samples of {split}:\n\n{markdown_table(table.columns, table.rows)}"
    drawn = tuple(
        Bars(values=tuple(float(count) for count in use.count_LK[d]), title=f"Choices of the codes of {name}, dimension {d} ({split})")
        for d in range(min(tokenizer.dimensions, SHOWN))
    )
    blocks: tuple[Block, ...] = (Text(text=f"{tokenizer.steps} steps of {tokenizer.dimensions}, each in {how}."), table, *drawn)
    write_card(out, Card(title=f"Tokenizer of {name}", blocks=blocks))
