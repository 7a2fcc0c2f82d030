import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worldloom.tokenizers.quantizers import code_entropy as module
from worldloom.tokenizers.quantizers.code_entropy import code_entropy
from worldloom.tokenizers.quantizers.nearest import nearest_codes

N, K, D = 11, 7, 3


def vectors(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_ND, e_KD = (scale * torch.randn((rows, D), generator=generator) + 5 * scale for rows in (N, K))
    return z_ND.requires_grad_(), e_KD


def by_hand(z_ND: NDArray[np.float64], e_KD: NDArray[np.float64], temperature: float, unit: float) -> tuple[float, float]:
    distance_NK = np.square(z_ND[:, None] - e_KD).sum(-1)
    weight_NK = np.exp(-distance_NK / (temperature * unit))
    p_NK = weight_NK / weight_NK.sum(1, keepdims=True)
    mean_K = p_NK.mean(0)
    return float(-(p_NK * np.log(p_NK)).sum(1).mean()), float(-(mean_K * np.log(mean_K)).sum())


def unit_of(z_ND: NDArray[np.float64], e_KD: NDArray[np.float64]) -> float:
    return float(np.square(z_ND[:, None] - e_KD).sum(-1).min(1).mean())


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_both_entropies_and_their_gradients_are_those_of_the_formula_in_float64(temperature: float) -> None:
    z, e = vectors()
    found = code_entropy(z, e, nearest_codes(z, e), temperature)
    (0.3 * found.each - 0.7 * found.together).backward()
    z64, e64 = z.detach().double().numpy(), e.double().numpy()
    unit = unit_of(z64, e64)
    assert [each.item() for each in found] == pytest.approx(by_hand(z64, e64, temperature, unit), rel=1e-5)
    assert z.grad is not None
    for place in np.ndindex(N, D):
        moved = np.zeros_like(z64)
        moved[place] = 1e-6
        up, down = (by_hand(z64 + sign * moved, e64, temperature, unit) for sign in (1, -1))
        slope = (0.3 * (up[0] - down[0]) - 0.7 * (up[1] - down[1])) / 2e-6
        assert z.grad[place].item() == pytest.approx(slope, abs=1e-5)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for held in (module.PROBABILITIES, 3 * K):
        monkeypatch.setattr(module, "PROBABILITIES", held)
        z, e = vectors()
        found = code_entropy(z, e, nearest_codes(z, e), 1.0)
        (found.each - found.together).backward()
        assert z.grad is not None
        gradients.append(z.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_the_scale_of_the_vectors_does_not_matter() -> None:
    small, large = (code_entropy(z, e, nearest_codes(z, e), 1.0) for z, e in (vectors(), vectors(scale=100.0)))
    assert torch.allclose(torch.stack(small), torch.stack(large), rtol=1e-4)


def test_vectors_that_sit_on_codes_are_decided_and_even() -> None:
    e = 10 * torch.eye(4)
    z = e.repeat(3, 1) + 0.01
    found = code_entropy(z, e, nearest_codes(z, e), 1.0)
    assert found.each.item() == pytest.approx(0, abs=1e-6) and found.together.item() == pytest.approx(math.log(4), abs=1e-6)


def test_codes_that_move_before_the_backward_pass_do_not_change_it() -> None:
    gradients = []
    for move in (False, True):
        z, e = vectors()
        found = code_entropy(z, e, nearest_codes(z, e), 1.0)
        if move:
            e.add_(1)
        found.together.backward()
        assert z.grad is not None
        gradients.append(z.grad)
    assert torch.equal(*gradients)
