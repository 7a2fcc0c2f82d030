"""Masked modelling of patches on the student only (iBOT, arXiv:2111.07832; as in DINOv2, arXiv:2304.07193, section 4).

The teacher sees the whole picture and says of each hidden patch what the student has to say without seeing it. Blocks are hidden as in
BEiT (arXiv:2106.08254).

B pictures, N patches, M hidden patches of the batch, K prototypes.
"""

import math

import torch
from torch import Tensor

from worldloom.world_model.encoders.dino import STUDENT_TEMPERATURE

SMALLEST, NARROWEST = 4, 0.3  # patches of a block, and its sides' ratio, at least
TRIES = 10  # for a block that still fits


def ibot_loss(student: Tensor, targets: Tensor, hidden: Tensor, temperature: float = STUDENT_TEMPERATURE) -> Tensor:
    """Cross-entropy of student logits [M, K] with targets [M, K] at the places that `hidden`, bool [B, N], names, in its order.

    A picture's hidden patches share a weight of one; the sum is divided by B, pictures with nothing hidden included.
    """
    weights = (1 / hidden.sum(1).clamp(min=1))[:, None].expand_as(hidden)[hidden]
    scaled = student.float() / temperature
    losses = scaled.logsumexp(-1) - (targets * scaled).sum(-1)
    return (losses * weights).sum() / len(hidden)


def hide_blocks(
    batch: int, grid: tuple[int, int], generator: torch.Generator, share: float = 0.5, low: float = 0.1, high: float = 0.5
) -> Tensor:
    """bool [B, N]: in `share` of the pictures blocks are hidden, whose parts of the patches are spread evenly over low .. high."""
    masked = round(batch * share)
    ratios = torch.linspace(low, high, masked + 1).tolist()
    masks = torch.zeros(batch, *grid, dtype=torch.bool)
    order = torch.randperm(batch, generator=generator)
    for number in range(masked):
        between = ratios[number] + (ratios[number + 1] - ratios[number]) * _uniform(generator)
        masks[order[number]] = blocks(grid, int(between * grid[0] * grid[1]), generator)
    return masks.flatten(1)


def blocks(grid: tuple[int, int], count: int, generator: torch.Generator) -> Tensor:
    """bool [h, w] with `count` patches hidden, or a few less: blocks are added while one of at least `SMALLEST` patches still fits."""
    mask = torch.zeros(grid, dtype=torch.bool)
    left = count
    while left >= SMALLEST and (block := _block(mask, left, generator)) is not None:
        down, across = block
        left -= int((~mask[down, across]).sum())
        mask[down, across] = True
    return mask


def _block(mask: Tensor, most: int, generator: torch.Generator) -> tuple[slice, slice] | None:
    """A rectangle that hides at least one and at most `most` more patches; None where none was found."""
    h, w = mask.shape
    for _ in range(TRIES):
        area = SMALLEST + (most - SMALLEST) * _uniform(generator)
        aspect = math.exp(math.log(NARROWEST) * (1 - 2 * _uniform(generator)))
        down, across = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < down <= h and 0 < across <= w):
            continue
        top, left = int(_uniform(generator) * (h - down + 1)), int(_uniform(generator) * (w - across + 1))
        place = slice(top, top + down), slice(left, left + across)
        if 0 < int((~mask[place]).sum()) <= most:
            return place
    return None


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()
