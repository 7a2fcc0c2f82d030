"""DINO, iBOT, KoLeo and Sinkhorn against NumPy in float64, and the laws that they obey."""

import copy
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from worldloom.world_model.encoders.dino import (
    Centre,
    DinoHead,
    cosine_schedule,
    cross_entropies,
    dino_loss,
    entropy,
    follow,
    linear_schedule,
)
from worldloom.world_model.encoders.ibot import blocks, hide_blocks, ibot_loss
from worldloom.world_model.encoders.koleo import koleo
from worldloom.world_model.encoders.sinkhorn import sinkhorn

S, G, B, K = 5, 2, 3, 7


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_three_steps_of_loss_and_centre_are_those_of_numpy() -> None:
    centre, expected_centre = Centre(K), np.zeros(K)
    for step in range(3):
        student, teacher = some(step, S, B, K) / 5, some(10 + step, G, B, K) / 5  # about as large as cosines
        found = dino_loss(student, centre(teacher, 0.04))
        centre.update(teacher)
        t, s = teacher.double().numpy(), np.log(softmax(student.double().numpy() / 0.1))
        targets = softmax((t - expected_centre) / 0.04)
        terms = [-(targets[g] * s[v]).sum(-1).mean() for g in range(G) for v in range(S) if g != v]
        assert len(terms) == G * (S - 1)
        assert float(found) == pytest.approx(np.mean(terms), rel=1e-6, abs=0)
        expected_centre = 0.9 * expected_centre + 0.1 * t.reshape(-1, K).mean(0)
        np.testing.assert_allclose(centre.value.numpy(), expected_centre, atol=1e-6)


def test_two_and_eight_crops_make_eighteen_pairs_and_uniform_heads_log_k() -> None:
    student, targets = torch.zeros(10, B, K), torch.full((2, B, K), 1 / K)
    assert float(dino_loss(student, targets)) == pytest.approx(math.log(K), abs=1e-6)
    pairs = cross_entropies(some(0, 10, B, K), targets)
    assert pairs.shape == (2, 10) and int((~torch.eye(2, 10, dtype=torch.bool)).sum()) == 18
    assert float(entropy(targets)) == pytest.approx(math.log(K), abs=1e-6)


def test_the_teacher_gets_no_gradient_and_follows_in_closed_form() -> None:
    student = DinoHead(4, 5, 6, 3, torch.Generator().manual_seed(0))
    teacher = copy.deepcopy(student)
    x = some(0, B, 4)
    targets = Centre(5)(teacher(x)[None], 0.04)
    assert not targets.requires_grad
    dino_loss(torch.stack([student(x), student(x + 1)]), targets).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    first = [parameter.detach().clone().double() for parameter in teacher.parameters()]
    steps = []
    for step in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * (step + 1))
        steps.append([parameter.detach().clone().double() for parameter in student.parameters()])
        follow(teacher, student, 0.9)
    for number, parameter in enumerate(teacher.parameters()):
        expected = 0.9**3 * first[number] + 0.1 * sum(0.9 ** (2 - step) * steps[step][number] for step in range(3))
        torch.testing.assert_close(parameter.double(), expected, rtol=0, atol=1e-6)


def test_the_head_ends_in_cosines_and_its_prototypes_can_be_frozen() -> None:
    head = DinoHead(4, 5, 6, 3, torch.Generator().manual_seed(0))
    out = head(100 * some(0, B, 4))
    assert out.shape == (B, 5) and out.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.prototypes *= 3  # a gain that is frozen at one
    torch.testing.assert_close(head(100 * some(0, B, 4)), out)
    (head(some(0, B, 4), freeze_last=True) * some(1, B, 5)).sum().backward()
    assert head.prototypes.grad is not None and not head.prototypes.grad.any() and head.mlp[0].weight.grad.any()  # type: ignore[union-attr]


def test_schedules_are_half_cosines_behind_linear_warm_ups() -> None:
    found = [cosine_schedule(0.996, 1.0, step, 11) for step in range(11)]
    np.testing.assert_allclose(found, 1 - 0.004 * 0.5 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-12)
    warm = [cosine_schedule(1.0, 0.1, step, 10, warmup=4) for step in range(10)]
    assert warm[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0]) and warm[-1] == pytest.approx(0.1)
    assert [linear_schedule(0.04, 0.07, step, 3) for step in (0, 1, 3, 9)] == pytest.approx([0.04, 0.05, 0.07, 0.07])


def test_the_loss_of_hidden_patches_is_that_of_a_loop() -> None:
    hidden = torch.tensor([[True, False, True, False], [False, False, False, False], [False, True, False, False]])
    student, targets = some(0, 3, K) / 5, some(1, 3, K).softmax(-1)
    logs = np.log(softmax(student.double().numpy() / 0.1))
    each = -(targets.double().numpy() * logs).sum(-1)
    expected = (each[0] / 2 + each[1] / 2 + each[2]) / 3  # three pictures, one of them with nothing hidden
    assert float(ibot_loss(student, targets, hidden)) == pytest.approx(expected, rel=1e-6, abs=0)
    assert float(ibot_loss(student[:0], targets[:0], hidden & False)) == 0


def test_blocks_hide_what_was_asked_for_in_half_of_the_pictures() -> None:
    masks = hide_blocks(16, (14, 14), torch.Generator().manual_seed(0))
    shares = masks.float().mean(1)
    assert int((shares == 0).sum()) == 8 and shares.max() <= 0.5
    assert sorted(shares[shares > 0].tolist())[0] >= 0.05 and shares.max() > 0.4
    assert torch.equal(masks, hide_blocks(16, (14, 14), torch.Generator().manual_seed(0)))
    for seed in range(30):
        assert int(blocks((6, 9), 20, torch.Generator().manual_seed(seed)).sum()) <= 20
    assert not blocks((6, 9), 3, torch.Generator()).any()  # less than a block


def test_koleo_is_a_search_through_all_pairs_and_knows_no_directions() -> None:
    x = some(0, 6, 4)
    y = x.double().numpy()
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    distances = np.linalg.norm(y[:, None] - y[None], axis=-1) + 9 * np.eye(6)
    assert float(koleo(x)) == pytest.approx(-np.log(distances.min(1)).mean(), abs=1e-6)
    turn, _ = torch.linalg.qr(some(1, 4, 4))
    assert float(koleo(x @ turn)) == pytest.approx(float(koleo(x)), abs=1e-5)
    twins = x[[0, 0, 1, 2]].requires_grad_()
    loss = koleo(twins)
    loss.backward()
    assert loss.isfinite() and twins.grad is not None and twins.grad.isfinite().all()
    with pytest.raises(ValueError, match="at least two pictures on a rank, got 1"):
        koleo(x[:1])


def test_sinkhorn_is_the_papers_loop_and_ends_with_equal_shares() -> None:
    teacher = some(0, 12, K) / 5
    q = np.exp(teacher.double().numpy().T / 0.07)
    q /= q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdims=True) / K
        q = q / q.sum(0, keepdims=True) / 12
    found = sinkhorn(teacher, 0.07)
    np.testing.assert_allclose(found.numpy(), (q * 12).T, atol=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(12))
    torch.testing.assert_close(sinkhorn(teacher, 0.07, 200).sum(0), torch.full((K,), 12 / K), rtol=0, atol=1e-4)
    assert sinkhorn(teacher * 1e4, 0.07).isfinite().all() and sinkhorn(teacher[:0], 0.07).shape == (0, K)


class Toy(NamedTuple):
    """What the teacher of a toy training ends up saying, entropies as shares of log K."""

    of_each: float  # of one picture
    of_all: float  # of the mean over all pictures


def collapse(centred: bool, sharp: bool, steps: int = 200, seed: int = 0) -> Toy:
    """A toy training on views of points that are noise around eight means."""
    torch.manual_seed(seed)
    means = some(1, 8, 6) * 2
    head = DinoHead(6, 16, 24, 8, torch.Generator().manual_seed(2))
    nn.init.normal_(head.prototypes)
    teacher, centre = copy.deepcopy(head), Centre(16)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(steps):
        views = means[torch.randint(8, (32,))] + 0.3 * torch.randn(2, 32, 6)
        told = teacher(views).detach()
        targets = centre(told, 0.04 if sharp else 1.0)
        loss = dino_loss(head(views), targets)
        if centred:
            centre.update(told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        follow(teacher, head, 0.95)
    assert torch.isfinite(loss)
    return Toy(*(float(entropy(each)) / math.log(16) for each in (targets, targets.mean((0, 1)))))


def test_without_sharpening_a_toy_collapses_to_uniform_without_centring_to_one_dimension_and_with_both_it_does_neither() -> None:
    assert collapse(centred=True, sharp=False).of_each > 0.95
    assert collapse(centred=False, sharp=True).of_all < 0.05
    both = collapse(centred=True, sharp=True)
    assert both.of_each < 0.8 and both.of_all > 0.25  # of five seeds 0.33 to 0.54, and without centring 0.00
