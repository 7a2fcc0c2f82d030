"""The door through which stages open what a `pretrain_encoder` left: its encoder, its heads that name classes, its text side.

    encoder/               the picture encoder alone, of every objective
    classifier/            heads and the names of their classes: supervised, distill, deit
    coca/                  poolers and text decoder: coca
    coca/tokenizer/        the text tokenizer that it reads and writes captions with, so that the artifact stands alone
    redraw/                the map that draws hidden patches: simmim

Pictures go in as float32 [B, 3, H, W] in [-1, 1].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.tokenizers.text import BOS, EOS, PAD, TextTokenizer
from worldloom.world_model.encoders.build import Network, NetworkSettings
from worldloom.world_model.encoders.coca import CoCa
from worldloom.world_model.encoders.joined import Namer, Redrawer, load_coca, load_namer, load_redrawer
from worldloom.world_model.encoders.load import from_pretrained

TOKENIZER = Path("coca") / "tokenizer"


class Captions(NamedTuple):
    """Texts as a text decoder reads them."""

    ids: Tensor  # int64 [B, T]: begin, the text's pieces, end, padding
    present: Tensor  # bool [B, T], False on padding


class Captioner:
    """A CoCa with its tokenizer: pictures and texts to vectors that are compared by cosine, pictures to captions."""

    def __init__(self, model: CoCa, tokenizer: TextTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def pictures(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        return self.model.encode(pixels).pooled

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[B, D]; ValueError for a text that is longer than those it was trained on could be."""
        device = self.model.text.embedding.device
        ids, present = captions_of(self.tokenizer, texts, self.model.text.length)
        return self.model.text.read(ids.to(device), present.to(device)).pooled

    def has_room_for(self, text: str) -> bool:
        """Whether `texts` takes it."""
        return len(self.tokenizer.encode([text])[0]) + 2 <= self.model.text.length

    def read(self, ids: Tensor) -> list[str]:
        """The texts of rows of ids, each up to its end."""
        rows = ids.cpu().numpy()
        return self.tokenizer.decode([row[: int(np.argmax(row == EOS)) if EOS in row else len(row)] for row in rows])


def open_encoder(artifact: Path) -> tuple[Network, NetworkSettings]:
    """The encoder alone, frozen and in evaluation mode, and what it is."""
    return from_pretrained(artifact / "encoder")


def open_namer(artifact: Path) -> Namer:
    """Encoder and heads; ValueError where none were trained."""
    return load_namer(artifact)


def open_redrawer(artifact: Path) -> Redrawer:
    """Encoder and what draws hidden patches again; ValueError where it learnt none of that."""
    return load_redrawer(artifact)


def open_captioner(artifact: Path) -> Captioner:
    """Encoder, text side and tokenizer; ValueError where none were trained."""
    model, _ = load_coca(artifact)
    tokenizer = open_tokenizer(artifact / TOKENIZER)
    assert isinstance(tokenizer, TextTokenizer)
    return Captioner(model, tokenizer)


def captions_of(tokenizer: TextTokenizer, texts: Sequence[str], length: int) -> Captions:
    """ValueError for a text of more than `length` tokens, begin and end included."""
    codes = tokenizer.encode(texts)
    longest = max(range(len(codes)), key=lambda row: len(codes[row]))
    width = len(codes[longest]) + 2
    if width > length:
        raise ValueError(
            f"the text {texts[longest][:60]!r} is of {width} tokens, begin and end included, and the text decoder has {length} positions; "
            "shorten it, or train with a longer text.length"
        )
    rows = np.full((len(codes), width), PAD, np.int64)
    rows[:, 0] = BOS
    for row, found in zip(rows, codes, strict=True):
        row[1 : 1 + len(found)], row[1 + len(found)] = found, EOS
    ids = torch.from_numpy(rows)
    # PAD is no piece of any text, so padding is where it stands.
    return Captions(ids, ids != PAD)
