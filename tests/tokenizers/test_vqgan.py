import pytest
import torch

from worldloom.tokenizers.vqgan import adaptive_weight, gate, generator_loss, hinge


def toy(scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two quadratic losses of two parameters: (nll, adversarial, parameters)."""
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    return 3 * w.square().sum(), scale * (w - 1).square().sum(), w


def test_the_adaptive_weight_is_the_ratio_of_gradients() -> None:
    nll, adversarial, w = toy(0.5)
    # Gradients are 6 w = (6, -12) and (w - 1) = (0, -3).
    assert adaptive_weight(nll, adversarial, w).item() == pytest.approx((180**0.5) / (3 + 1e-4), rel=1e-6)


def test_the_adaptive_weight_is_clamped_and_constant() -> None:
    nll, adversarial, w = toy(1e-9)
    weight = adaptive_weight(nll, adversarial, w)
    assert weight.item() == 1e4
    assert not weight.requires_grad
    (nll + weight * adversarial).backward()  # both graphs are still there
    assert w.grad is not None and torch.allclose(w.grad, torch.tensor([6.0, -12.0]), atol=1e-3)


@pytest.mark.parametrize("step, expected", [(0, 0.0), (99, 0.0), (100, 0.25), (101, 0.5), (103, 1.0), (500, 1.0)])
def test_the_gate_opens_at_its_step_and_not_before(step: int, expected: float) -> None:
    assert gate(step, start=100, ramp=4) == expected


def test_the_gate_without_a_ramp_opens_at_once() -> None:
    assert [gate(step, 5, 0) for step in (4, 5, 6)] == [0.0, 1.0, 1.0]


def test_hinge_losses_on_three_logits() -> None:
    logits = torch.tensor([-2.0, 0.0, 2.0])
    # relu(1 - x) = 3, 1, 0 and relu(1 + x) = 0, 1, 3.
    assert hinge(logits, logits).item() == pytest.approx(0.5 * (4 / 3 + 4 / 3))
    assert generator_loss(logits + 1).item() == pytest.approx(-1)
