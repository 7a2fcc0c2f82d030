"""Distillation against NumPy in float64, and its limits."""

import numpy as np
import pytest
import torch

from worldloom.world_model.encoders.distillation import (
    FeatureDistillation,
    combined_loss,
    hard_distillation,
    keep,
    kept_distillation,
    soft_distillation,
)


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_soft_loss_is_t_squared_kl_from_the_teacher(temperature: float) -> None:
    student, teacher = some(0, 3, 5), some(1, 3, 5)
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum() / 3
    assert float(soft_distillation(student, teacher, temperature)) == pytest.approx(expected, abs=1e-9)


def test_a_student_that_agrees_has_no_loss_and_no_gradient() -> None:
    teacher = some(1, 3, 5)
    student = teacher.clone().requires_grad_()
    loss = soft_distillation(student, teacher, 2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-12 and student.grad is not None and student.grad.abs().max() < 1e-12


def test_at_high_temperature_it_is_half_the_variance_of_the_difference() -> None:
    student, teacher = some(0, 3, 5), some(1, 3, 5)
    d = (teacher - student).numpy()
    expected = ((d - d.mean(1, keepdims=True)) ** 2).sum() / (2 * 5) / 3
    near, far = (abs(float(soft_distillation(student, teacher, t)) - expected) for t in (1000.0, 100.0))
    assert near < 2e-3 and near < far / 5


def test_hard_distillation_is_the_cross_entropy_of_the_first_choice_and_alpha_mixes() -> None:
    student, teacher = some(0, 3, 5), some(1, 3, 5)
    expected = -np.log(softmax(student.numpy()))[range(3), teacher.numpy().argmax(1)].mean()
    assert float(hard_distillation(student, teacher)) == pytest.approx(expected, abs=1e-9)
    assert combined_loss(torch.tensor(2.0), torch.tensor(10.0), 0.25) == 4


def test_what_is_kept_is_the_whole_with_all_classes_and_a_bound_with_few() -> None:
    student, teacher = some(0, 3, 5).requires_grad_(), some(1, 3, 5)
    whole = soft_distillation(student, teacher, 2.0)
    torch.testing.assert_close(kept_distillation(student, keep(teacher, 5, 2.0), 2.0), whole, rtol=0, atol=1e-6)
    p, q = softmax(teacher.numpy() / 2), softmax(student.detach().numpy() / 2)
    top = np.argsort(-p, 1)[:, :2]
    p2, q2 = (np.concatenate([x[np.arange(3)[:, None], top], 1 - x[np.arange(3)[:, None], top].sum(1, keepdims=True)], 1) for x in (p, q))
    few = kept_distillation(student, keep(teacher, 2, 2.0), 2.0)
    assert float(few.detach()) == pytest.approx(4 * (p2 * np.log(p2 / q2)).sum() / 3, abs=1e-6) and few < whole
    few.backward()
    assert student.grad is not None and student.grad.isfinite().all()


def test_features_are_compared_by_their_angle_through_a_projector() -> None:
    loss = FeatureDistillation(4, 6, torch.Generator().manual_seed(0)).double()
    student, teacher = some(0, 2, 3, 4), some(1, 2, 3, 6)
    x = student.numpy() @ loss.projector.weight.detach().numpy().T + loss.projector.bias.detach().numpy()
    y = teacher.numpy()
    cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    assert float(loss(student, teacher).detach()) == pytest.approx((1 - cosine).mean(), abs=1e-9)
    assert float(loss(student, 3 * loss.projector(student)).detach()) == pytest.approx(0, abs=1e-9)


def test_under_autocast_features_are_compared_in_float32() -> None:
    loss = FeatureDistillation(40, 60, torch.Generator().manual_seed(0))
    student, teacher = some(0, 3, 5, 40).float(), some(1, 3, 5, 60).float()
    with torch.autocast("cpu", torch.bfloat16):
        found, halved = loss(student, teacher), loss.projector(student)
    assert halved.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student, teacher), rtol=1e-6, atol=0)
    assert loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
