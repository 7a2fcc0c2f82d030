import math

import numpy as np
import pytest
import torch

from worldloom.tokenizers.measures import psnr, ssim


def pictures(seed: int, height: int = 17, width: int = 13) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_psnr_is_that_of_the_mean_squared_error_of_each_picture() -> None:
    left = torch.zeros((2, 4, 5, 3), dtype=torch.uint8)
    right = left.clone()
    right[0, 0, 0, 0] = 60
    assert psnr(left, right).tolist() == pytest.approx([10 * math.log10(255**2 / (3600 / 60)), 100.0])


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One picture, window by window, in numpy."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for channel in range(3):
        for y in range(a.shape[0] - 10):
            for x in range(a.shape[1] - 10):
                p, q = (image[y : y + 11, x : x + 11, channel].astype(np.float64) for image in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq, c = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum(), (window * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + c1) * (2 * c + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def test_ssim_equals_the_definition_window_by_window() -> None:
    left, right = pictures(1), pictures(2)
    expected = [naive_ssim(a, b) for a, b in zip(left.numpy(), right.numpy(), strict=True)]
    assert ssim(left, right).tolist() == pytest.approx(expected, abs=1e-9)


def test_equal_pictures_are_wholly_similar_and_order_does_not_matter() -> None:
    left, right = pictures(1), pictures(2)
    assert ssim(left, left).tolist() == pytest.approx([1, 1, 1])
    assert ssim(left, right).tolist() == pytest.approx(ssim(right, left).tolist())


@pytest.mark.parametrize("height, width", [(8, 8), (9, 30), (1, 1)])
def test_small_pictures_get_a_smaller_window(height: int, width: int) -> None:
    assert torch.isfinite(ssim(pictures(1, height, width), pictures(2, height, width))).all()
