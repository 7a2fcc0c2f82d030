"""The discrete VAE's quantizer: a relaxed categorical code (arXiv:2102.12092, appendix A; Gumbel-softmax arXiv:1611.01144).

B batch, K codes, D width of the decoder's input.
"""

import math

import torch
from torch import Tensor, nn

from worldloom.tokenizers.quantizers.codebooks import CodeStatistics, Float32State, Upkeep
from worldloom.tokenizers.quantizers.quantized import Quantized, check_codes
from worldloom.tokenizers.quantizers.ranks import rank


class GumbelQuantizer(Float32State):
    """Training draws soft codes, forward and backward; tokens are the argmax of the logits. All in float32.

    loss = kl_weight * KL(q || uniform), nats per code, averaged over batch and grid. Whoever trains sets `temperature` and `kl_weight`
    for the step; both are functions of the step, so no state.
    """

    def __init__(self, size: int, width: int, upkeep: Upkeep, generator: torch.Generator) -> None:
        super().__init__()
        self.codebook_size = self.in_width = size
        self.levels = 1
        self.out_width = width
        self.temperature = 1.0
        self.kl_weight = 0.0
        self.statistics = CodeStatistics(size, upkeep)
        self.embedding = nn.Parameter(torch.randn((size, width), generator=generator) / math.sqrt(width))

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            last = z.float().movedim(1, -1)
            logits_NK = last.reshape(-1, last.shape[-1])
            codes_N = logits_NK.argmax(-1)
            loss = self.kl_weight * kl_from_uniform(logits_NK).mean()
            if self.training:
                out_ND = self._soft(logits_NK) @ self.embedding.float()
                self.statistics.tally(codes_N)
            else:
                out_ND = self.embedding.float()[codes_N]
        grid = last.shape[:-1]
        return Quantized(z=out_ND.view(*grid, -1).movedim(-1, 1), codes=codes_N.view(grid), loss=loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Logits [B, K, *grid] -> int64 codes [B, *grid]."""
        return z.float().argmax(1)

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes [B, *grid] -> [B, D, *grid]."""
        check_codes(codes, self.codebook_size)
        return self.embedding.float()[codes].movedim(-1, 1)

    def _soft(self, logits_NK: Tensor) -> Tensor:
        # Every rank draws its own noise, anew for each update: a function of numbers that are in every checkpoint.
        generator = torch.Generator(logits_NK.device)
        generator.manual_seed((self.statistics.upkeep.seed * 1_000_003 + int(self.statistics.updates)) * 4093 + rank())
        return gumbel_softmax(logits_NK, self.temperature, generator)


def gumbel_softmax(logits_NK: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """A relaxed draw from softmax(logits): softmax((logits + Gumbel noise) / temperature). `generator` lives on the logits' device."""
    uniform_NK = torch.rand(logits_NK.shape, generator=generator, device=logits_NK.device, dtype=torch.float32)
    noise_NK = -torch.log(-torch.log(uniform_NK.clamp(1e-20, 1 - 1e-7)))
    return ((logits_NK + noise_NK) / temperature).softmax(-1)


def kl_from_uniform(logits_NK: Tensor) -> Tensor:
    """KL(softmax(logits) || uniform) = log K - H, in nats, for each row [N]."""
    log_q_NK = logits_NK.log_softmax(-1)
    return math.log(logits_NK.shape[-1]) + (log_q_NK.exp() * log_q_NK).sum(-1)
