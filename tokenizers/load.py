"""Any tokenizer from its folder."""

import json
from pathlib import Path

from worldloom.tokenizers.action import ActionTokenizer
from worldloom.tokenizers.audio import AudioTokenizer
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.learned import LearnedTokenizer
from worldloom.tokenizers.mel_picture import MelTokenizer
from worldloom.tokenizers.networks.elsewhere import NONE, Networks
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


def load_tokenizer(folder: Path, networks: Networks = NONE) -> Tokenizer:
    """The tokenizer that `save_pretrained` wrote into `folder`; FileNotFoundError or ValueError where there is none.

    `networks` are those of other rooms, by the type of backbone; within worldloom, `stages.open_tokenizer` passes all there are.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("kind")
    found = TOKENIZERS.get(f"{kind}/{config.get('type')}") or TOKENIZERS.get(kind)
    if found is None:
        raise ValueError(f"{folder}: config.json names a tokenizer of kind {kind!r}; known are {', '.join(sorted(TOKENIZERS))}")
    return found.from_pretrained(folder, networks) if issubclass(found, LearnedTokenizer) else found.from_pretrained(folder)
