import numpy as np

from worldloom.stages.contact_sheet import CELL, GAP, Pinned, contact_sheet


def _pinned(value: int, caption: str, right: bool | None = None) -> Pinned:
    return Pinned(np.full((4, 4, 3), value, np.uint8), caption, right)


def test_pictures_stand_in_rows_of_columns_with_their_captions_below() -> None:
    sheet = contact_sheet([_pinned(10 * number, "a word " * 9) for number in range(5)], columns=3)
    assert sheet.shape[1] == 3 * (CELL + GAP) + GAP
    row = (sheet.shape[0] - GAP) // 2
    for number in range(5):
        x, y = GAP + number % 3 * (CELL + GAP), GAP + number // 3 * row
        assert (sheet[y : y + CELL, x : x + CELL] == 10 * number).all()
        assert (sheet[y + CELL : y + row - GAP, x : x + CELL] < 128).any()
        assert (sheet[y + CELL : y + row, x + CELL + 1 : x + CELL + GAP] == 255).all()  # no caption is wider than its picture


def test_the_verdict_is_told_in_its_colour_and_in_words() -> None:
    right, wrong, none = (contact_sheet([_pinned(255, "", verdict)], columns=1).astype(int) for verdict in (True, False, None))
    assert (none == 255).all()
    assert ((right[..., 1] - right[..., 0]) > 60).any() and ((wrong[..., 0] - wrong[..., 1]) > 60).any()
