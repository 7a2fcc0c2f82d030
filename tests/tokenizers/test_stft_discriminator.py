"""The discriminator of spectrograms: laws of its losses, its spectrograms by their definition, its windows."""

import numpy as np
import pytest
import torch

from worldloom.tokenizers.stft_discriminator import (
    Judged,
    StftDiscriminator,
    feature_distance,
    scales_generator_loss,
    scales_hinge,
    windows_at,
)

C, S = 2, 300


def discriminator() -> StftDiscriminator:
    return StftDiscriminator(C, (64, 32), width=3, generator=torch.Generator().manual_seed(0))


def sounds(seed: int = 1) -> torch.Tensor:
    return torch.randn((3, C, S), generator=torch.Generator().manual_seed(seed))


def test_features_of_equal_sounds_have_no_distance_and_others_have() -> None:
    made, x = discriminator(), sounds()
    assert feature_distance(made(x), made(x)).item() == 0.0
    assert feature_distance(made(x), made(sounds(2))).item() > 0.1


def test_the_distance_is_relative_to_the_real_features_and_pulls_at_the_made_ones_alone() -> None:
    real = torch.tensor([[1.0, -3.0]], requires_grad=True)
    made = torch.tensor([[2.0, -3.0]], requires_grad=True)
    distance = feature_distance([Judged(real, [real, real])], [Judged(made, [made, real * 0])])
    assert distance.item() == pytest.approx((0.5 / 2 + 1) / 2)
    distance.backward()
    assert made.grad is not None and made.grad[0].tolist() == pytest.approx([0.125, 0.0])


def test_losses_are_hinges_meaned_over_scales() -> None:
    real, fake = ([Judged(torch.tensor(each), []) for each in logits] for logits in ([[2.0], [0.0]], [[-2.0], [0.5]]))
    assert scales_hinge(real, fake).item() == pytest.approx((0.0 + 0.5 * (1 + 1.5)) / 2)
    assert scales_generator_loss(fake).item() == pytest.approx((3 + 0.5) / 2)


def test_frozen_judges_the_same_and_passes_gradients_to_the_sounds_alone() -> None:
    made, x = discriminator(), sounds().requires_grad_(True)
    for one, other in zip(made(x), made.frozen(x), strict=True):
        assert torch.equal(one.logits, other.logits)
    scales_generator_loss(made.frozen(x)).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in made.parameters())
    scales_hinge(made(x.detach()), made(sounds(2))).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters() if parameter.ndim > 1)


def test_a_scale_sees_the_transform_of_its_definition_each_channel_by_itself() -> None:
    scale, x = discriminator().scales[0], sounds()
    found = scale._spectrum(x)
    assert found.shape == (3, 2 * C, S // 16 + 1, 33)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    frame = x[1, 1, 5 * 16 - 32 : 5 * 16 + 32].double().numpy()  # the sixth frame is centred at 80
    expected = (frame * hann * np.exp(-2j * np.pi * np.arange(33)[:, None] * np.arange(64) / 64)).sum(1) / 8
    assert found[1, 2, 5].numpy() == pytest.approx(expected.real, abs=1e-5)
    assert found[1, 3, 5].numpy() == pytest.approx(expected.imag, abs=1e-5)


def test_windows_follow_the_rate_and_fit_the_sound() -> None:
    assert windows_at(24_000, 24_000) == (2048, 1024, 512, 256, 128)
    assert windows_at(8_000, 6_400) == (512, 256, 128, 64, 32)
    assert windows_at(24_000, 300) == (256, 128)
    assert windows_at(1_000, 20) == (32,)
