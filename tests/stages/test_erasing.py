"""What is erased: boxes as the paper draws them, noise in them, and the same whatever the batch."""

import numpy as np
import torch

from worldloom.stages.erasing import ASPECT, boxes, erased
from worldloom.stages.view_draws import Draws


def draws(sample: list[int], epoch: int = 2) -> Draws:
    return Draws(1, np.full(len(sample), epoch), np.array(sample), 0)


def test_boxes_have_the_shares_and_aspects_of_the_paper_and_lie_everywhere() -> None:
    count, height, width = 3_000, 40, 50
    found = boxes(height, width, 0.25, draws(list(range(count))))
    some = found[found[:, 2] > 0]
    assert abs(len(some) / count - 0.25) < 0.03
    assert not found[found[:, 2] == 0].any()
    top, left, down, across = some.T
    assert (top >= 0).all() and (left >= 0).all() and (top + down <= height).all() and (left + across <= width).all()
    area = (down * across) / (height * width)
    assert area.min() > 0.012 and area.max() < 0.36 and abs(area.mean() - (0.02 + 1 / 3) / 2) < 0.02
    tall = (down / across).log()
    rounded = 0.15  # sides are whole pixels
    assert tall.abs().max() < -np.log(ASPECT) + rounded and tall.abs().max() > 0.9 and abs(tall.mean()) < 0.1
    middle = (top + down / 2) / height
    assert middle.min() < 0.15 and middle.max() > 0.85 and abs(middle.mean() - 0.5) < 0.03


def test_a_box_becomes_noise_and_all_else_stays() -> None:
    x = torch.full((400, 3, 20, 30), 7.0)
    chosen = draws(list(range(400)))
    found = erased(x, 0.5, chosen)
    noise = []
    for picture, (top, left, down, across) in zip(found, boxes(20, 30, 0.5, chosen).tolist(), strict=True):
        noise.append(picture[:, top : top + down, left : left + across].flatten())
        picture[:, top : top + down, left : left + across] = 7
    assert torch.equal(found, x)
    numbers = torch.cat(noise)
    assert abs(numbers.mean()) < 0.01 and abs(numbers.std() - 1) < 0.01
    parts = [each[:40] for each in noise if len(each) >= 40]
    assert not torch.equal(parts[0], parts[1])


def test_what_is_erased_is_a_function_of_epoch_and_sample_whatever_the_batch() -> None:
    x = torch.rand(6, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    together = erased(x, 1.0, draws([5, 8, 2, 9, 4, 3]))
    assert torch.equal(erased(x[[3]], 1.0, draws([9])), together[[3]])
    assert not torch.equal(erased(x[[3]], 1.0, draws([9], epoch=3)), together[[3]])
    assert torch.equal(erased(x, 0.0, draws([5, 8, 2, 9, 4, 3])), x)


def test_a_picture_too_small_for_any_box_stays() -> None:
    x = torch.ones(5, 3, 1, 1)
    assert torch.equal(erased(x, 1.0, draws(list(range(5)))), x)
