"""Residual vector quantization: each level quantizes what those before it left (arXiv:2107.03312, SoundStream; arXiv:2210.13438, EnCodec).

B batch, D width, L levels, N vectors of all grids, K codes of a level.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from worldloom.tokenizers.quantizers.codebooks import Codebook, CodeStatistics
from worldloom.tokenizers.quantizers.nearest import nearest_codes
from worldloom.tokenizers.quantizers.quantized import Quantized, check_codes
from worldloom.tokenizers.quantizers.ranks import rank, ranks


class ResidualQuantizer(nn.Module):
    """loss = mean over levels of codebook_weight |sg(r) - e|^2 + commitment |r - sg(e)|^2, r what is left for a level.

    A residual is taken from the quantized value itself, not from its straight-through copy, which would leave all levels but the first
    without commitment; one straight-through step stands over the sum. In training, a share of the samples uses only its first levels
    (quantizer dropout), how many is drawn for each, so that fewer codes decode, too. Level i is placed in the data, as a codebook alone
    is, from what the levels before it leave, one update after them.
    """

    def __init__(self, codebooks: Sequence[Codebook], commitment: float, dropout: float, codebook_weight: float = 1.0) -> None:
        super().__init__()
        assert len({(codebook.size, codebook.width) for codebook in codebooks}) == 1, "all levels are of one size and width"
        self.codebooks = nn.ModuleList(cast(Sequence[nn.Module], codebooks))
        self.commitment = commitment
        self.dropout = dropout
        self.codebook_weight = codebook_weight
        self.codebook_size = codebooks[0].size
        self.levels = len(codebooks)
        self.in_width = self.out_width = codebooks[0].width

    @property
    def statistics(self) -> CodeStatistics:
        """Of the level that uses the fewest of its codes."""
        return min((codebook.statistics for codebook in self._each()), key=lambda statistics: float(statistics.use()))

    def forward(self, z: Tensor) -> Quantized:
        """[B, D, *grid] -> Quantized with codes [B, *grid, L]."""
        with torch.autocast(z.device.type, enabled=False):
            last = z.float().movedim(1, -1)
            z_ND = last.reshape(-1, last.shape[-1])
            depth_N1 = self._depths(len(last), z_ND.device).repeat_interleave(len(z_ND) // max(len(last), 1))[:, None]
            left_ND, sum_ND = z_ND, torch.zeros_like(z_ND)
            loss, codes = z_ND.new_zeros(()), []
            passing = False
            for level, codebook in enumerate(self._each()):
                vectors_KD = codebook.vectors()
                codes_N = nearest_codes(left_ND.detach(), vectors_KD)
                codes.append(codes_N)
                passing = passing or (self.training and not codebook.placed())
                chosen_ND = nn.functional.embedding(codes_N, vectors_KD)
                if self.training:
                    codebook.update(left_ND.detach(), codes_N)
                if passing:  # what is not placed yet passes all that is left, as a codebook alone does
                    sum_ND = sum_ND + left_ND.detach()
                    break
                commitment = (left_ND - chosen_ND.detach()).square().mean()
                loss = loss + self.codebook_weight * codebook.loss(left_ND.detach(), chosen_ND) + self.commitment * commitment
                used_ND = torch.where(depth_N1 > level, chosen_ND.detach(), 0.0)
                sum_ND, left_ND = sum_ND + used_ND, left_ND - chosen_ND.detach()
            codes += [torch.zeros_like(codes[0])] * (self.levels - len(codes))
            out_ND = z_ND + (sum_ND - z_ND).detach()
            codes_NL = torch.stack(codes, dim=-1)
        return Quantized(
            z=out_ND.view(last.shape).movedim(-1, 1), codes=codes_NL.view(*last.shape[:-1], self.levels), loss=loss / self.levels
        )

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """[B, D, *grid] -> int64 codes [B, *grid, L]."""
        last = z.float().movedim(1, -1)
        left_ND, codes = last.reshape(-1, last.shape[-1]), []
        for codebook in self._each():
            vectors_KD = codebook.vectors()
            codes.append(nearest_codes(left_ND, vectors_KD))
            left_ND = left_ND - vectors_KD[codes[-1]]
        return torch.stack(codes, dim=-1).view(*last.shape[:-1], self.levels)

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes [B, *grid, l] -> [B, D, *grid]; l may be below L: then it is what the first l levels say."""
        check_codes(codes, self.codebook_size)
        if not 1 <= codes.shape[-1] <= self.levels:
            raise ValueError(f"codes have 1 to {self.levels} levels as their last axis, got {tuple(codes.shape)}")
        vectors = [codebook.vectors() for codebook in self._each()]
        return torch.stack([vectors[level][codes[..., level]] for level in range(codes.shape[-1])]).sum(0).movedim(-1, 1)

    def _each(self) -> list[Codebook]:
        return cast(list[Codebook], list(self.codebooks))

    def _depths(self, samples: int, device: torch.device) -> Tensor:
        """int64 [B]: how many levels each sample uses; all of them, but for the share that is drawn."""
        if not self.training or self.dropout == 0:
            return torch.full((samples,), self.levels, device=device)
        first = self._each()[0].statistics
        # Drawn for the samples of all ranks, so that these do what one would do with all of them; each takes its own.
        generator, whole = first.generator(), samples * ranks()
        drawn = torch.randint(1, self.levels + 1, (whole,), generator=generator)
        cut = torch.rand(whole, generator=generator) < self.dropout
        return torch.where(cut, drawn, self.levels)[rank() * samples :][:samples].to(device)
