"""First fit, against the plain search from the first row on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldloom.world_model.packing import pack


def first_fit(lengths: list[int], rows: int, length: int) -> list[int]:
    room, taken = [length] * rows, list[int]()
    for tokens in lengths:
        fits = [row for row in range(rows) if room[row] >= tokens]
        if not fits:
            break
        room[fits[0]] -= tokens
        taken.append(fits[0])
    return taken


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_each_document_goes_to_the_first_row_with_room_until_one_fits_nowhere(rows: int) -> None:
    generator = np.random.default_rng(rows)
    for longest in (1, 7, 20):
        lengths = generator.integers(1, longest + 1, 300)
        assert pack(lengths, rows, 20).tolist() == first_fit(lengths.tolist(), rows, 20)


def test_a_document_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="a document of 8 tokens does not fit a row of 7"):
        pack([3, 8], rows=2, length=7)


@given(st.lists(st.integers(1, 13), max_size=60), st.integers(1, 7), st.lists(st.integers(1, 13), max_size=5))
def test_over_the_batches_every_document_is_taken_once_whatever_comes_behind(lengths: list[int], rows: int, more: list[int]) -> None:
    at = 0
    while at < len(lengths):
        taken = pack(lengths[at:], rows, 13)
        assert len(taken) and np.bincount(taken, lengths[at : at + len(taken)]).max() <= 13
        assert pack([*lengths[at:], *more], rows, 13)[: len(taken)].tolist() == taken.tolist()
        at += len(taken)
