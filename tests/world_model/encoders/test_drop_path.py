import pytest
import torch

from worldloom.world_model.encoders.drop_path import DropPath, SubsetPath, rates


def test_a_sample_is_dropped_whole_or_kept_with_the_mean_unchanged() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.zeros(4000, 2, 3), lambda x: x + 1)
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert (out == out[:, :1, :1]).all() and abs(out.mean() - 1) < 0.05


def test_only_the_kept_samples_enter_the_branch_of_a_subset() -> None:
    torch.manual_seed(0)
    x, seen = torch.arange(10.0)[:, None].expand(10, 3), []

    def branch(part: torch.Tensor) -> torch.Tensor:
        seen.append(part[:, 0].tolist())
        return torch.ones_like(part)

    out = SubsetPath(0.3)(x, branch)
    assert len(seen[0]) == 7
    moved = torch.isin(x[:, 0], torch.tensor(seen[0]))
    torch.testing.assert_close(out - x, (moved.float() * 10 / 7)[:, None].expand(10, 3))
    SubsetPath(0.9)(x[:1], branch)
    assert len(seen[1]) == 1  # never an empty batch


@pytest.mark.parametrize("form", [DropPath, SubsetPath])
def test_nothing_is_dropped_outside_training_or_at_rate_zero(form: type[DropPath]) -> None:
    x = torch.randn(3, 2)
    for path in (form(0.9).eval(), form(0.0)):
        assert torch.equal(path(x, torch.sin), x + x.sin())


def test_rates_rise_linearly_to_the_highest() -> None:
    assert rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3]) and rates(0.3, 1) == [0]


def test_a_rate_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1, got 1"):
        DropPath(1.0)
