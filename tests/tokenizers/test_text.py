import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.text import CONTROLS, TextTokenizer, escape, train_text, unescape

CORPUS = [
    f"{size} {colour} {shape}, number {n}\n"
    for n, size in enumerate(("a small", "one large"))
    for colour in ("red", "größer")
    for shape in ("circle", "cross")
]
FORGERIES = ["<s>", "</s>", "<unk>", "<pad>", "<bos>", "<frame>", "</frame>", "<0x41>", "▁", "\x10_", "\x10\x10", "\x10", "<|endoftext|>"]


@cache
def tokenizer(model_type: str = "bpe") -> TextTokenizer:
    return train_text(CORPUS, vocab_size=400, model_type=model_type)  # type: ignore[arg-type]


TEXTS = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from("\u2581\x10_ \n\t\0"), max_size=40) | st.sampled_from(FORGERIES)


def test_ten_thousand_unicode_texts_come_back_as_they_were_and_none_gives_a_control() -> None:
    seen: set[str] = set()

    @settings(max_examples=13_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(TEXTS)
    def check(text: str) -> None:
        seen.add(text)
        (codes,) = tokenizer().encode([text])
        assert tokenizer().decode([codes]) == [text]
        assert ((codes >= CONTROLS) & (codes < tokenizer().codebook_size)).all()

    check()
    assert len(seen) >= 10_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  lead",
        "trail  ",
        "two  spaces",
        "\ttab\n\nlines\r\n",
        "e\u0301 \u0065\u0301",
        "\ufeffmark",
        "😀 日本語",
        "\u2581\u2581 a\u2581",
        *FORGERIES,
    ],
)
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_spaces_lines_and_forgeries_come_back_as_they_were(text: str, model_type: str) -> None:
    codes = tokenizer(model_type).encode([text, text])
    assert tokenizer(model_type).decode(codes) == [text, text]
    assert all((ids >= CONTROLS).all() and ids.dtype == np.int64 for ids in codes)


def test_escaping_is_undone_and_hides_the_mark() -> None:
    for text in ("\u2581", "\x10", "\x10_", "\x10\x10_\u2581_", "plain"):
        assert "\u2581" not in escape(text)
        assert unescape(escape(text)) == text


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer().encode([text])


def test_any_sequence_of_codes_is_some_text() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        (text,) = tokenizer().decode([rng.integers(0, tokenizer().codebook_size, 12)])
        assert isinstance(text, str)
    assert tokenizer().decode([[0, 1, 2, 3], []]) == ["", ""]
    with pytest.raises(ValueError, match="must lie in"):
        tokenizer().decode([[tokenizer().codebook_size]])


def test_the_same_corpus_gives_the_same_model() -> None:
    assert train_text(CORPUS, 400).model == train_text(iter(CORPUS), 400).model


def test_a_small_corpus_gives_fewer_pieces_than_allowed() -> None:
    assert 260 < train_text(["ab ab"], vocab_size=1000).codebook_size < 300


def test_tabs_nul_and_long_lines_in_the_corpus_are_learnt_from() -> None:
    learnt = train_text(["\tworldloom\0worldloom\t" * 50, "worldloom " * 2000, "\u2581\x10"], 300)
    assert len(learnt.encode(["worldloom"])[0]) < 9


def test_frequent_words_become_few_pieces() -> None:
    (codes,) = tokenizer().encode(["one large red circle"])
    assert len(codes) <= 8
    assert "".join(tokenizer().pieces(codes)) == "one▁large▁red▁circle"


def test_a_saved_tokenizer_gives_the_same_codes(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, TextTokenizer) and loaded.fingerprint == tokenizer().fingerprint
    assert [ids.tolist() for ids in loaded.encode(CORPUS)] == [ids.tolist() for ids in tokenizer().encode(CORPUS)]
    assert (loaded.kind, loaded.shape, loaded.codebook_size) == ("text", None, tokenizer().codebook_size)
    assert tokenizer().fingerprint != tokenizer("unigram").fingerprint


def test_a_model_with_another_digest_never_reaches_sentencepiece(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    flipped = bytearray((tmp_path / "tokenizer.model").read_bytes())
    flipped[100] ^= 1
    (tmp_path / "tokenizer.model").write_bytes(flipped)
    with pytest.raises(ValueError, match=r"is not the file that config\.json names"):
        TextTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"type": "sentencepiece", "format": 7}))
    with pytest.raises(ValueError, match="of format 1"):
        TextTokenizer.from_pretrained(tmp_path)


def test_no_text_too_few_pieces_and_too_large_an_alphabet_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no text to train on"):
        train_text(["", ""], 300)
    with pytest.raises(ValueError, match="vocab_size must be above 260"):
        train_text(CORPUS, 200)
    with pytest.raises(ValueError, match="cannot train 270 pieces"):
        train_text(["".join(map(chr, range(0x4E00, 0x4E60)))], 270)


@pytest.mark.parametrize(
    "wrong", [np.array([5.0, 6.0]), np.array([[5, 6]]), np.array(5), [5.5]], ids=["floats", "rows", "a number", "a list"]
)
def test_codes_that_are_no_row_of_integers_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="a text's codes are one row of integers, got "):
        tokenizer().decode([wrong])
    assert tokenizer().decode([[], np.zeros(0), np.array([4], np.uint16)])[:2] == ["", ""]


def test_the_card_beside_the_model_says_how_it_is_used_and_what_was_measured(tmp_path: Path) -> None:
    made = TextTokenizer(tokenizer().model)
    made.measured = "On 9 texts.\n"
    made.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"codes of {made.codebook_size} pieces" in card and "open_tokenizer" in card and card.endswith("\nOn 9 texts.\n")
    assert made.fingerprint == tokenizer().fingerprint
