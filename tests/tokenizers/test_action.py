"""Bins of actions: what comes back, how far off, and what does not depend on what."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldloom.tokenizers.action import ActionTokenizer
from worldloom.tokenizers.action_settings import MuLaw, Quantile, Uniform
from worldloom.tokenizers.load import load_tokenizer

BINNINGS = [Uniform(bins=16, cut=0.0), Uniform(bins=7), Quantile(bins=9), MuLaw(bins=32)]


def rows(dimensions: int = 3, count: int = 500) -> np.ndarray:
    scale = np.array([1.0, 40.0, 0.02])[:dimensions]
    return (np.random.default_rng(0).normal(size=(count, dimensions)) * scale).astype(np.float32)


def fitted(binning: Uniform | Quantile | MuLaw, dimensions: int = 3, steps: int = 5) -> ActionTokenizer:
    return ActionTokenizer.fit(rows(dimensions), steps, None, binning)


@pytest.mark.parametrize("binning", BINNINGS, ids=str)
def test_every_code_comes_back_from_its_value(binning: Uniform | Quantile | MuLaw) -> None:
    tokenizer = fitted(binning)
    for d, edges in enumerate(tokenizer.edges):
        bins = len(edges) - 1
        codes = np.zeros((bins, 5, 3), np.int64)
        codes[:, 0, d] = np.arange(bins)
        assert (tokenizer.encode(tokenizer.decode(codes)) == codes).all()


@pytest.mark.parametrize("binning", BINNINGS, ids=str)
def test_edges_fall_into_the_first_and_the_last_bin_and_beyond_them_too(binning: Uniform | Quantile | MuLaw) -> None:
    tokenizer = fitted(binning)
    last = np.array([len(edges) - 2 for edges in tokenizer.edges])
    for end, expected in ((0, np.zeros(3)), (-1, last)):
        limits = np.array([edges[end] for edges in tokenizer.edges], np.float32)
        for values in (limits, limits * 3):
            codes = tokenizer.encode(np.broadcast_to(values, (1, 5, 3)))
            assert (codes == expected).all()


@settings(max_examples=100)
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)), st.integers(2, 300))
def test_inside_the_range_a_value_comes_back_within_half_a_bin(column: np.ndarray, bins: int) -> None:
    try:
        tokenizer = ActionTokenizer.fit(column[:, None], len(column), None, Uniform(bins=bins, cut=0.0))
    except ValueError as error:  # a law of its own: only where float32 has no room for so many bins
        assert "cannot tell" in str(error) and np.ptp(column) / bins < 4 * np.spacing(np.abs(column).max())
        return
    back = tokenizer.decode(tokenizer.encode(column[None, :, None]))[0, :, 0]
    width = np.diff(tokenizer.edges[0]).max()
    assert np.abs(back.astype(np.float64) - column).max() <= width / 2 + 1e-6 * np.abs(column).max() + 1e-30


def test_the_dimensions_do_not_know_each_other() -> None:
    values, order = rows(), [2, 0, 1]
    one, other = (ActionTokenizer.fit(part, 500, None, Uniform(bins=20)) for part in (values, values[:, order]))
    assert (one.encode(values[None])[..., order] == other.encode(values[None][..., order])).all()


def test_256_bins_are_256_intervals_and_codes_begin_at_0() -> None:
    tokenizer = ActionTokenizer.fit(np.linspace(-1, 1, 1001, dtype=np.float32)[:, None], 1001, None, Uniform(bins=256, cut=0.0))
    codes = tokenizer.encode(np.linspace(-1, 1, 1001, dtype=np.float32)[None, :, None])
    assert (codes.min(), codes.max(), len(np.unique(codes))) == (0, 255, 256)


def test_quantile_bins_hold_equally_many_numbers_and_equal_numbers_stay_together() -> None:
    column = np.concatenate([np.zeros(500), np.arange(1, 501)]).astype(np.float32)
    tokenizer = ActionTokenizer.fit(column[:, None], 1000, None, Quantile(bins=10))
    codes = tokenizer.encode(column[None, :, None])[0]
    assert len(set(codes[:500])) == 1
    counts = np.bincount(codes)[1:]
    assert counts.max() - counts.min() <= 1 and len(counts) == 5


def test_mu_law_is_finer_near_zero() -> None:
    widths = np.diff(fitted(MuLaw(bins=32), 1).edges[0])
    assert widths[16] < widths[24] < widths[31] and widths[:16] == pytest.approx(widths[16:][::-1])


def test_a_dimension_that_never_changes_has_one_bin() -> None:
    for binning in BINNINGS:
        tokenizer = ActionTokenizer.fit(np.full((9, 1), 0.25, np.float32), 9, None, binning)
        codes = tokenizer.encode(np.array([[[0.25]] * 4 + [[9.0]] * 5], np.float32))
        assert (codes == 0).all() and tokenizer.decode(codes) == pytest.approx(0.25, abs=1e-5)


def test_a_reward_that_is_rare_is_kept_apart_from_none() -> None:
    column = np.zeros((1_000, 1), np.float32)
    column[::250] = 1.0
    for binning in (Uniform(), *BINNINGS):
        tokenizer = ActionTokenizer.fit(column, 2, None, binning)
        back = tokenizer.decode(tokenizer.encode(np.array([[[0.0], [1.0]]], np.float32)))[0, :, 0]
        assert back[0] < 0.3 < 0.7 < back[1], binning


def test_discrete_actions_are_their_own_codes_and_others_are_refused() -> None:
    tokenizer = ActionTokenizer.fit(np.array([[0], [4]], np.float32), 3, 5, Uniform())
    values = np.array([[[0], [4], [2]]], np.float32)
    assert tokenizer.shape == (3,) and tokenizer.codebook_size == 5
    assert tokenizer.encode(values).tolist() == [[0, 4, 2]] and (tokenizer.decode(np.array([[0, 4, 2]])) == values).all()
    for wrong in (5.0, -1.0, 0.5):
        with pytest.raises(ValueError, match=r"whole numbers in 0 \.\. 4"):
            tokenizer.encode(np.full((1, 3, 1), wrong, np.float32))


def test_it_is_the_same_from_its_folder_and_its_fingerprint_follows_the_bins(tmp_path: Path) -> None:
    for number, binning in enumerate(BINNINGS):
        tokenizer = fitted(binning)
        tokenizer.save_pretrained(tmp_path / str(number))
        back = load_tokenizer(tmp_path / str(number))
        values = rows(count=50).reshape(10, 5, 3)
        assert back.fingerprint == tokenizer.fingerprint and (back.encode(values) == tokenizer.encode(values)).all()
        assert (back.levels, back.shape, back.codebook_size) == (3, (5, 3), binning.bins)
    assert fitted(Uniform(bins=8)).fingerprint != ActionTokenizer.fit(rows() * 2, 5, None, Uniform(bins=8)).fingerprint
    config = tmp_path / "0" / "config.json"
    config.write_text(config.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(ValueError, match="has format 7 and kind 'action', expected 1"):
        load_tokenizer(tmp_path / "0")
    config.write_text(config.read_text().replace('"format": 7', '"format": 1').replace('"type": "uniform"', '"type": "even"'))
    with pytest.raises(ValueError, match=r"config\.json does not describe bins"):
        load_tokenizer(tmp_path / "0")


def test_what_is_clipped_is_counted() -> None:
    tokenizer = ActionTokenizer.fit(rows(1), 1, None, Uniform(bins=8, cut=0.05))
    assert tokenizer.clipped(rows(1)) == pytest.approx([0.1], abs=0.01)
    assert ActionTokenizer.fit(np.zeros((2, 1), np.float32), 1, 2, Uniform()).clipped(rows(1)).tolist() == [0.0]


@pytest.mark.parametrize("binning", [MuLaw(bins=bins) for bins in (7, 16, 32, 255)], ids=lambda binning: binning.bins)
@pytest.mark.parametrize("largest", [1.0, 0.1, 3.7, 1e-3])
def test_the_largest_numbers_of_mu_law_bins_lie_inside(binning: MuLaw, largest: float) -> None:
    column = np.linspace(-largest, largest, 101, dtype=np.float32)[:, None]
    tokenizer = ActionTokenizer.fit(column, 1, None, binning)
    assert tokenizer.clipped(column).tolist() == [0.0]
    column[0], column[-1] = np.nextafter(column[0], np.float32(-9)), np.nextafter(column[-1], np.float32(9))
    assert tokenizer.clipped(column).tolist() == [pytest.approx(2 / 101)]


@pytest.mark.parametrize("binning", [Uniform(bins=256, cut=0.0), Quantile(bins=256)], ids=lambda binning: binning.type)
def test_bins_that_float32_cannot_tell_apart_are_refused(binning: Uniform | Quantile) -> None:
    near = np.linspace(0, 1, 5_000, dtype=np.float64)
    fine = ActionTokenizer.fit((near + 1_000).astype(np.float32)[:, None], 1, None, binning)
    every = np.arange(len(fine.edges[0]) - 1)[:, None]
    assert np.array_equal(fine.encode(fine.decode(every)), every)
    far = (near * 20 + 1e6).astype(np.float32)[:, None]
    if isinstance(binning, Uniform):
        with pytest.raises(ValueError, match=r"dimension 0 lies in 1000000 \.\. 1000000\.5, and float32 cannot tell 256 bins apart there"):
            ActionTokenizer.fit((near / 2 + 1e6).astype(np.float32)[:, None], 1, None, binning)
    else:
        made = ActionTokenizer.fit(far, 1, None, binning)
        every = np.arange(len(made.edges[0]) - 1)[:, None]
        assert np.array_equal(made.encode(made.decode(every)), every)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(np.zeros((2, 4, 3), np.float32)), r"reads actions \[B, 5, 3\], got an array of shape \(2, 4, 3\)"),
        (lambda t: t.encode(np.full((2, 5, 3), np.nan, np.float32)), "must be finite"),
        (lambda t: t.decode(np.zeros((2, 5), np.int64)), r"reads integer codes \[B, 5, 3\]"),
        (lambda t: t.decode(np.zeros((2, 5, 3))), "reads integer codes"),
        (lambda t: t.decode(np.full((1, 5, 3), 16)), r"codes must lie in 0 \.\. 15, got 16 \.\. 16"),
        (lambda t: ActionTokenizer.fit(np.zeros((0, 2), np.float32), 1, None, Uniform()), "got 0 rows"),
        (lambda t: ActionTokenizer.fit(np.full((3, 2), np.inf, np.float32), 1, None, Uniform()), "finite numbers, got 3 rows"),
        (
            lambda t: ActionTokenizer(1, (np.array([1.0, 1.0]),), None, Uniform()),
            "dimension 0 needs at least two limits",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(fitted(BINNINGS[0]))
