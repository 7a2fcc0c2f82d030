"""An autoencoder with a discrete middle: encoder, quantizer, decoder. VQ-VAE, VQ-GAN and dVAE differ in parts and losses, not in this."""

from typing import NamedTuple

from torch import Tensor, nn

from worldloom.tokenizers.networks.convnet import ConvDecoder, ConvEncoder
from worldloom.tokenizers.quantizers.quantized import Quantized, Quantizer


class Reconstruction(NamedTuple):
    """B batch, C channels the decoder writes, H x W pixels."""

    pictures: Tensor  # [B, C, H, W]: the decoder's output; its meaning is the loss's
    quantized: Quantized


class DiscreteAutoencoder(nn.Module):
    """Pictures -> codes -> pictures."""

    def __init__(self, encoder: ConvEncoder, quantizer: Quantizer, decoder: ConvDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder

    def forward(self, pictures: Tensor) -> Reconstruction:
        """Pictures [B, 3, H, W] -> Reconstruction."""
        quantized: Quantized = self.quantizer(self.encoder(pictures))
        return Reconstruction(self.decoder(quantized.z), quantized)

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] -> int64 codes [B, h, w]."""
        return self.quantizer.encode(self.encoder(pictures))

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes [B, h, w] -> the decoder's output [B, C, H, W]."""
        out: Tensor = self.decoder(self.quantizer.decode(codes))
        return out
