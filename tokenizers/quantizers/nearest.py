"""Nearest code: exact, in bounded memory, ties to the lowest index.

N vectors, K codes, D width; T vectors a tile, P pairs of a vector and a code. A matrix product gives scores `|e|^2 / 2 - z.e`; how far
rounding may have moved them is bounded, so the few codes that could be the nearest are known, and where they are several, those alone are
compared again in float64, by the direct formula, where nothing cancels. Where the processor multiplies bytes or bfloat16 the product is one
of these, of the coarsest that leaves few codes in question. An argmin over all codes would cost more than the product; minima of blocks of
codes that lie far apart do not.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # codes whose minimum is taken; they stand K / BLOCK apart, so that minima are taken of whole rows at once
SCORES = 1 << 21  # of a tile: they stay in the cache
FEWEST, MOST = 64, 4096  # vectors a tile
FAR = 8  # codes whose mean is this many times smaller than they are stay where they are
SMALL = 1 << 15  # numbers of a codebook up to which the product costs so little that a coarser one cannot save anything
FEW = 8  # blocks of codes in question, a vector, above which bytes are too coarse: comparing them costs more than a finer product
SHARE = 8  # and at most one block in so many, because a trained encoder's vectors lie between codes that are close to each other
DIGITS = 32  # columns of bytes that |e|^2 / 2 may take
LIKELY = 64  # codes that may be the nearest, a vector, above which a tile is multiplied again in float32
ROWS = 512  # of the codebook, rounded at a time
PAIRS = 1 << 13  # compared at a time in float64


class _Codes(NamedTuple):
    """A codebook made ready; M = K / BLOCK, rounded up, and K' = M BLOCK."""

    exact_KD: Tensor  # float32, as given
    centre_D: Tensor  # what is subtracted from both sides: distances stay, scores cancel less
    centred_KD: Tensor  # K' rows
    half_K: Tensor  # [K']: |e|^2 / 2, infinite where there is no code
    reach: Tensor  # largest |e|


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of `codebook` [K, D] for each of `vectors` [N, D], as int64 [N]; float32 whatever autocast says."""
    if vectors.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"vectors of width {vectors.shape[-1]} cannot be compared with codes of width {codebook.shape[-1]}")
    if not len(vectors):
        return vectors.new_zeros(0, dtype=torch.int64)
    with torch.autocast(vectors.device.type, enabled=False):
        z_ND, exact_KD = vectors.float(), codebook.float()
        centre_D, centred_KD = exact_KD.mean(0), exact_KD
        size_K = torch.linalg.vector_norm(exact_KD, dim=-1)  # one pass; a square and a sum are two
        if FAR * torch.linalg.vector_norm(centre_D) > size_K.mean():
            centred_KD = exact_KD - centre_D
            size_K = torch.linalg.vector_norm(centred_KD, dim=-1)
        else:  # a pass over the codebook costs more than the few digits
            centre_D = torch.zeros_like(centre_D)
        half_K = size_K.square() / 2
        if missing := -len(exact_KD) % BLOCK:
            centred_KD, half_K = F.pad(centred_KD, (0, 0, 0, missing)), F.pad(half_K, (0, missing), value=torch.inf)
        codes = _Codes(exact_KD, centre_D, centred_KD, half_K, size_K.amax())
        rows = min(MOST, max(FEWEST, SCORES // len(half_K)))
        pairs: _Pairs = _float32_pairs
        if (
            z_ND.device.type == "cpu" and exact_KD.numel() > SMALL
        ):  # a GPU may add up products of bfloat16 in less than float32, which the bounds here do not cover
            pairs = _int8_pairs if _multiplies_bytes() else _bfloat16_pairs if _multiplies_bfloat16() else pairs
        return _nearest_of(z_ND, exact_KD, *pairs(z_ND, codes, rows))


def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _multiplies_bytes() -> bool:
    return torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()


# Vectors, codes, vectors a tile -> vectors [P] and codes [P] among which each vector's nearest is.
_Pairs = Callable[[Tensor, _Codes, int], tuple[Tensor, Tensor]]


def _int8_pairs(z_ND: Tensor, codes: _Codes, rows: int) -> tuple[Tensor, Tensor]:
    """By products of bytes, which are exact: only that vectors and codes are multiples of a step is not. From the first tile on where that
    leaves many codes in question, a finer product takes over."""
    D = z_ND.shape[1]
    finer = _bfloat16_pairs if _multiplies_bfloat16() else _float32_pairs
    away_ND = codes.centre_D - z_ND  # the other way round: the product is -z.e
    step_z, step_e = (float(each.abs().amax()) / 127 for each in (away_ND, codes.centred_KD))
    unit = step_z * step_e
    low, high = float(codes.half_K.amin()), float(codes.half_K.amax())
    if not 1e-30 < unit < 1e30 or not high - low <= DIGITS * 127**2 * unit:
        return finer(z_ND, codes, rows)
    half_K = ((codes.half_K - low) / unit).round_()
    digits = math.ceil((high - low) / (127**2 * unit))
    factor = codes.centred_KD.new_empty((len(half_K), D + digits + 1), dtype=torch.int8)
    for part, of in zip(torch.split(factor, ROWS), torch.split(codes.centred_KD, ROWS), strict=True):  # in the cache
        part[:, :D] = (of / step_e).round_()
    tall_K = (half_K / 127).floor_()
    factor[:, D:-1] = (tall_K[:, None] - 127 * torch.arange(digits, device=z_ND.device)).clamp_(0, 127)
    factor[:, -1] = half_K - 127 * tall_K
    columns = torch.full((len(z_ND), D + digits + 1), 127, dtype=torch.int8, device=z_ND.device)
    columns[:, :D], columns[:, -1] = (whole_ND := (away_ND / step_z).round_()), 1
    size_N = torch.linalg.vector_norm(away_ND, dim=-1)
    moved_N = torch.linalg.vector_norm(away_ND - whole_ND * step_z, dim=-1)
    off_N = moved_N * codes.reach + (size_N + moved_N) * (0.5 * D**0.5 * step_e)
    off_N = 1.01 * off_N + (D + 8) * torch.finfo(torch.float32).eps * (size_N + codes.reach).square() + unit
    if not float(off_N.amax()) < 2**29 * unit:  # vectors so short that the bound would not be an int32
        return finer(z_ND, codes, rows)
    within_N = (2 * off_N / unit).ceil_().to(torch.int32)
    found: list[tuple[Tensor, Tensor]] = []
    rows = max(FEWEST, rows // 2)  # these scores are twice as long
    tiles = [columns[:FEWEST], *torch.split(columns[FEWEST:], rows)]  # the first is a try
    for first, tile in zip([0, *range(FEWEST, len(z_ND), rows)], tiles, strict=False):
        scores_JMT = torch._int_mm(factor, tile.T).view(BLOCK, len(half_K) // BLOCK, -1)
        least_MT = scores_JMT.amin(0)
        pairs = _in_question(scores_JMT, least_MT, least_MT.amin(0) + within_N[first : first + len(tile)], FEW)
        if pairs is None:
            row_P, code_P = finer(z_ND[first:], codes, rows)
            found.append((first + row_P, code_P))
            break
        found.append((first + pairs[0], pairs[1]))
    return torch.cat([row_P for row_P, _ in found]), torch.cat([code_P for _, code_P in found])


def _in_question(scores_JMT: Tensor, least_MT: Tensor, bound_T: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
    """Vectors [P] and codes [P] whose scores are not above the vector's bound; None if more than `most` blocks a vector, or than every
    SHARE-th, hold such."""
    block_B, row_B = (least_MT <= bound_T).nonzero(as_tuple=True)
    if len(row_B) > min(most, max(1, len(least_MT) // SHARE)) * len(bound_T):
        return None
    inside_P, near_P = (scores_JMT[:, block_B, row_B] <= bound_T[row_B]).nonzero(as_tuple=True)
    return row_B[near_P], inside_P * len(least_MT) + block_B[near_P]


def _bfloat16_pairs(z_ND: Tensor, codes: _Codes, rows: int) -> tuple[Tensor, Tensor]:
    """By products of bfloat16."""
    D = z_ND.shape[1]
    factor = codes.centred_KD.new_empty((len(codes.half_K), D + 3), dtype=torch.bfloat16)
    factor[:, :D], factor[:, D:] = codes.centred_KD, _parts(codes.half_K)
    centred_ND = codes.centre_D - z_ND  # the other way round: the product is -z.e
    rounded_ND = centred_ND.bfloat16()
    size_N = torch.linalg.vector_norm(centred_ND, dim=-1)
    # Both factors were rounded, and products were added up in float32 in some order.
    off_N = torch.linalg.vector_norm(centred_ND - rounded_ND, dim=-1) * codes.reach + 1.01 * 2**-9 * size_N * codes.reach
    off_N += (D + 8) * torch.finfo(torch.float32).eps * (size_N + codes.reach).square()
    ones_N3 = torch.ones_like(rounded_ND[:, :1]).expand(-1, 3)
    columns = torch.cat([rounded_ND, ones_N3], dim=1)
    blocks = len(codes.half_K) // BLOCK
    found: list[tuple[Tensor, Tensor]] = []
    tiles = [columns[:FEWEST], *torch.split(columns[FEWEST:], rows)]  # the first is a try
    for first, tile in zip([0, *range(FEWEST, len(z_ND), rows)], tiles, strict=False):
        off_T = off_N[first : first + len(tile)]
        scores_JMT = (factor @ tile.T).view(BLOCK, blocks, len(tile))
        least_MT = scores_JMT.amin(0)
        least_T = least_MT.amin(0).float()
        # A score is rounded to eight digits in the end. Rounding keeps order, so the nearest code's is not above the rounded bound.
        bound_T = (least_T + 2**-8 * least_T.abs() + 2 * off_T).bfloat16()
        pairs = _in_question(scores_JMT, least_MT, bound_T, LIKELY)
        if pairs is None:
            row_P, code_P = _float32_pairs(z_ND[first:], codes, rows)
            found.append((first + row_P, code_P))
            break
        found.append((first + pairs[0], pairs[1]))
    return torch.cat([row_P for row_P, _ in found]), torch.cat([code_P for _, code_P in found])


def _parts(half_K: Tensor) -> Tensor:
    """[K', 3] of bfloat16, eight digits each, that sum up to `half_K`."""
    parts, left_K = [], half_K
    for _ in range(3):
        parts.append(left_K.bfloat16())
        left_K = torch.where(half_K.isinf(), 0.0, left_K - parts[-1].float())
    return torch.stack(parts, dim=1)


def _float32_pairs(z_ND: Tensor, codes: _Codes, rows: int) -> tuple[Tensor, Tensor]:
    """By products of float32: one code each but for what these leave in question."""
    D = z_ND.shape[1]
    found = []
    for first, z_TD in zip(range(0, len(z_ND), rows), torch.split(z_ND, rows), strict=True):
        centred_TD = z_TD - codes.centre_D
        scores_TK = torch.addmm(codes.half_K, centred_TD, codes.centred_KD.T, alpha=-1)
        # Rounding of a product of length D, generously.
        slack_T = 4 * torch.finfo(torch.float32).eps * max(8, D**0.5) * (centred_TD.norm(dim=-1) + codes.reach) * codes.reach
        least_T = scores_TK.view(len(z_TD), BLOCK, -1).amin(1).amin(1)
        row_P, code_P = (scores_TK <= (least_T + slack_T)[:, None]).nonzero(as_tuple=True)
        if len(row_P) > LIKELY * len(z_TD):  # so that not all pairs of all tiles are held
            code_P = _nearest_of(z_TD, codes.exact_KD, row_P, code_P)
            row_P = torch.arange(len(z_TD), device=z_ND.device)
        found.append((first + row_P, code_P))
    return torch.cat([row_P for row_P, _ in found]), torch.cat([code_P for _, code_P in found])


def _nearest_of(z_ND: Tensor, e_KD: Tensor, row_P: Tensor, code_P: Tensor) -> Tensor:
    """The nearest of each row's codes, the lowest of several, by float64 distances; a row with one code has it."""
    codes_N = code_P.new_zeros(len(z_ND))  # a vector that is not finite is near nothing: any code will do
    codes_N[row_P] = code_P
    contested_P = torch.bincount(row_P, minlength=len(z_ND))[row_P] > 1
    row_P, code_P = row_P[contested_P], code_P[contested_P]
    if not len(row_P):
        return codes_N
    parts = zip(torch.split(row_P, PAIRS), torch.split(code_P, PAIRS), strict=True)
    distance_P = torch.cat([(z_ND[row].double() - e_KD[code].double()).square().sum(-1) for row, code in parts])
    best_N = distance_P.new_full((len(z_ND),), torch.inf).scatter_reduce(0, row_P, distance_P, "amin")
    is_best_P = distance_P == best_N[row_P]
    return codes_N.scatter_reduce(0, row_P[is_best_P], code_P[is_best_P], "amin", include_self=False)
