"""An autoencoder with a discrete middle: encoder, quantizer, decoder. VQ-VAE, VQ-GAN and dVAE differ in parts and losses, not in this."""

from typing import NamedTuple

from torch import Tensor, nn

from worldloom.tokenizers.quantizers.quantized import Quantized, Quantizer


class Reconstruction(NamedTuple):
    """B batch, C channels the decoder writes."""

    output: Tensor  # [B, C, *size]: what the decoder wrote; its meaning is the loss's
    quantized: Quantized


class DiscreteAutoencoder(nn.Module):
    """Values -> codes -> values; pictures [B, C, H, W], clips [B, C, T, H, W] or sounds [B, C, S], as the networks take them."""

    def __init__(self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    def forward(self, values: Tensor) -> Reconstruction:
        """[B, C, *size] -> Reconstruction."""
        quantized: Quantized = self.quantizer(self.encoder(values))
        return Reconstruction(self.decoder(quantized.z), quantized)

    def encode(self, values: Tensor) -> Tensor:
        """[B, C, *size] -> int64 codes [B, *grid], with the levels as a last axis where there are several."""
        return self.quantizer.encode(self.encoder(values))

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes as `encode` gives them -> the decoder's output."""
        out: Tensor = self.decoder(self.quantizer.decode(codes))
        return out

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the decoder's last convolution, against which a VQ-GAN balances its losses."""
        weight = self.decoder.last_weight
        assert isinstance(weight, nn.Parameter)
        return weight
