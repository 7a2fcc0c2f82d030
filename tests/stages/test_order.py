"""Counter-based randomness: permutations and draws that depend on nothing but their counters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldloom.stages.order import draws, order, uniform


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(n, seed, epoch):
    assert np.array_equal(np.sort(order(seed, epoch, np.arange(n), n)), np.arange(n))


@given(st.integers(2, 200), st.integers(0, 99), st.data())
def test_a_place_can_be_asked_for_alone(n, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=5)), dtype=np.int64)
    assert np.array_equal(order(seed, 7, places, n), order(seed, 7, np.arange(n), n)[places])


def test_seeds_and_epochs_give_unrelated_orders():
    n = 10_007
    orders = [order(seed, epoch, np.arange(n), n) for seed in (0, 1) for epoch in (0, 1)]
    for i, one in enumerate(orders):
        assert abs(np.corrcoef(one, np.arange(n))[0, 1]) < 0.04
        assert all((one == other).sum() < 10 for other in orders[:i])


def test_neighbours_are_torn_apart():
    n = 4096
    steps = np.abs(np.diff(order(0, 0, np.arange(n), n)))
    assert steps.mean() == pytest.approx(n / 3, rel=0.05)
    assert (steps == 1).sum() < 8


def test_a_place_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match="places run from 0 to 4, got 2 to 5"):
        order(0, 0, np.array([2, 5]), 5)


def test_draws_are_uniform_and_independent_of_one_another():
    table = uniform(3, np.arange(2000)[:, None], np.arange(5))
    assert table.shape == (2000, 5)
    assert table.min() >= 0 and table.max() < 1
    assert np.histogram(table, bins=10)[0] == pytest.approx(1000, rel=0.12)
    assert np.abs(np.corrcoef(table.T) - np.eye(5)).max() < 0.08


def test_the_order_of_counters_matters():
    assert draws(1, 2) != draws(2, 1)
    assert draws(0, 0) != draws(0)
    assert np.array_equal(draws(1, np.array([2, 3])), np.concatenate([draws(1, 2), draws(1, 3)]))
