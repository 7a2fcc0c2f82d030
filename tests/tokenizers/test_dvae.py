import math

import numpy as np
import pytest
import torch

from worldloom.tokenizers.dvae import kl_share, kl_weight, logit_laplace_nll, split_output, temperature


@pytest.mark.parametrize("mu, ln_b", [(0.0, -1.0), (1.5, -2.0), (-0.7, -0.3)])
def test_the_density_integrates_to_one(mu: float, ln_b: float) -> None:
    # In the logit u, dx = x (1 - x) du, and the integrand has a kink only at mu.
    u = mu + torch.linspace(-40, 40, 800_001, dtype=torch.float64) * math.exp(ln_b)
    x = torch.sigmoid(u).clamp(1e-300, 1 - 1e-16)
    density = torch.exp(-logit_laplace_nll(x, torch.tensor(mu, dtype=torch.float64), torch.tensor(ln_b, dtype=torch.float64)))
    inside = (u.abs() < 30).double()
    assert torch.trapezoid(density * x * (1 - x) * inside, u).item() == pytest.approx(1, abs=1e-4)


def test_the_density_equals_the_paper_written_in_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.1 + 0.8 * torch.rand(50, generator=generator, dtype=torch.float64)
    mu, ln_b = (torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2))
    n, m, b = x.numpy(), mu.numpy(), np.exp(ln_b.numpy())
    density = 1 / (2 * b * n * (1 - n)) * np.exp(-np.abs(np.log(n / (1 - n)) - m) / b)
    assert np.abs(np.exp(-logit_laplace_nll(x, mu, ln_b).numpy()) / density - 1).max() < 1e-6


@pytest.mark.parametrize(
    "step, expected",
    [(0, 1.0), (5_000, 1 - 15 / 16 * 0.5 * (1 - math.cos(math.pi / 30))), (75_000, 17 / 32), (150_000, 1 / 16), (200_000, 1 / 16)],
)
def test_the_temperature_falls_along_half_a_cosine(step: int, expected: float) -> None:
    assert temperature(step, 150_000, 1 / 16) == pytest.approx(expected)


@pytest.mark.parametrize("step, expected", [(0, 0.0), (2_500, 3.3), (5_000, 6.6), (75_000, 6.6), (150_000, 6.6)])
def test_the_kl_weight_rises_and_stays(step: int, expected: float) -> None:
    assert kl_weight(step, 5_000, 6.6) == pytest.approx(expected)


def test_cells_of_eight_pixels_give_the_papers_factor() -> None:
    assert kl_share(6.6, 8) == pytest.approx(6.6 / 192)


def test_the_output_is_split_into_place_and_bounded_spread() -> None:
    output = torch.arange(2 * 6 * 3 * 5).reshape(2, 6, 3, 5).float()
    mu, ln_b = split_output(output)
    assert torch.equal(mu, output[:, :3]) and ln_b.shape == mu.shape and ln_b.abs().max() <= 6
