import math

import numpy as np
import pytest
import torch

from worldloom.tokenizers.measures import SCALES, frechet_distance, ms_ssim, psnr, ssim


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


def halved(a: np.ndarray) -> np.ndarray:
    H, W = a.shape[0] // 2 * 2, a.shape[1] // 2 * 2
    return a[:H, :W].astype(np.float64).reshape(H // 2, 2, W // 2, 2, 3).mean((1, 3))


def test_ms_ssim_equals_the_definition_over_the_scales_that_fit() -> None:
    left, right = pictures(1, 50, 44), pictures(2, 50, 44)  # 50 x 44, 25 x 22 and 12 x 11 hold a window of 11
    right = ((left.double() * 3 + right.double()) / 4).to(torch.uint8)
    weights = np.array(SCALES[:3]) / sum(SCALES[:3])
    for found, a, b in zip(ms_ssim(left, right).tolist(), left.double().numpy(), right.double().numpy(), strict=True):
        parts = []
        for scale in range(3):
            parts.append(naive_ssim(a, b) if scale == 2 else naive_structure(a, b))
            a, b = halved(a), halved(b)
        assert found == pytest.approx(float(np.prod(np.array(parts) ** weights)), abs=1e-9)
    assert ms_ssim(left, left).tolist() == pytest.approx([1, 1, 1])


def naive_structure(a: np.ndarray, b: np.ndarray) -> float:
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    c2, values = (0.03 * 255) ** 2, []
    for channel in range(3):
        for y in range(a.shape[0] - 10):
            for x in range(a.shape[1] - 10):
                p, q = (image[y : y + 11, x : x + 11, channel] for image in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq, c = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum(), (window * (p - mp) * (q - mq)).sum()
                values.append((2 * c + c2) / (vp + vq + c2))
    return float(np.mean(values))


def test_ms_ssim_falls_with_noise_and_small_pictures_have_one_scale() -> None:
    left = pictures(1, 64, 64)
    noise = torch.randn(left.shape, generator=torch.Generator().manual_seed(0))
    noisy = [(left + scale * noise).clamp(0, 255).to(torch.uint8) for scale in (5, 40)]
    assert (ms_ssim(left, noisy[0]) > ms_ssim(left, noisy[1])).all()
    small = pictures(1, 16, 16), pictures(2, 16, 16)
    assert ms_ssim(*small).tolist() == pytest.approx(ssim(*small).clamp(min=0).tolist())


def test_the_frechet_distance_is_that_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((4_000, 3), generator=generator, dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5.0, abs=1e-9)
    # Of scaled copies: each axis adds (s - 1)^2 where axes are independent; correlations of a sample are small.
    whitened = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    scale = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    assert frechet_distance(whitened, whitened * scale) == pytest.approx(1.0 + 0.25, abs=1e-6)
    y = torch.randn((500, 3), generator=generator, dtype=torch.float64) @ torch.randn((3, 3), generator=generator, dtype=torch.float64)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)
