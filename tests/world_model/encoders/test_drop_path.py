import pytest
import torch

from worldloom.world_model.encoders.drop_path import DropPath, rates


def test_a_sample_is_dropped_whole_or_kept_with_the_mean_unchanged() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert (out == out[:, :1, :1]).all() and abs(out.mean() - 1) < 0.05


def test_nothing_is_dropped_outside_training_or_at_rate_zero() -> None:
    x = torch.randn(3, 2)
    assert DropPath(0.9).eval()(x) is x and DropPath(0.0)(x) is x


def test_rates_rise_linearly_to_the_highest() -> None:
    assert rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3]) and rates(0.3, 1) == [0]


def test_a_rate_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1, got 1"):
        DropPath(1.0)
