"""How near a reconstruction is: PSNR, SSIM, MS-SSIM, and how near two sets of pictures are: Frechet distance.

B batch, H x W pixels, N pictures, D features; pictures are uint8 [B, H, W, 3].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

HIGHEST_PSNR = 100.0  # dB, of equal pictures
WINDOW = 11  # pixels
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM, from the finest to the coarsest (Wang et al. 2003)


def psnr(left: Tensor, right: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, float64 [B]; 100 for pictures that are equal."""
    mse_B = (left.double() - right.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255.0**2 / mse_B)).clamp(max=HIGHEST_PSNR)


def ssim(left: Tensor, right: Tensor) -> Tensor:
    """Structural similarity of each pair, float64 [B] (Wang et al. 2004): Gaussian window of 11 pixels and sigma 1.5, mean over channels.

    Pictures smaller than 11 pixels get the largest odd window that fits.
    """
    return _similarities(*(x.permute(0, 3, 1, 2).double() for x in (left, right)))[0]


def ms_ssim(left: Tensor, right: Tensor) -> Tensor:
    """SSIM over up to five scales, each half as large as the last, float64 [B] (Wang, Simoncelli and Bovik 2003).

    Pictures too small for all five, which need 176 pixels a side, get the finest that hold a whole window, their weights summing to 1.
    """
    a, b = (x.permute(0, 3, 1, 2).double() for x in (left, right))
    count = 1
    while count < len(SCALES) and min(a.shape[-2:]) >> count >= WINDOW:
        count += 1
    weights = torch.tensor(SCALES[:count], dtype=torch.float64, device=a.device)
    weights /= weights.sum()
    product = torch.ones(len(a), dtype=torch.float64, device=a.device)
    for scale, weight in enumerate(weights):
        whole, structure = _similarities(a, b)
        product *= (whole if scale == count - 1 else structure).clamp(min=0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product


def frechet_distance(left_ND: Tensor, right_ND: Tensor) -> float:
    """Between Gaussians of the means and covariances of two sets of features: |m - m'|^2 + tr(C + C' - 2 (C C')^1/2) (arXiv:1706.08500)."""
    (mean, covariance), (other_mean, other_covariance) = (_gaussian(x.double()) for x in (left_ND, right_ND))
    values, axes = torch.linalg.eigh(covariance)
    root = axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T
    both = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * both
    return max(0.0, float(distance))


def _gaussian(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    centred = x_ND - x_ND.mean(0)
    return x_ND.mean(0), centred.T @ centred / max(len(x_ND) - 1, 1)


def _similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of float64 pictures [B, 3, H, W]: SSIM, and its part that compares contrast and structure alone, [B] each."""
    H, W = a.shape[-2:]
    side = min(WINDOW, H - (H + 1) % 2, W - (W + 1) % 2)
    down, across = (_blurring(length, side, 1.5).to(a.device) for length in (H, W))

    def blur(x: Tensor) -> Tensor:
        return down @ x @ across.T

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1), structure.flatten(1).mean(1)


def _blurring(length: int, side: int, sigma: float) -> Tensor:
    """[length - side + 1, length]: a Gaussian window at every place where it fits; the window is separable, so two products blur."""
    line = torch.exp(-((torch.arange(side, dtype=torch.float64) - (side - 1) / 2) ** 2) / (2 * sigma**2))
    rows = torch.zeros((length - side + 1, length), dtype=torch.float64)
    for row in range(len(rows)):
        rows[row, row : row + side] = line / line.sum()
    return rows
