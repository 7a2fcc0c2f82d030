"""Sinkhorn-Knopp centring (SwAV, arXiv:2006.09882; DINOv2, arXiv:2304.07193): teachers' targets that use all prototypes equally.

B rows of this rank, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.world_model.encoders.ranks import max_over_ranks, sum_over_ranks

ITERATIONS = 3


@torch.no_grad()
def sinkhorn(teacher: Tensor, temperature: float, iterations: int = ITERATIONS) -> Tensor:
    """Logits [B, K] -> probabilities whose rows sum to one and, ever more exactly, whose columns have equal shares of the global batch.

    Ranks may have different numbers of rows, none included (hidden patches).
    """
    log_share = teacher.double() / temperature  # logarithms, because shares of far logits underflow
    for _ in range(iterations):
        log_share = log_share - _log_sum_of_columns(log_share)
        log_share = F.log_softmax(log_share, 1)
    return log_share.exp().float()


def _log_sum_of_columns(x: Tensor) -> Tensor:
    """[K]: logsumexp over the rows of all ranks."""
    highest = max_over_ranks(x.amax(0) if len(x) else x.new_full((x.shape[1],), -torch.inf))
    return highest + sum_over_ranks((x - highest).exp().sum(0)).log()
