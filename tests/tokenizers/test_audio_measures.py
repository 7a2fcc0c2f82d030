"""Distances between sounds, and the plain coder: laws and closed forms."""

import numpy as np
import pytest
import torch

from worldloom.tokenizers.audio_measures import compress, expand, log_mel_l1, mu_law_coded, multi_scale_mel_loss, si_sdr


def sounds(count: int = 3, samples: int = 2_400) -> torch.Tensor:
    return torch.randn((count, 1, samples), generator=torch.Generator().manual_seed(0)) * 0.1


def test_distances_are_nothing_between_equals_and_grow_with_noise() -> None:
    x = sounds()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert float(log_mel_l1(x, x, 8_000).max()) == 0.0
    assert float(multi_scale_mel_loss(x, x, 8_000)) < 1e-3
    for distance in (lambda y: log_mel_l1(x, y, 8_000).mean(), lambda y: multi_scale_mel_loss(x, y, 8_000), lambda y: -si_sdr(x, y).mean()):
        a, b = (float(distance(x + scale * noise)) for scale in (0.01, 0.1))
        assert a < b
    assert log_mel_l1(x, x * 0, 8_000).shape == (3,)


def test_the_ratio_does_not_know_the_scale_and_is_that_of_the_energies() -> None:
    real = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])
    rest = torch.tensor([[[1.0, 1.0, -1.0, -1.0]]])
    for scale in (0.5, 3.0):
        assert float(si_sdr(real, scale * (real + 0.1 * rest))) == pytest.approx(20.0, abs=1e-3)


def test_mu_law_has_2_to_the_bits_values_and_its_error_falls_with_bits() -> None:
    x = torch.linspace(-1, 1, 40_001)[None, None]
    for bits in (2, 4, 8):
        coded = mu_law_coded(x, bits)
        assert len(coded.unique()) == 2**bits
    errors = [float((mu_law_coded(x, bits) - x).abs().mean()) for bits in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02
    middles = (np.array([0.5, 1.5, 2.5, 3.5]) / 4) * 2 - 1
    expected = np.sign(middles) * (256.0 ** np.abs(middles) - 1) / 255
    assert mu_law_coded(x, 2).unique().numpy() == pytest.approx(expected, abs=1e-6)


def test_the_loss_has_a_gradient_even_where_sounds_are_equal() -> None:
    x = sounds()
    y = x.clone().requires_grad_(True)
    multi_scale_mel_loss(x, y, 8_000).backward()
    assert y.grad is not None and bool(torch.isfinite(y.grad).all())


def test_a_loss_of_sounds_shorter_than_any_window_is_refused() -> None:
    assert float(multi_scale_mel_loss(sounds(samples=32), sounds(samples=32), 8_000)) < 1e-3
    with pytest.raises(
        ValueError, match=r"sounds of 31 samples are shorter than the shortest window, 32; set seconds of the stream higher"
    ):
        multi_scale_mel_loss(sounds(samples=31), sounds(samples=31), 8_000)


def test_companding_goes_and_comes_back() -> None:
    x = torch.linspace(-1, 1, 101)
    assert torch.allclose(expand(compress(x)), x, atol=1e-6) and float(compress(torch.tensor(1 / 255))) == pytest.approx(
        np.log(2) / np.log(256)
    )
