"""Nearest-code quantizer with straight-through gradients (VQ-VAE, arXiv:1711.00937). B batch, D width, N vectors of all grids, K codes."""

import torch
from torch import Tensor, nn

from worldloom.tokenizers.quantizers.code_entropy import code_entropy
from worldloom.tokenizers.quantizers.codebooks import Codebook, CodeStatistics
from worldloom.tokenizers.quantizers.nearest import nearest_codes
from worldloom.tokenizers.quantizers.quantized import Quantized, check_codes


class VectorQuantizer(nn.Module):
    """loss = codebook_weight |sg(z) - e|^2 + commitment |z - sg(e)|^2, means over all elements, before the straight-through step.

    In training entropy_weight (E[H(p)] - H(E[p])) comes on top, p being soft choices of codes (code_entropy.py). All of it is float32,
    whatever autocast or the encoder's type says. In training mode each call is one update of the codebook.
    With `cosine`, vectors and codes are brought to length 1 first (ViT-VQGAN, arXiv:2110.04627, section 3.2): the nearest code is the one
    of the smallest angle.
    """

    def __init__(
        self,
        codebook: Codebook,
        commitment: float = 0.25,
        codebook_weight: float = 1.0,
        cosine: bool = False,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.3,
    ) -> None:
        super().__init__()
        self.entropy_weight = entropy_weight
        self.entropy_temperature = entropy_temperature
        self.codebook = codebook
        self.commitment = commitment
        self.codebook_weight = codebook_weight
        self.cosine = cosine
        self.codebook_size = codebook.size
        self.levels = 1
        self.in_width = self.out_width = codebook.width

    @property
    def statistics(self) -> CodeStatistics:
        return self.codebook.statistics

    def forward(self, z: Tensor) -> Quantized:
        """[B, D, *grid] -> Quantized."""
        with torch.autocast(z.device.type, enabled=False):
            last = z.float().movedim(1, -1)
            z_ND = self._scaled(last.reshape(-1, last.shape[-1]))
            passing = self.training and not self.codebook.placed()
            vectors_KD = self._scaled(self.codebook.vectors())
            codes_N = nearest_codes(z_ND, vectors_KD)
            if passing:
                loss, out_ND = z_ND.new_zeros(()), z_ND
            else:
                # F.embedding, not indexing: its backward adds up the rows of a code in a fixed order.
                chosen_ND = nn.functional.embedding(codes_N, vectors_KD)
                commitment = (z_ND - chosen_ND.detach()).square().mean()
                loss = self.codebook_weight * self.codebook.loss(z_ND.detach(), chosen_ND) + self.commitment * commitment
                if self.training and self.entropy_weight:
                    each, together = code_entropy(z_ND, vectors_KD, codes_N, self.entropy_temperature)
                    loss = loss + self.entropy_weight * (each - together)
                out_ND = z_ND + (chosen_ND - z_ND).detach()
            if self.training:
                self.codebook.update(z_ND.detach(), codes_N)
        return Quantized(z=out_ND.view(last.shape).movedim(-1, 1), codes=codes_N.view(last.shape[:-1]), loss=loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """[B, D, *grid] -> int64 codes [B, *grid]."""
        last = z.movedim(1, -1)
        return nearest_codes(self._scaled(last.reshape(-1, last.shape[-1])), self._scaled(self.codebook.vectors())).view(last.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes [B, *grid] -> [B, D, *grid]."""
        check_codes(codes, self.codebook_size)
        return self._scaled(self.codebook.vectors())[codes].movedim(-1, 1)

    def _scaled(self, vectors: Tensor) -> Tensor:
        """Rows of length 1, in float32, where angles count."""
        return nn.functional.normalize(vectors.float(), dim=-1) if self.cosine else vectors
