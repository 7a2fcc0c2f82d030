"""Nearest code: exact, in bounded memory, ties to the lowest index.

N vectors, K codes, D width; T vectors a tile, M blocks of BLOCK codes. One product per tile gives scores `|e|^2 / 2 - z.e`. Minima of
blocks are cheap where an argmin over all codes is not; they find the few codes that rounding leaves in question, and those alone are
compared again in float64, by the direct formula, where nothing cancels.
"""

import torch
from torch import Tensor

TILE = 256  # vectors a tile: TILE x K scores stay in the cache for common K
BLOCK = 32  # codes
PAIRS = 1 << 16  # (vector, code) pairs compared at a time in float64


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of `codebook` [K, D] for each of `vectors` [N, D], as int64 [N]; float32 whatever autocast says."""
    if vectors.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"vectors of width {vectors.shape[-1]} cannot be compared with codes of width {codebook.shape[-1]}")
    if not len(vectors):
        return vectors.new_zeros(0, dtype=torch.int64)
    with torch.autocast(vectors.device.type, enabled=False):
        vectors_ND, codebook_KD = vectors.float(), codebook.float()
        centre_D = codebook_KD.mean(0)  # distances do not change, but scores cancel less
        e_KD = codebook_KD - centre_D
        half_K = e_KD.square().sum(-1) / 2
        reach = e_KD.norm(dim=-1).amax()
        missing = -len(e_KD) % BLOCK
        e_KD = torch.nn.functional.pad(e_KD, (0, 0, 0, missing))
        half_K = torch.nn.functional.pad(half_K, (0, missing), value=torch.inf)
        found = []
        for tile_TD in torch.split(vectors_ND, TILE):
            scores_TK = torch.addmm(half_K, tile_TD - centre_D, e_KD.T, alpha=-1)
            # Rounding of a product of length D, generously; codes this close to the best are compared exactly.
            scale_T = ((tile_TD - centre_D).norm(dim=-1) + reach) * reach
            slack_T = 4 * torch.finfo(torch.float32).eps * max(8, e_KD.shape[1] ** 0.5) * scale_T
            found.append(_settle(scores_TK, slack_T, tile_TD, codebook_KD))
    return torch.cat(found)


def _settle(scores_TK: Tensor, slack_T: Tensor, z_TD: Tensor, codebook_KD: Tensor) -> Tensor:
    """The codes of one tile: by their scores where one is clearly the least, else exactly."""
    blocks = scores_TK.view(len(scores_TK), -1, BLOCK)
    least_TM = blocks.amin(-1)
    best_T = least_TM.argmin(-1)
    bound_T = least_TM.amin(-1) + slack_T
    inside = blocks[torch.arange(len(blocks), device=blocks.device), best_T]  # [T, BLOCK]
    codes_T = best_T * BLOCK + inside.argmin(-1)
    clear_T = ((least_TM <= bound_T[:, None]).sum(-1) == 1) & ((inside <= bound_T[:, None]).sum(-1) == 1)
    doubtful = (~clear_T).nonzero()[:, 0]
    if len(doubtful):
        close_MK = scores_TK[doubtful, : len(codebook_KD)] <= bound_T[doubtful, None]
        codes_T[doubtful] = _exact(z_TD[doubtful], codebook_KD, close_MK)
    return codes_T


def _exact(z_MD: Tensor, e_KD: Tensor, close_MK: Tensor) -> Tensor:
    """The lowest of the nearest among each row's close codes, by float64 distances."""
    row_P, code_P = close_MK.nonzero(as_tuple=True)
    parts = zip(torch.split(row_P, PAIRS), torch.split(code_P, PAIRS), strict=True)
    distance_P = torch.cat([(z_MD[row].double() - e_KD[code].double()).square().sum(-1) for row, code in parts])
    best_M = distance_P.new_full((len(z_MD),), torch.inf).scatter_reduce(0, row_P, distance_P, "amin")
    is_best_P = distance_P == best_M[row_P]
    lowest_M = code_P.new_full((len(z_MD),), len(e_KD))
    lowest_M = lowest_M.scatter_reduce(0, row_P[is_best_P], code_P[is_best_P], "amin")
    return lowest_M.where(lowest_M < len(e_KD), 0)  # a vector that is not finite is near nothing: any code will do
