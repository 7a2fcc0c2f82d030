import pytest
import torch

from worldloom.tokenizers.vqgan import adaptive_weight, gate, generator_loss, hinge, known


def toy(scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures made of two parameters, the gradients of two quadratic losses at them, and the parameters; d nll / dw = 6 w = (6, -12)."""
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    xhat = 3 * w  # nll = |xhat|^2 / 3, adversarial = scale |xhat / 3 - 1|^2
    seen = xhat.detach()
    return xhat, 2 * seen / 3, 2 * scale * (seen / 3 - 1) / 3, w


def test_the_adaptive_weight_is_the_ratio_of_gradients() -> None:
    # The gradients are 6 w = (6, -12) and (w - 1) = (0, -3).
    assert adaptive_weight(*toy(0.5)).item() == pytest.approx((180**0.5) / (3 + 1e-4), rel=1e-6)


def test_the_adaptive_weight_is_clamped_and_constant() -> None:
    xhat, nll, adversarial, w = toy(1e-9)
    weight = adaptive_weight(xhat, nll, adversarial, w)
    assert weight.item() == 1e4
    assert not weight.requires_grad
    xhat.square().sum().div(3).backward()  # the graph is still there
    assert w.grad is not None and torch.allclose(w.grad, torch.tensor([6.0, -12.0]))


def test_a_known_loss_has_its_value_and_passes_the_gradient_on() -> None:
    xhat, nll, _, w = toy(1.0)
    loss = known(xhat, (xhat.square() / 3).sum(), nll)
    assert loss.item() == pytest.approx(15.0)
    (0.5 * loss).backward()
    assert w.grad is not None and torch.allclose(w.grad, torch.tensor([3.0, -6.0]))


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
