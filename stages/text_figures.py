"""What a trained text tokenizer is worth: pieces, characters a code, and whether unseen texts come back as they were."""

from itertools import islice
from pathlib import Path

from worldloom.stages.card import Card, Table, Text, write_card, write_figures
from worldloom.stages.code_figures import markdown_table
from worldloom.stages.dataset import Dataset
from worldloom.stages.train_text_tokenizer import TrainTextTokenizer
from worldloom.tokenizers.text import TextTokenizer

SPLITS = ("held_out", "validation", "train")
MEASURED = 1_000  # texts
SHOWN = 8
LONGEST_SHOWN = 200  # characters


def report_text(settings: TrainTextTokenizer, tokenizer: TextTokenizer, dataset: Dataset, out: Path) -> str:
    """Measures the first split that training has not seen, writes figures.json and card.json; the figures as Markdown."""
    name = settings.stream
    split, texts = next((split, texts) for split in SPLITS if (texts := _texts(dataset, split, name)))
    codes = tokenizer.encode(texts)
    returned = sum(text == back for text, back in zip(texts, tokenizer.decode(codes), strict=True))
    characters, count = sum(map(len, texts)), sum(map(len, codes))
    figures = {
        f"{name}.pieces": tokenizer.codebook_size,
        f"{name}.characters_per_code": round(characters / max(1, count), 4),
        f"{name}.bytes_per_code": round(sum(len(text.encode()) for text in texts) / max(1, count), 4),
        f"{name}.round_trip": returned / len(texts),
    }
    write_figures(out, figures)
    rows = tuple(
        (text[:LONGEST_SHOWN], " ".join(repr(piece) for piece in tokenizer.pieces(ids)[:40]), len(ids))
        for text, ids in zip(texts[:SHOWN], codes[:SHOWN], strict=True)
    )
    summary = (
        f"{tokenizer.codebook_size} pieces ({settings.model_type}); {len(texts)} texts of {split}: "
        f"{figures[f'{name}.characters_per_code']:.2f} characters a code, {returned} came back exactly."
    )
    table = Table(columns=("text", "pieces", "codes"), rows=rows, title=f"Texts of {split}")
    write_card(out, Card(title=f"Tokenizer of {name}", blocks=(Text(text=summary), table)))
    names = ("characters_per_code", "bytes_per_code", "round_trip")
    return f"On {len(texts)} texts of {split}:\n\n" + markdown_table(
        ("characters a code", "bytes a code", "share that came back"), [tuple(figures[f"{name}.{each}"] for each in names)]
    )


def _texts(dataset: Dataset, split: str, name: str) -> list[str]:
    """The first texts of a split, which may have none although it has samples."""
    return list(islice(dataset.values(split, name), MEASURED)) if dataset.samples(split) else []
