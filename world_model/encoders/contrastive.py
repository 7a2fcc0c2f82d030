"""The contrastive loss of pictures and their captions (CLIP, arXiv:2103.00020; CoCa, arXiv:2205.01917).

B pairs of this rank, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.ranks import gather_with_gradient, rank, ranks

FIRST_SCALE, HIGHEST_SCALE = 1 / 0.07, 100.0


class Contrastive(nn.Module):
    """Pictures and captions [B, D] -> the mean of both directions' cross-entropies, all other pairs of the global batch being wrong.

    The scale of the cosines is learnt, as its logarithm, and never above 100.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([math.log(FIRST_SCALE)]))  # [1]: DeepSpeed cannot send a scalar to other ranks

    @property
    def scale(self) -> Tensor:
        """Scalar."""
        return self.log_scale[0].exp().clamp(max=HIGHEST_SCALE)

    def forward(self, pictures: Tensor, captions: Tensor) -> Tensor:
        """Float32 whatever comes, under autocast, too."""
        if len(pictures) * ranks() < 2:
            raise ValueError("a contrastive loss needs two pairs at least, the global batch has 1; enlarge batch_size")
        with torch.autocast(pictures.device.type, enabled=False):
            pictures, captions = F.normalize(pictures.float(), dim=-1), F.normalize(captions.float(), dim=-1)
            every_picture, every_caption = gather_with_gradient(pictures), gather_with_gradient(captions)
            own = torch.arange(len(pictures), device=pictures.device) + rank() * len(pictures)
            to_captions = F.cross_entropy(self.scale * pictures @ every_caption.T, own)
            to_pictures = F.cross_entropy(self.scale * captions @ every_picture.T, own)
            return (to_captions + to_pictures) / 2
