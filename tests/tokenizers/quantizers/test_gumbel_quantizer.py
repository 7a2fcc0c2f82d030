import math

import pytest
import torch

from worldloom.tokenizers.quantizers.codebooks import Upkeep
from worldloom.tokenizers.quantizers.gumbel_quantizer import GumbelQuantizer, gumbel_softmax, kl_from_uniform

B, K, D, H, W = 2, 7, 3, 5, 4


def quantizer() -> GumbelQuantizer:
    return GumbelQuantizer(K, D, Upkeep(place_after=-1, restart_every=0, least_use=0), torch.Generator().manual_seed(0))


def logits() -> torch.Tensor:
    return torch.randn((B, K, H, W), generator=torch.Generator().manual_seed(1))


def test_kl_is_zero_for_uniform_and_log_k_for_certain_codes() -> None:
    assert kl_from_uniform(torch.zeros(1, 8192)).item() == pytest.approx(0, abs=1e-5)
    certain = torch.full((1, 8192), -1e4)
    certain[0, 17] = 1e4
    assert kl_from_uniform(certain).item() == pytest.approx(math.log(8192), rel=1e-6)


def test_samples_approach_one_hot_as_the_temperature_falls() -> None:
    rows = torch.randn((400, 6), generator=torch.Generator().manual_seed(2))
    peaks = [gumbel_softmax(rows, temperature, torch.Generator().manual_seed(3)).amax(-1).mean().item() for temperature in (1, 0.25, 1e-4)]
    assert peaks[0] < peaks[1] < peaks[2] and peaks[2] > 0.999


def test_the_largest_entry_is_drawn_as_softmax_says() -> None:
    row = torch.tensor([0.3, -1.0, 1.2, 0.0])
    drawn = gumbel_softmax(row.expand(20_000, 4), 0.5, torch.Generator().manual_seed(4)).argmax(-1)
    expected = 20_000 * row.softmax(-1)
    chi_square = ((torch.bincount(drawn, minlength=4) - expected).square() / expected).sum().item()
    assert chi_square < 16.27  # the 0.999 quantile with 3 degrees of freedom


def test_tokens_are_the_argmax_and_never_random() -> None:
    gumbel, z = quantizer(), logits()
    assert torch.equal(gumbel.encode(z), z.argmax(1))
    gumbel.eval()
    assert torch.equal(gumbel(z).z, gumbel(z).z)
    assert torch.allclose(gumbel(z).z, gumbel.decode(gumbel.encode(z)))


def test_training_draws_anew_in_every_update_and_again_the_same_from_the_same_state() -> None:
    gumbel, z = quantizer().train(), logits()
    state = {name: value.clone() for name, value in gumbel.state_dict().items()}
    first, second = gumbel(z).z, gumbel(z).z
    gumbel.load_state_dict(state)
    assert not torch.equal(first, second)
    assert torch.equal(gumbel(z).z, first)


def test_the_loss_is_the_weighted_mean_over_places() -> None:
    gumbel, z = quantizer(), logits()
    gumbel.kl_weight = 0.5
    expected = sum(kl_from_uniform(z[b, :, y, x][None]).item() for b in range(B) for y in range(H) for x in range(W)) / (B * H * W)
    assert gumbel(z).loss.item() == pytest.approx(0.5 * expected, rel=1e-5)
