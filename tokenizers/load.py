"""Any tokenizer from its folder."""

import json
from pathlib import Path

from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.text import TextTokenizer

TOKENIZERS: dict[str, type[ImageTokenizer] | type[TextTokenizer]] = {
    "vqgan": ImageTokenizer,
    "vqvae": ImageTokenizer,
    "dvae": ImageTokenizer,
    "sentencepiece": TextTokenizer,
}


def load_tokenizer(folder: Path) -> ImageTokenizer | TextTokenizer:
    """The tokenizer that `save_pretrained` wrote into `folder`; FileNotFoundError or ValueError where there is none."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = config.get("type")
    if name not in TOKENIZERS:
        raise ValueError(f"{folder}: config.json names a tokenizer of type {name!r}; known are {', '.join(sorted(TOKENIZERS))}")
    return TOKENIZERS[name].from_pretrained(folder)
