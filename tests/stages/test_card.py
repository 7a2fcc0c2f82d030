import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from worldloom.stages.card import Bars, Card, Gallery, Item, Picture, Text, write_card, write_figures, write_picture

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def test_a_picture_comes_back_as_it_was_and_in_the_same_bytes(tmp_path: Path) -> None:
    file = write_picture(tmp_path, "a-1", PIXELS)
    assert file == "pictures/a-1.png"
    assert (np.asarray(Image.open(tmp_path / file)) == PIXELS).all()
    before = (tmp_path / file).read_bytes()
    write_picture(tmp_path, "a-1", PIXELS[::1].copy())
    assert (tmp_path / file).read_bytes() == before


def test_a_card_comes_back_from_its_file(tmp_path: Path) -> None:
    item = Item(file=write_picture(tmp_path, "a", PIXELS), caption="ä < b", verdict="wrong")
    card = Card(title="t", blocks=(Text(text="x"), Gallery(items=(item,)), Bars(values=(1.5, 2), title="n")), headline=("a.b",))
    write_card(tmp_path, card)
    assert Card.model_validate_json((tmp_path / "card.json").read_bytes()) == card


def test_a_card_that_shows_a_missing_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shows pictures/x\.png, which is not in the artifact"):
        write_card(tmp_path, Card(title="t", blocks=(Picture(file="pictures/x.png", caption="c"),)))


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the figure a\.b is nan"):
        write_figures(tmp_path, {"a.b": float("nan")})
    write_figures(tmp_path, {"b": 1, "a": 0.5})
    assert json.loads((tmp_path / "figures.json").read_bytes()) == {"a": 0.5, "b": 1}


def test_a_picture_has_a_plain_name_and_a_verdict_is_right_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.\./x' is no name for a picture"):
        write_picture(tmp_path, "../x", PIXELS)
    with pytest.raises(ValidationError, match="'right' or 'wrong'"):
        Item.model_validate({"file": "a", "caption": "b", "verdict": "maybe"})
