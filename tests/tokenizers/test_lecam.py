import pytest
import torch

from worldloom.tokenizers.lecam import LeCam


def test_logits_are_pulled_to_the_moving_average_of_the_other_side() -> None:
    lecam, generator = LeCam(decay=0.8), torch.Generator().manual_seed(0)
    averages: list[float] | None = None
    for _ in range(4):
        real, fake = (torch.randn(3, 5, generator=generator, dtype=torch.float64) + shift for shift in (1, -2))
        means = [real.mean().item(), fake.mean().item()]
        averages = means if averages is None else [0.8 * old + 0.2 * new for old, new in zip(averages, means, strict=True)]
        expected = (real - averages[1]).square().mean() + (fake - averages[0]).square().mean()
        assert lecam.penalty(real, fake).item() == pytest.approx(expected.item(), rel=1e-5)


def test_its_gradient_is_that_of_constants() -> None:
    lecam = LeCam()
    lecam.load_state({"real": 0.5, "fake": -1.0})
    real, fake = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([0.0, -2.0], requires_grad=True)
    lecam.penalty(real, fake).backward()
    anchors = lecam.state()
    assert real.grad is not None and fake.grad is not None
    torch.testing.assert_close(real.grad, (real - anchors["fake"]).detach())
    torch.testing.assert_close(fake.grad, (fake - anchors["real"]).detach())
    assert anchors == {"real": pytest.approx(0.99 * 0.5 + 0.01 * 2), "fake": pytest.approx(-0.99 - 0.01)}


def test_a_batch_that_is_not_finite_leaves_the_averages() -> None:
    lecam = LeCam()
    assert lecam.penalty(torch.tensor([torch.nan]), torch.tensor([1.0])).item() == 0
    lecam.load_state({"real": 1.0, "fake": 2.0})
    lecam.penalty(torch.tensor([torch.inf]), torch.tensor([1.0]))
    assert lecam.state() == {"real": 1.0, "fake": 2.0}
