"""How near a reconstruction is: PSNR and SSIM. B batch, H x W pixels; pictures are uint8 [B, H, W, 3]."""

import torch
from torch import Tensor

HIGHEST_PSNR = 100.0  # dB, of equal pictures


def psnr(left: Tensor, right: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, float64 [B]; 100 for pictures that are equal."""
    mse_B = (left.double() - right.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255.0**2 / mse_B)).clamp(max=HIGHEST_PSNR)


def ssim(left: Tensor, right: Tensor) -> Tensor:
    """Structural similarity of each pair, float64 [B] (Wang et al. 2004): Gaussian window of 11 pixels and sigma 1.5, mean over channels.

    Pictures smaller than 11 pixels get the largest odd window that fits.
    """
    a, b = (x.permute(0, 3, 1, 2).double() for x in (left, right))
    H, W = a.shape[-2:]
    side = min(11, H - (H + 1) % 2, W - (W + 1) % 2)
    down, across = (_blurring(length, side, 1.5).to(a.device) for length in (H, W))

    def blur(x: Tensor) -> Tensor:
        return down @ x @ across.T

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blurring(length: int, side: int, sigma: float) -> Tensor:
    """[length - side + 1, length]: a Gaussian window at every place where it fits; the window is separable, so two products blur."""
    line = torch.exp(-((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) ** 2) / (2 * sigma**2))
    rows = torch.zeros((length - side + 1, length), dtype=torch.float64)
    for row in range(len(rows)):
        rows[row, row : row + side] = line / line.sum()
    return rows
