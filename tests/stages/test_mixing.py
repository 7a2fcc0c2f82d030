"""Pictures and labels mixed as NumPy says, boxes of the areas drawn, and the same whatever the step is reached by."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from worldloom.stages.encoder_settings import Mixing
from worldloom.stages.mixing import boxes, mix, plan_of

SEED, K, B, H, W = 3, 5, 6, 10, 14
PLACE = np.arange(B)


def pictures() -> tuple[Tensor, Tensor]:
    return torch.rand(B, 3, H, W, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 2, 1, 1, 3])


@pytest.mark.parametrize("about", [Mixing(cutmix=0.0), Mixing(mixup=0.0), Mixing(each="picture"), Mixing(each="picture", share=0.5)])
def test_pictures_and_labels_are_mixed_as_in_numpy(about: Mixing) -> None:
    x, labels = pictures()
    for step in range(5):
        found, plan = mix(about, x, labels, K, SEED, step, PLACE), plan_of(about, SEED, step, PLACE, H, W)
        for i in range(B):
            other, weight = B - 1 - i, plan.weight[i]
            expected = x[i].numpy().copy()
            if plan.cut[i]:
                top, bottom, left, right = plan.boxes[i]
                expected[:, top:bottom, left:right] = x[other, :, top:bottom, left:right].numpy()
                assert weight == pytest.approx(1 - (bottom - top) * (right - left) / (H * W))
            else:
                expected = weight * expected + (1 - weight) * x[other].numpy()
            np.testing.assert_allclose(found.pixels[i].numpy(), expected, atol=1e-6)
            target = weight * np.eye(K)[labels[i]] + (1 - weight) * np.eye(K)[labels[other]]
            np.testing.assert_allclose(found.target[i].numpy(), target, atol=1e-6)
            assert found.first[i] == target.argmax()


def test_without_mixing_all_stays_as_it_was() -> None:
    x, labels = pictures()
    found = mix(None, x, labels, K, SEED, 0, PLACE)
    assert found.pixels is x and found.target is labels and found.first is labels


def test_a_box_has_the_share_of_the_area_that_the_weight_leaves() -> None:
    share = np.array([0.0, 0.25, 0.49, 1.0])
    middle = np.full(4, 0.5)
    found = boxes(share, middle, middle, 100, 200)
    area = (found[:, 1] - found[:, 0]) * (found[:, 3] - found[:, 2]) / 20_000
    np.testing.assert_allclose(area, share, atol=0.01)
    np.testing.assert_array_equal(found[1], [25, 75, 50, 150])
    corner = boxes(share, np.zeros(4), np.full(4, 0.999), 100, 200)
    np.testing.assert_array_equal(corner[1], [0, 25, 149, 200])  # a quarter of it, and the pixel in the middle's own column


def plans(about: Mixing, count: int) -> tuple[Any, Any, Any]:
    return plan_of(about, SEED, 0, np.arange(count), 64, 64)


def test_weights_come_from_their_beta_distribution() -> None:
    for a in (0.3, 0.8, 2.0):
        weight = plans(Mixing(mixup=a, cutmix=0.0, each="picture"), 4_000)[0]
        assert abs(weight.mean() - 0.5) < 0.02 and weight.var() == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.06)


def test_ways_have_the_shares_asked_for() -> None:
    weight, found, cut = plans(Mixing(share=0.6, cut=0.25, each="picture"), 4_000)
    assert abs((weight < 1).mean() - 0.6) < 0.03 and abs(cut.mean() - 0.15) < 0.02
    assert not found[~cut].any() and plans(Mixing(mixup=0.0, each="picture"), 100)[2].all()
    assert not plans(Mixing(cutmix=0.0, cut=1.0, each="picture"), 100)[2].any()


def test_a_batch_is_mixed_alike_and_another_step_otherwise() -> None:
    weights = [plan_of(Mixing(), SEED, step, PLACE, H, W).weight for step in range(20)]
    assert all(len(set(each.tolist())) == 1 for each in weights) and len({each[0] for each in weights}) > 15
    each = [plan_of(Mixing(each="picture"), SEED, 4, place, H, W).weight for place in (PLACE, PLACE[2:4])]
    assert len(set(each[0].tolist())) > 3 and np.array_equal(each[0][2:4], each[1])


def test_mixing_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="mixup and cutmix are both 0"):
        Mixing(mixup=0.0, cutmix=0.0)
