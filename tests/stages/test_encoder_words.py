"""Prompts that stand for classes, captions that say the same, and pairs that do not."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldloom.stages import coca_learner
from worldloom.stages.artifact import Artifact
from worldloom.stages.dataset import Dataset
from worldloom.stages.encoder_words import class_texts, class_vectors, meaning_of, pairs_apart, spread
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.shapes import COLOURS, PLACES
from worldloom.stages.value_batches import Values
from worldloom.tokenizers.text import BOS, EOS, TextTokenizer


@pytest.fixture
def dataset(tiny_root: Path) -> Dataset:
    return Dataset(Artifact.open(tiny_root / "artifacts" / "data" / "0123456789abcdef"))


class Letters:
    """Stands for a captioner: a text's vector counts its letters."""

    def texts(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[text.count(letter) for letter in "abcdefgh"] for text in texts]).float()


def test_a_prompt_speaks_of_every_value_of_what_else_it_names() -> None:
    assert class_texts(["{shape}!", "a {colour} {shape}", "{colour}", "{{shape}} {place}"], "shape", "cross") == [
        "cross!",
        *(f"a {colour} cross" for colour in COLOURS),
    ]
    assert len(class_texts(["{shape}, {colour}, {place}"], "shape", "cross")) == len(COLOURS) * len(PLACES)
    assert class_texts(["{{it}} is {text}"], "text", "a cat") == ["{it} is a cat"]


def test_a_class_is_the_mean_of_its_prompts_of_length_one() -> None:
    found = class_vectors(Letters(), ["{text}", "bad {text}"], "text", ["cab", "head"])  # type: ignore[arg-type]
    assert found is not None
    for row, name in zip(found, ("cab", "head"), strict=True):
        one, other = (F.normalize(each, dim=0) for each in Letters().texts([name, f"bad {name}"]))
        torch.testing.assert_close(row, F.normalize(one + other, dim=0))
    assert class_vectors(Letters(), ["{shape}"], "text", ["cab"]) is None  # type: ignore[arg-type]


def test_captions_mean_what_the_oracle_reads_or_else_their_words(dataset: Dataset) -> None:
    meaning = meaning_of(dataset)
    assert meaning("a red circle at the top") == meaning("look: top, one red circle") != meaning("a red circle at the left")
    assert meaning("gibberish") != meaning("nonsense") and meaning("gibberish") == meaning("gibberish")
    dataset.oracle = None
    assert meaning_of(dataset)(" a cat ") == meaning_of(dataset)("a cat") != meaning_of(dataset)("one cat")


def test_no_two_pairs_say_the_same_and_each_caption_is_its_pictures(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    values, meaning = Values(dataset, "train", "view"), meaning_of(dataset)
    index, captions, too_long = pairs_apart(dataset, values, "words", meaning, 5, lambda text: True)
    assert len(index) == len(captions) == len({meaning(text) for text in captions}) == 5 and not too_long
    assert captions == [dataset.value("train", "words", int(values.samples[place])) for place in index]
    monkeypatch.setattr(dataset, "value", lambda split, stream, i: None if i == 3 else f"{i % 4}")
    index, captions, too_long = pairs_apart(dataset, values, "words", lambda text: (text,), 99, lambda text: text != "2")
    assert sorted(captions) == ["0", "1", "3"] and 3 not in index and too_long == sum(i % 4 == 2 for i in range(len(values)))


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_numbers_are_spread_and_all_come_once(count: int) -> None:
    found = list(spread(count))
    assert sorted(found) == list(range(count))
    assert count < 7 or np.ptp(found[:3]) > count // 2


def test_captions_to_learn_from_are_begin_text_and_end_one_behind_the_other(
    dataset: Dataset, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = open_tokenizer(tiny_root / "artifacts" / "words_codes" / "0123456789abcdef" / "tokenizer")
    assert isinstance(tokenizer, TextTokenizer)
    monkeypatch.setattr(coca_learner, "READ_AT_ONCE", 5)
    found = coca_learner.read_captions(dataset, "words", tokenizer, 70)
    rows = [found.values[start:end].tolist() for start, end in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
    assert rows == [[BOS, *codes.tolist(), EOS] for codes in tokenizer.encode(list(dataset.values("train", "words")))]
