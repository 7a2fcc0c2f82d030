"""Neighbours by faiss against plain torch, over blocks and files."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worldloom.stages import nearest
from worldloom.stages.nearest import InvertedFile, by_torch, exact, exact_anywhere, make_inverted_file, recall

N, D, K = 530, 12, 5


class Held:
    """Rows in memory."""

    width = D

    def __init__(self, x: NDArray[np.float32]) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        return self.x[start:stop]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setattr(nearest, "BLOCK", 97)
    monkeypatch.setattr(nearest, "PART", 211)
    nearest.set_threads(1)
    x = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
    return Held(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_exact_search_over_blocks_is_a_sort_of_all_cosines(rows: Held) -> None:
    found = exact(rows, rows.x[:7], K)
    assert np.array_equal(found.numbers, np.argsort(-(rows.x[:7] @ rows.x.T), axis=1, kind="stable")[:, :K])
    np.testing.assert_allclose(found.cosines, np.sort(-(rows.x[:7] @ rows.x.T), axis=1)[:, :K] * -1, atol=1e-6)
    assert np.array_equal(by_torch(rows, rows.x[:7], K).numbers, found.numbers)


def test_fewer_rows_than_neighbours_leave_places_empty(rows: Held) -> None:
    found = exact(Held(rows.x[:3]), rows.x[:2], K)
    assert (found.numbers[:, 3:] == -1).all() and np.isneginf(found.cosines[:, 3:]).all()
    assert sorted(found.numbers[0, :3]) == [0, 1, 2]


def test_an_inverted_file_finds_all_in_all_cells_and_most_in_some(rows: Held, tmp_path: Path) -> None:
    folder = tmp_path / "cells"
    make_inverted_file(folder, rows, 16)
    assert len(list(folder.iterdir())) == 3 and not list(tmp_path.glob(".cells*"))
    truth = by_torch(rows, rows.x, K)
    assert recall(InvertedFile(folder, 16)(rows.x, K), truth) == 1
    assert 0.5 < recall(InvertedFile(folder, 4)(rows.x, K), truth) < 1


def test_an_index_is_made_once_and_alike(rows: Held, tmp_path: Path) -> None:
    for name in ("one", "two", "one"):
        make_inverted_file(tmp_path / name, rows, 8)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_more_cells_than_pictures_are_refused(rows: Held, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"530 pictures cannot fill 531 cells; set search\.cells lower"):
        make_inverted_file(tmp_path / "cells", rows, N + 1)


def test_without_faiss_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    true_import = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "faiss":
            raise ImportError(name)
        return true_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs faiss-cpu, which is not installed; pip install 'worldloom\[curate\]'"):
        nearest.library()


def test_where_there_is_no_faiss_torch_finds_the_same(rows: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(nearest, "by_torch")  # nobody asks torch where there is faiss
        found = exact_anywhere(rows, rows.x[:7], K)

    def missing() -> Any:
        raise ImportError("faiss")

    monkeypatch.setattr(nearest, "library", missing)
    without = exact_anywhere(rows, rows.x[:7], K)
    assert np.array_equal(without.numbers, found.numbers)
    np.testing.assert_allclose(without.cosines, found.cosines, atol=1e-6)
