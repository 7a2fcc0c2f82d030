"""Codes placed by the data: k-means++ seeding with a few rounds of Lloyd, and draws of vectors: badly served ones, or any."""

import torch
from torch import Tensor

from worldloom.tokenizers.quantizers.nearest import nearest_codes


def kmeans(vectors_ND: Tensor, clusters: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Centres [clusters, D] in float32. Seeds are drawn by distance in sixteen batches; an empty cluster restarts far from the others.

    Fewer vectors than clusters: the surplus centres are vectors again, moved by a hundredth of the spread. `generator` lives on the CPU.
    """
    vectors_ND = vectors_ND.float()
    centres = vectors_ND[torch.randint(len(vectors_ND), (1,), generator=generator).to(vectors_ND.device)]
    for wanted in torch.linspace(1, clusters, 17).round().long().tolist()[1:]:
        if wanted > len(centres):
            centres = torch.cat([centres, draw_by_error(vectors_ND, centres, wanted - len(centres), generator)])
    for _ in range(rounds):
        codes_N = nearest_codes(vectors_ND, centres)
        count_K = torch.bincount(codes_N, minlength=clusters)
        total_KD = torch.zeros_like(centres).index_add_(0, codes_N, vectors_ND)
        centres = torch.where(count_K[:, None] > 0, total_KD / count_K.clamp(min=1)[:, None], centres)
        empty_E = (count_K == 0).nonzero()[:, 0]
        if len(empty_E):
            centres[empty_E] = draw_by_error(vectors_ND, centres, len(empty_E), generator)
    return centres


def draw_by_error(vectors_ND: Tensor, codebook_KD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the vectors [count, D], each drawn with a chance that grows with its squared distance to the nearest code.

    Half of the chance is shared evenly, so that an outlier does not take everything; without replacement while there are enough,
    and with a hundredth of the spread as noise, so that no two codes coincide.
    """
    nearest_ND = codebook_KD.float()[nearest_codes(vectors_ND, codebook_KD)]
    error_N = (vectors_ND - nearest_ND).square().sum(-1).double().cpu()
    chance_N = error_N / error_N.sum().clamp(min=1e-30) + 1 / len(error_N)
    chosen = torch.multinomial(chance_N, count, replacement=count > len(error_N), generator=generator)
    spread_D = vectors_ND.std(0, correction=0)
    noise = torch.randn((count, vectors_ND.shape[1]), generator=generator).to(vectors_ND.device)
    return vectors_ND[chosen.to(vectors_ND.device)] + 0.01 * spread_D * noise


def draw_evenly(vectors_ND: Tensor, codebook_KD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the vectors [count, D], each as likely as any other: where most vectors are, most are drawn (arXiv:2005.00341, 3.1).

    Without replacement while there are enough, and with so little noise that what is drawn from a crowd stays in it.
    """
    shuffled = torch.randperm(len(vectors_ND), generator=generator)
    chosen = shuffled.repeat(-(-count // len(shuffled)))[:count].to(vectors_ND.device)
    noise = torch.randn((count, vectors_ND.shape[1]), generator=generator).to(vectors_ND.device)
    return vectors_ND[chosen] + 1e-4 * vectors_ND.std(0, correction=0) * noise
