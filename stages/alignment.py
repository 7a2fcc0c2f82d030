"""Whether two pictures are one: compared pixel by pixel, after a search for the crop and the mirroring that bring them together.

Features say which pictures are worth comparing; they cannot tell a crop of a picture from another one of the same kind. What is compared
by is Lin's concordance (Biometrics 45, 1989), 2 cov / (var + var' + (mean - mean')^2): 1 for equal pictures, less where contrast or
brightness differ, where plain correlation stays at 1.

P pairs, B pictures, V views, L pixels along the side of a picture that is cropped, S of what is compared.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldloom.stages.augment import along_both, resize_matrix
from worldloom.stages.eye import fit

SOURCE = 64  # L: pictures are brought to it
COMPARED = 32  # S of the fine search
COARSE_SOURCE, COARSE = 32, 16  # L and S of the coarse one
STEP = 0.07  # between the boxes of the coarse search, in shares of the side, and between their sizes
STEPS = (0.04, 0.02, 0.01, 0.005, 0.0025)  # of the fine search
TURNS = 3  # at each of them
STABLE = 1e-4  # added above and below: two blank pictures are equal where their colours are
HOPEFUL = 0.12  # how far below the bar the coarse search may leave a pair that is looked at again: it misses boxes by half a step
HOPELESS = 0.1  # pairs that are as far below the bar after the first step are given up
AT_ONCE = 64  # pictures, or pairs


class Pairs(NamedTuple):
    """What became of pairs of pictures."""

    concordance: NDArray[np.float32]  # [P], the best found; of pairs that were given up, as far as it got
    flipped: NDArray[np.bool_]  # [P]
    box: NDArray[np.float32]  # [P, 4]: left, top, right, bottom, in shares of the side
    reversed: NDArray[np.bool_]  # [P]: the second picture's box shows the first, not the first's the second


def align(pictures: NDArray[np.uint8], pairs: NDArray[np.int64], bar: float, smallest: float) -> Pairs:
    """Compares pictures uint8 [B, H, W, 3] by pairs of their numbers [P, 2].

    A pair's concordance is right where it reaches `bar`; the search for others ends early. Crops are down to `smallest` of a side.
    """
    coarse = _coarse(_fitted(pictures, COARSE_SOURCE), pairs, smallest)
    found = coarse._replace(concordance=coarse.concordance.copy(), box=coarse.box.copy())
    hopeful = np.flatnonzero(coarse.concordance >= bar - HOPEFUL)
    for part in np.array_split(hopeful, -(-len(hopeful) // AT_ONCE)) if len(hopeful) else ():
        first, second = np.where(coarse.reversed[part, None], pairs[part, ::-1], pairs[part]).T
        shown = _fitted(pictures[second], COMPARED)
        shown = torch.where(torch.from_numpy(coarse.flipped[part]).view(-1, 1, 1, 1), shown.flip(3), shown)
        boxes, concordance = refine(_fitted(pictures[first], SOURCE), shown, torch.from_numpy(coarse.box[part]), bar, smallest)
        found.box[part], found.concordance[part] = boxes.numpy(), concordance.numpy()
    return found


def concordance(left: Tensor, right: Tensor) -> Tensor:
    """[...] of pictures [..., C, S, S] in [0, 1]."""
    a, b = left.flatten(-3), right.flatten(-3)
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    both = (a * b).mean(-1) - mean_a * mean_b
    spread = a.square().mean(-1) + b.square().mean(-1) - 2 * mean_a * mean_b  # of both, and the difference of the means squared
    return (2 * both + STABLE) / (spread + STABLE)


def refine(source: Tensor, shown: Tensor, boxes: Tensor, bar: float, smallest: float) -> tuple[Tensor, Tensor]:
    """The box of `source` [P, 3, L, L] that shows `shown` [P, 3, S, S] best, from `boxes` [P, 4] on, and its concordance [P].

    A pattern search: edges move alone, in pairs and all together, by steps that are halved; the best of all moves is taken.
    """
    moves = torch.tensor(MOVES)
    boxes, best = boxes.clone(), concordance(cut(source, boxes, shown.shape[-1]), shown)
    for number, step in enumerate(STEPS):
        for _ in range(TURNS):
            open_ = (best < bar) if number < 1 else (best < bar) & (best >= bar - HOPELESS)
            at = torch.nonzero(open_)[:, 0]
            if not len(at):
                return boxes, best
            tried = (boxes[at, None] + step * moves).clamp(0, 1)  # [P, M, 4]
            large_enough = ((tried[..., 2:] - tried[..., :2]) >= 0.9 * smallest).all(-1)
            tried = torch.where(large_enough[..., None], tried, boxes[at, None])
            made = cut(source[at].repeat_interleave(len(moves), 0), tried.flatten(0, 1), shown.shape[-1])
            scores = concordance(made.view(len(at), len(moves), *made.shape[1:]), shown[at, None])
            found, which = scores.max(1)
            better = found > best[at]
            boxes[at[better]] = tried[better, which[better]]
            best[at[better]] = found[better]
    return boxes, best


MOVES = (  # of left, top, right, bottom
    *((sign * (edge == 0), sign * (edge == 1), sign * (edge == 2), sign * (edge == 3)) for edge in range(4) for sign in (-1.0, 1.0)),
    *((sign, 0.0, sign, 0.0) for sign in (-1.0, 1.0)),
    *((0.0, sign, 0.0, sign) for sign in (-1.0, 1.0)),
    *((sign, sign, -sign, -sign) for sign in (-0.5, 0.5)),
)


def cut(source: Tensor, boxes: Tensor, size: int) -> Tensor:
    """[P, 3, L, L], [P, 4] in shares -> [P, 3, S, S], with antialiasing."""
    L = source.shape[-1]
    left, top, right, bottom = (boxes * L).unbind(1)
    return along_both(source, resize_matrix(L, size, top, bottom - top), resize_matrix(L, size, left, right - left))


class Views:
    """Every picture through the same boxes: squares of some sizes, side by side in even steps."""

    def __init__(self, smallest: float, size: int = COARSE) -> None:
        """`size`: S."""
        sizes = [1 - STEP * number for number in range(int((1 - smallest) / STEP + 1e-6) + 1)]
        self.groups: list[Tensor] = []  # for each size, [I, S, L]: one matrix for every interval along a side
        boxes: list[tuple[float, float, float, float]] = []
        for share in sizes:
            starts = np.linspace(0, 1 - share, 1 + math.ceil((1 - share) / STEP - 1e-6))
            first = torch.from_numpy(starts * COARSE_SOURCE).float()
            self.groups.append(resize_matrix(COARSE_SOURCE, size, first, torch.full_like(first, share * COARSE_SOURCE)))
            boxes += [(left, top, left + share, top + share) for top in starts for left in starts]
        self.boxes = np.array(boxes, np.float32)

    def __call__(self, x: Tensor) -> Tensor:
        """[B, 3, L, L] -> [B, V, 3 S S]."""
        made = []
        for matrices in self.groups:
            down = torch.einsum("isl,bclm->bicsm", matrices, x)
            across = torch.einsum("jtm,bicsm->bijcst", matrices, down)
            made.append(across.flatten(1, 2).flatten(2))
        return torch.cat(made, dim=1)


def signatures(x: Tensor) -> NDArray[np.float32]:
    """Of pictures as vectors [..., n], each without its mean and of length one: their cosine is their correlation."""
    centred = x - x.mean(-1, keepdim=True)
    found: NDArray[np.float32] = (centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-6)).numpy()
    return found


def view_signatures(pictures: NDArray[np.uint8], smallest: float, size: int) -> NDArray[np.float32]:
    """uint8 [B, H, W, 3] -> [B, 2V, 3 S S]: of all views, as they are and mirrored."""
    seen = Views(smallest, size)(_fitted(pictures, COARSE_SOURCE))
    mirrored = seen.view(*seen.shape[:2], 3, size, size).flip(-1).flatten(2)
    return signatures(torch.cat([seen, mirrored], dim=1))


def thumb_signatures(thumbs: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """uint8 [B, H, W, 3] -> [B, 3 S S]."""
    return signatures(_fitted(thumbs, size).flatten(1))


def _coarse(x: Tensor, pairs: NDArray[np.int64], smallest: float) -> Pairs:
    """The best of all views of either picture with the other one, as it is and mirrored."""
    views, small = Views(smallest), fit(x, COARSE)
    straight = torch.stack([small, small.flip(3)], dim=1).flatten(2)  # [B, 2, 3 S S]
    count = straight.shape[2]
    means, squares = straight.mean(2), straight.square().mean(2)
    best = Pairs(
        np.full(len(pairs), -np.inf, np.float32),
        np.zeros(len(pairs), bool),
        np.zeros((len(pairs), 4), np.float32),
        np.zeros(len(pairs), bool),
    )
    for side in (0, 1):
        order = np.argsort(pairs[:, side], kind="stable")
        numbers, starts = np.unique(pairs[order, side], return_index=True)
        of_each = np.split(order, starts[1:])
        for first in range(0, len(numbers), AT_ONCE):
            seen = views(x[torch.from_numpy(numbers[first : first + AT_ONCE])])
            mean_v, square_v = seen.mean(2), seen.square().mean(2)
            for row, mine in enumerate(of_each[first : first + AT_ONCE]):
                others = torch.from_numpy(pairs[mine, 1 - side])
                dots = torch.einsum("vn,qfn->qfv", seen[row], straight[others]) / count
                product = means[others][..., None] * mean_v[row]
                spread = squares[others][..., None] + square_v[row] - 2 * product
                scores = ((2 * (dots - product) + STABLE) / (spread + STABLE)).flatten(1).max(1)
                better = scores.values.numpy() > best.concordance[mine]
                flip, view = np.divmod(scores.indices.numpy(), len(views.boxes))
                for whole, value in zip(best, (scores.values.numpy(), flip == 1, views.boxes[view], side == 1), strict=True):
                    whole[mine[better]] = value if isinstance(value, bool) else value[better]
    return best


def _fitted(pictures: NDArray[np.uint8], side: int) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, side, side] in [0, 1]."""
    parts = [
        fit(torch.from_numpy(np.array(pictures[start : start + 1024])).permute(0, 3, 1, 2).float() / 255, side)
        for start in range(0, len(pictures), 1024)
    ]
    return torch.cat(parts)
