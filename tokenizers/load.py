"""Any tokenizer from its folder."""

import json
from pathlib import Path

from worldloom.tokenizers.action import ActionTokenizer
from worldloom.tokenizers.audio import AudioTokenizer
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.mel_picture import MelTokenizer
from worldloom.tokenizers.text import TextTokenizer
from worldloom.tokenizers.tokenizer import Tokenizer
from worldloom.tokenizers.video import VideoTokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {  # by kind, or by kind and type where a kind has several
    "text": TextTokenizer,
    "image": ImageTokenizer,
    "video": VideoTokenizer,
    "audio": AudioTokenizer,
    "audio/mel": MelTokenizer,
    "action": ActionTokenizer,
}


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `save_pretrained` wrote into `folder`; FileNotFoundError or ValueError where there is none."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("kind")
    by_type = f"{kind}/{config.get('type')}"
    if by_type in TOKENIZERS:
        return TOKENIZERS[by_type].from_pretrained(folder)
    if kind not in TOKENIZERS:
        raise ValueError(f"{folder}: config.json names a tokenizer of kind {kind!r}; known are {', '.join(sorted(TOKENIZERS))}")
    return TOKENIZERS[kind].from_pretrained(folder)
