import json
from pathlib import Path

import pytest

from worldloom.stages import train_text_tokenizer
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.train_text_tokenizer import TrainTextTokenizer
from worldloom.stages.worker import Worker
from worldloom.tokenizers.text import TextTokenizer

DATA = ("artifacts", "data", "0123456789abcdef")


def make(folder: Path, root: Path, stream: str = "words", model_type: str = "bpe") -> Artifact:
    data = Artifact.open(root.joinpath(*DATA))
    settings = TrainTextTokenizer.model_validate(
        {"run": "train_text_tokenizer", "data": "data", "stream": stream, "vocab_size": 300, "model_type": model_type}
    )
    return execute(train_text_tokenizer.STAGE, "codes", settings, {"data": data}, folder / "artifacts/codes/0123456789abcdef", Worker())


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_unseen_texts_come_back_and_figures_say_so(tmp_path: Path, tiny_root: Path, model_type: str) -> None:
    made = make(tmp_path, tiny_root, model_type=model_type)
    tokenizer = TextTokenizer.from_pretrained(made.folder / "tokenizer")
    texts = list(Dataset(Artifact.open(tiny_root.joinpath(*DATA))).values("held_out", "words"))
    assert tokenizer.decode(tokenizer.encode(texts)) == texts
    figures = json.loads(made.content("figures.json"))
    assert figures["words.round_trip"] == 1 and figures["words.characters_per_code"] > 1
    assert figures["words.pieces"] == made.counts["codebook_size"] == tokenizer.codebook_size <= 300


def test_the_same_texts_give_the_same_bytes(tmp_path: Path, tiny_root: Path) -> None:
    assert make(tmp_path / "a", tiny_root).manifest == make(tmp_path / "b", tiny_root).manifest


def test_a_stream_that_is_no_text_is_refused(tmp_path: Path, tiny_root: Path) -> None:
    with pytest.raises(ValueError, match=r"'view' is no stream of text of this dataset, which has view \(image\), words \(text\)"):
        make(tmp_path, tiny_root, stream="view")


def test_a_split_whose_samples_have_no_text_is_passed_over(tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Dataset.value
    monkeypatch.setattr(Dataset, "value", lambda data, split, stream, i: None if split == "held_out" else whole(data, split, stream, i))
    made = make(tmp_path, tiny_root)
    assert json.loads(made.content("figures.json"))["words.round_trip"] == 1
    assert "texts of validation" in made.content("card.json").decode()
