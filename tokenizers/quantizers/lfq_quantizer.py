"""Lookup-free quantization (MAGVIT-v2, arXiv:2310.05737): a code is the signs of its channels, there is no codebook to learn.

B batch, D channels, N = B x grid vectors of this rank, K = 2^D codes. Bit c of a code is 1 where channel c is above zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from worldloom.tokenizers.quantizers.code_entropy import entropy
from worldloom.tokenizers.quantizers.codebooks import CodeStatistics, Float32State, Upkeep
from worldloom.tokenizers.quantizers.quantized import Quantized, check_codes
from worldloom.tokenizers.quantizers.ranks import ranks, sum_with_gradient

MOST_BITS = 20  # the mean probability of every code is held: 4 MiB


class LfqQuantizer(Float32State):
    """loss = commitment |z - sg(q)|^2 + entropy_weight * (E[H(p)] - diversity * H(E[p])), q = sign(z) with sign(0) = -1.

    p is softmax over codes of -|z - code|^2 / temperature. It factorises: each bit is 1 with chance sigmoid(4 z / temperature), so the
    entropy of a vector's p is a sum over bits, exactly. That of the mean over the global batch, E[p], does not factorise; it is exact, too,
    see `mean_probability`. Entropies are in nats; all of it is float32.
    """

    bit_D: Tensor

    def __init__(
        self,
        bits: int,
        upkeep: Upkeep,
        commitment: float = 0.25,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if not 1 <= bits <= MOST_BITS:
            raise ValueError(f"lookup-free codes have 1 to {MOST_BITS} bits, got {bits}")
        self.commitment = commitment
        self.entropy_weight = entropy_weight
        self.diversity = diversity
        self.temperature = temperature
        self.codebook_size = 1 << bits
        self.levels = 1
        self.in_width = self.out_width = bits
        self.statistics = CodeStatistics(self.codebook_size, upkeep)
        self.register_buffer("bit_D", torch.arange(bits), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """[B, D, *grid] -> Quantized."""
        with torch.autocast(z.device.type, enabled=False):
            last = z.float().movedim(1, -1)
            z_ND = last.reshape(-1, last.shape[-1])
            codes_N = self._codes(z_ND.detach())
            signs_ND = self._signs(codes_N)
            logit_ND = 4 * z_ND / self.temperature
            commitment = (z_ND - signs_ND).square().mean()
            spread = bit_entropy(logit_ND).sum(-1).mean() - self.diversity * entropy(mean_probability(logit_ND))
            loss = self.commitment * commitment + self.entropy_weight * spread
            if self.training:
                self.statistics.tally(codes_N)
            out_ND = z_ND + (signs_ND - z_ND).detach()
        return Quantized(z=out_ND.view(last.shape).movedim(-1, 1), codes=codes_N.view(last.shape[:-1]), loss=loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """[B, D, *grid] -> int64 codes [B, *grid]."""
        return self._codes(z.float().movedim(1, -1))

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes [B, *grid] -> [B, D, *grid], each -1 or 1."""
        check_codes(codes, self.codebook_size)
        return self._signs(codes).movedim(-1, 1)

    def _codes(self, z: Tensor) -> Tensor:
        return ((z > 0).long() << self.bit_D).sum(-1)

    def _signs(self, codes: Tensor) -> Tensor:
        return (2 * ((codes[..., None] >> self.bit_D) & 1) - 1).float()


def bit_entropy(logit: Tensor) -> Tensor:
    """Entropy, nats, of a bit that is 1 with chance sigmoid(logit), elementwise; finite for any logit."""
    size = logit.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def mean_probability(logit_ND: Tensor) -> Tensor:
    """E[p] over the vectors of all ranks as [K]; carries the gradient to each rank's vectors.

    The chances of all values of the low half of the bits, [N, 2^(D/2)], and of the high half make those of whole codes, averaged over
    N, by one matrix product: exact, with memory for N sqrt(K) + K numbers in place of N K.
    """
    half = (logit_ND.shape[1] + 1) // 2
    low_NI, high_NJ = _chances(logit_ND[:, :half]), _chances(logit_ND[:, half:])
    return sum_with_gradient(high_NJ.T @ low_NI).flatten() / (len(logit_ND) * ranks())


def _chances(logit_Nd: Tensor) -> Tensor:
    """The probability of each of the 2^d values of independent bits, bit 0 the lowest: [N, 2^d]."""
    chances = logit_Nd.new_ones((len(logit_Nd), 1))
    for bit in range(logit_Nd.shape[1]):
        one = logit_Nd[:, bit : bit + 1].sigmoid()
        zero = (-logit_Nd[:, bit : bit + 1]).sigmoid()
        chances = torch.cat([chances * zero, chances * one], dim=1)
    return chances
