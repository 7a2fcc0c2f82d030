"""Nearest code: exact, in bounded memory, ties to the lowest index.

N vectors, K codes, D width. One product per tile of vectors gives scores `|e|^2 / 2 - z.e`; block minima find the few codes that rounding
leaves in question, and those alone are compared again in float64, by the direct formula, where nothing cancels.
"""

import torch
from torch import Tensor

TILE = 256  # vectors a tile: TILE x K scores stay in the cache for common K
PAIRS = 1 << 16  # (vector, code) pairs compared at a time in float64


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of `codebook` [K, D] for each of `vectors` [N, D], as int64 [N]; float32 whatever autocast says."""
    if vectors.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"vectors of width {vectors.shape[-1]} cannot be compared with codes of width {codebook.shape[-1]}")
    with torch.autocast(vectors.device.type, enabled=False):
        z_ND, e_KD = vectors.float(), codebook.float()
        centre = e_KD.mean(0)  # distances do not change, but scores cancel less
        z_ND, e_KD = z_ND - centre, e_KD - centre
        half_K = e_KD.square().sum(-1) / 2
        tiles = zip(torch.split(z_ND, TILE), torch.split(vectors.float(), TILE), strict=True)
        found = [_tile(z_TD, original_TD, e_KD, half_K, codebook.float()) for z_TD, original_TD in tiles]
    return torch.cat(found) if found else vectors.new_zeros(0, dtype=torch.int64)


def _tile(z_TD: Tensor, original_TD: Tensor, e_KD: Tensor, half_K: Tensor, codebook: Tensor) -> Tensor:
    scores_TK = torch.addmm(half_K, z_TD, e_KD.T, alpha=-1)
    least_T, codes_T = scores_TK.min(-1)
    # Rounding of a product of length D, generously; codes this close to the best are compared exactly.
    scale_T = z_TD.norm(dim=-1) * e_KD.norm(dim=-1).amax() + half_K.amax()
    bound_T = least_T + 4 * torch.finfo(torch.float32).eps * max(8, e_KD.shape[1] ** 0.5) * scale_T
    close_TK = scores_TK <= bound_T[:, None]
    doubtful = (close_TK.sum(-1) != 1).nonzero()[:, 0]
    if len(doubtful):
        codes_T[doubtful] = _exact(original_TD[doubtful], codebook, close_TK[doubtful])
    return codes_T


def _exact(z_MD: Tensor, e_KD: Tensor, close_MK: Tensor) -> Tensor:
    """The lowest of the nearest among each row's close codes, by float64 distances."""
    row_P, code_P = close_MK.nonzero(as_tuple=True)
    distance_P = torch.cat(
        [
            (z_MD[row].double() - e_KD[code].double()).square().sum(-1)
            for row, code in zip(torch.split(row_P, PAIRS), torch.split(code_P, PAIRS), strict=True)
        ]
    )
    best_M = distance_P.new_full((len(z_MD),), torch.inf).scatter_reduce(0, row_P, distance_P, "amin")
    is_best_P = distance_P == best_M[row_P]
    lowest_M = code_P.new_full((len(z_MD),), len(e_KD))
    lowest_M = lowest_M.scatter_reduce(0, row_P[is_best_P], code_P[is_best_P], "amin")
    return lowest_M.where(lowest_M < len(e_KD), 0)  # a vector that is not finite is near nothing: any code will do
