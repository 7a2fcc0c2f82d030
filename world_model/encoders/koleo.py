"""KoLeo (arXiv:1806.03198; DINOv2, arXiv:2304.07193): pictures of a batch spread evenly over the sphere.

B batch, D width. Neighbours are looked for in this rank's own batch, as in the reference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-8  # the same picture twice would be infinitely near


def koleo(features: Tensor, epsilon: float = EPSILON) -> Tensor:
    """-mean log of the distance to the nearest other row, [B, D] behind an l2 norm; float32 whatever comes."""
    if len(features) < 2:
        raise ValueError(f"KoLeo needs at least two pictures on a rank, got {len(features)}; enlarge the batch or set its weight to 0")
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=-1, eps=epsilon)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-2.0).argmax(1)
        return -torch.log(F.pairwise_distance(x, x[nearest], eps=epsilon) + epsilon).mean()
