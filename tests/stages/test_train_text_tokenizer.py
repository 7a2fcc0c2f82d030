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


def make(folder: Path, root: Path, stream: str = "words", model_type: str = "bpe", symbols: tuple[str, ...] = ()) -> Artifact:
    data = Artifact.open(root.joinpath(*DATA))
    settings = TrainTextTokenizer.model_validate(
        {"run": "train_text_tokenizer", "data": "data", "stream": stream, "vocab_size": 300, "model_type": model_type, "symbols": symbols}
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
    codes = sum(map(len, tokenizer.encode(texts)))
    assert figures["words.bytes_per_code"] == pytest.approx(sum(len(text.encode()) for text in texts) / codes, abs=1e-3)
    assert f"| {figures['words.characters_per_code']} |" in (made.folder / "tokenizer" / "README.md").read_text()
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


def test_symbols_are_one_piece_wherever_they_stand_and_texts_come_back(tmp_path: Path, tiny_root: Path) -> None:
    tokenizer = TextTokenizer.from_pretrained(make(tmp_path, tiny_root, symbols=("[MOVE]", "größe")).folder / "tokenizer")
    for text in ("go [MOVE] on", "x[MOVE][MOVE]", "eine größere größe"):
        (codes,) = tokenizer.encode([text])
        assert tokenizer.decode([codes]) == [text]
        assert tokenizer.pieces(codes).count("[MOVE]") == text.count("[MOVE]")


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        (("<bos>",), "'<bos>' is how a control is spelt"),
        (("ok", "<view>"), "'<view>' is how a control is spelt"),
        (("</words>",), "'</words>' is how a control is spelt"),
        (("<0x41>",), "'<0x41>' is how a control is spelt"),
        ((" a",), "' a' is no word"),
        (("",), "'' is no word"),
        (("a\u2581b",), "is no word"),
        (("ab", "ab"), "'ab' stands there twice"),
    ],
)
def test_symbols_that_collide_with_controls_or_are_no_words_are_refused(
    tmp_path: Path, tiny_root: Path, symbols: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, tiny_root, symbols=symbols)
