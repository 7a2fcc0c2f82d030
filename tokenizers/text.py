"""Text to codes and back by sentencepiece (arXiv:1808.06226), without loss for any Unicode text.

sentencepiece's defaults change spaces; the options below do not. Its own mark for a space, U+2581, is escaped: DLE (U+0010, "data link
escape") followed by "_" stands for it, and DLE twice for DLE. Pieces of kind control (unk, bos, eos, pad) are never found in text.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import sentencepiece

FORMAT = 1
ESCAPE, SPACE_MARK = "\x10", "\u2581"
UNK, BOS, EOS, PAD = 0, 1, 2, 3
CONTROLS = 4  # ids below this are no text
FEWEST = CONTROLS + 256  # control and byte pieces; the alphabet comes on top
LONGEST = 4096  # bytes of a training sentence; sentencepiece would drop longer ones without a word, so they are cut
ModelType = Literal["bpe", "unigram"]


class TextTokenizer:
    """Texts to arrays of sentencepiece ids."""

    kind: ClassVar[str] = "text"
    levels = 1
    shape = None

    def __init__(self, model: bytes) -> None:
        """`model` is the content of a tokenizer.model; load only files whose digest is known."""
        self.model = model
        self.measured = ""  # a section of README.md, in Markdown: what whoever trained it found
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @property
    def codebook_size(self) -> int:
        return int(self._processor.get_piece_size())

    @property
    def fingerprint(self) -> str:
        """sha256 over the model and the way of escaping."""
        return hashlib.sha256(f"sentencepiece {FORMAT}\n".encode() + self.model).hexdigest()

    def encode(self, batch: Sequence[str]) -> list[np.ndarray[Any, Any]]:
        """Each text's ids, int64; never a control piece. ValueError for lone surrogates, which are no text."""
        texts = [escape(text) for text in batch]
        codes = [np.asarray(ids, dtype=np.int64) for ids in self._processor.encode(texts, out_type=int)] if texts else []
        assert all(not len(ids) or ids.min() >= CONTROLS for ids in codes), "a text gave a control piece"
        return codes

    def decode(self, codes: Sequence[Any]) -> list[str]:
        """The texts of sequences of ids. Control pieces give nothing, broken UTF-8 gives U+FFFD; ValueError for what is no id."""
        texts = []
        for sequence in codes:
            found = np.asarray(sequence)
            if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
                raise ValueError(f"a text's codes are one row of integers, got {found.dtype} of shape {found.shape}")
            ids = found.tolist()
            if ids and not 0 <= min(ids) <= max(ids) < self.codebook_size:
                raise ValueError(f"text codes must lie in 0 .. {self.codebook_size - 1}, got {min(ids)} .. {max(ids)}")
            texts.append(unescape(self._processor.decode([code for code in ids if code >= CONTROLS])))
        return texts

    def pieces(self, codes: Sequence[int] | np.ndarray[Any, Any]) -> list[str]:
        """The pieces themselves, to show to people; a space is sentencepiece's mark."""
        return [str(self._processor.id_to_piece(int(code))) for code in codes]

    def save_pretrained(self, folder: Path) -> None:
        """Writes tokenizer.model, config.json and README.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self.model)
        config = {
            "format": FORMAT,
            "kind": self.kind,
            "type": "sentencepiece",
            "codebook_size": self.codebook_size,
            "sha256": hashlib.sha256(self.model).hexdigest(),
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(
            "# Tokenizer of texts (sentencepiece)\n\n"
            f"Texts to codes of {self.codebook_size} pieces, and back; with byte fallback, so that every Unicode text comes back.\n\n"
            "```python\n"
            "from pathlib import Path\n\nfrom worldloom.stages.open_tokenizer import open_tokenizer\n\n"
            'tokenizer = open_tokenizer(Path("."))\n'
            "codes = tokenizer.encode(texts)  # list of str -> list of int64 arrays\n"
            "texts = tokenizer.decode(codes)\n"
            "```\n"
            f"{self.measured and chr(10) + self.measured}",
            encoding="utf-8",
        )

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Reads what `save_pretrained` wrote; ValueError, before sentencepiece sees it, for a model with another digest."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("format") != FORMAT or config.get("type") != "sentencepiece":
            raise ValueError(f"{folder}: config.json does not describe a sentencepiece tokenizer of format {FORMAT}")
        model = (folder / "tokenizer.model").read_bytes()
        if hashlib.sha256(model).hexdigest() != config["sha256"]:
            raise ValueError(f"{folder}: tokenizer.model is not the file that config.json names (sha256); it is damaged or was exchanged")
        return cls(model)


def train_text(
    texts: Iterable[str], vocab_size: int, model_type: ModelType = "bpe", most_sentences: int = 1_000_000, symbols: Sequence[str] = ()
) -> TextTokenizer:
    """Trains on `texts`, up to `most_sentences` of them; a small corpus may give fewer than `vocab_size` pieces.

    Deterministic: one thread, and texts are taken in order. ValueError where there is no text, or the alphabet does not fit.
    """
    if vocab_size < FEWEST + 1:
        raise ValueError(
            f"vocab_size must be above {FEWEST} ({CONTROLS} control pieces, 256 bytes, and the characters of the texts), got {vocab_size}"
        )
    sentences = _sentences(texts, most_sentences)
    first = next(sentences, None)
    if first is None:
        raise ValueError("there is no text to train on: every text of the training split is empty")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chain(first, sentences),
            model_writer=written,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=0.9995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            user_defined_symbols=list(symbols),
            max_sentence_length=2 * LONGEST,
            num_threads=1,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=PAD,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"sentencepiece cannot train {vocab_size} pieces of type {model_type} on these texts: {error}") from error
    return TextTokenizer(written.getvalue())


def escape(text: str) -> str:
    """The text without U+2581; ValueError for lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate (U+{ord(text[error.start]):04X} at {error.start}), which is not Unicode text; "
            f"decode its source with errors='replace' or drop it"
        ) from None
    return text.replace(ESCAPE, ESCAPE * 2).replace(SPACE_MARK, ESCAPE + "_")


def unescape(text: str) -> str:
    """Undoes `escape`; an escape that stands alone, which only a model can write, stays as it is."""
    return re.sub(f"{ESCAPE}([{ESCAPE}_])", lambda found: SPACE_MARK if found[1] == "_" else ESCAPE, text)


def _sentences(texts: Iterable[str], most: int) -> Iterator[str]:
    """Escaped, without tabs (sentencepiece skips lines with them) and NUL, cut to what the trainer takes."""
    for count, text in enumerate(texts):
        if count == most:
            return
        for part in re.split("[\t\0]", escape(text)):
            for start in range(0, len(part), LONGEST // 4):
                yield part[start : start + LONGEST // 4]


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
