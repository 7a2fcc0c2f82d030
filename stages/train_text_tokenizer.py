"""Trains a text tokenizer, by sentencepiece, on one stream of a dataset."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from worldloom.stages.artifact import Artifact
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, StageSettings, StreamName
from worldloom.stages.worker import Worker


class TrainTextTokenizer(StageSettings):
    """One text tokenizer training; the same texts give the same model."""

    run: Literal["train_text_tokenizer"]
    data: DatasetRef
    stream: Annotated[str, StreamName(("text",))] = Field(description="the stream of texts to learn")
    vocab_size: Annotated[int, Field(ge=261, le=1 << 20, description="pieces, at most; 260 are control pieces and bytes")] = 512
    model_type: Literal["bpe", "unigram"] = "bpe"
    symbols: tuple[str, ...] = Field((), description="words that are always one piece, wherever a text says them; none may be a control's")
    most_sentences: PositiveInt = Field(1_000_000, description="texts to learn from, from the start of the training split")


def run(settings: TrainTextTokenizer, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
    """Everything, in one worker; short enough to begin again if it is stopped."""
    if worker.rank or (out / "tokenizer" / "README.md").exists():  # what is written last
        return
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.settings import TextStream
    from worldloom.stages.text_figures import report_text
    from worldloom.tokenizers.text import train_text

    dataset = Dataset(inputs["data"])
    if not isinstance(dataset.streams.get(settings.stream), TextStream):
        found = ", ".join(f"{name} ({about.kind})" for name, about in dataset.streams.items())
        raise ValueError(f"stream: {settings.stream!r} is no stream of text of this dataset, which has {found}")
    check_symbols(settings.symbols, dataset.streams)
    texts = dataset.values("train", settings.stream) if dataset.samples("train") else iter(())
    tokenizer = train_text(texts, settings.vocab_size, settings.model_type, settings.most_sentences, settings.symbols)
    tokenizer.measured = report_text(settings, tokenizer, dataset, out)
    tokenizer.save_pretrained(out / "tokenizer")
    worker.report(1, 1, "models", {})


def check_symbols(symbols: Sequence[str], streams: Iterable[str]) -> None:
    """ValueError where a symbol is spelt like a control token, of which texts must never seem to hold one, or is none, or stands twice."""
    from worldloom.tokenizers.text import ESCAPE, SPACE_MARK
    from worldloom.world_model.vocabulary import BOS, EOS, MASK, PAD

    controls = {BOS, EOS, PAD, MASK, "<s>", "</s>", "<unk>", *(f"<{name}>" for name in streams), *(f"</{name}>" for name in streams)}
    controls |= {f"<0x{byte:02X}>" for byte in range(256)}
    for number, symbol in enumerate(symbols):
        if symbol in controls:
            raise ValueError(f"symbols: {symbol!r} is how a control is spelt; controls lie outside the texts' pieces, choose another word")
        if not symbol.strip() or symbol != symbol.strip() or SPACE_MARK in symbol or ESCAPE in symbol:
            raise ValueError(f"symbols: {symbol!r} is no word; leave out spaces around it, U+2581 and U+0010")
        if symbol in symbols[:number]:
            raise ValueError(f"symbols: {symbol!r} stands there twice; name each once")


def finish(settings: TrainTextTokenizer, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """What there is, read back."""
    import json

    return {"codebook_size": json.loads((out / "tokenizer" / "config.json").read_bytes())["codebook_size"]}


STAGE = StageKind(
    name="train_text_tokenizer",
    settings=TrainTextTokenizer,
    run=run,
    finish=finish,
    produces="tokenizer",
    version=2,
    placement="shards",
    parallelism=lambda settings, inputs: 1,
)
