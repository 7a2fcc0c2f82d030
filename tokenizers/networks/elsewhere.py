"""Networks that other rooms build: whoever opens a tokenizer passes them in, because tokenizers imports nothing of theirs."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn


class Sides(NamedTuple):
    """What a tokenizer needs of its two networks, whatever they are made of."""

    grid: tuple[int, int]  # codes down and across
    downsample: int  # pixels along a code's cell
    channels_in: int  # of the pictures
    channels_out: int  # of what the decoder writes
    width_in: int  # numbers that the encoder gives the quantizer at each place
    width_out: int  # numbers that the decoder gets from it


class EncoderDecoder(NamedTuple):
    """Two modules; the decoder has `last_weight`, against which a VQ-GAN balances its losses."""

    encoder: nn.Module  # [B, channels_in, H, W] -> [B, width_in, *grid], float32 also under autocast
    decoder: nn.Module  # [B, width_out, *grid] -> [B, channels_out, H, W], unbounded


class BuildNetworks(Protocol):
    def __call__(self, backbone: Any, sides: Sides, generator: torch.Generator) -> EncoderDecoder:
        """From a backbone's settings; first weights are drawn from `generator`."""
        ...


Networks = Mapping[str, BuildNetworks]  # by the backbone's type
NONE: Networks = {}


class NetworksMissing(ValueError):
    """A backbone of another room, and nobody passed in who builds it."""


def build_networks(networks: Networks, backbone: Any, sides: Sides, generator: torch.Generator) -> EncoderDecoder:
    """The networks of a backbone that is not of this room; NetworksMissing where nobody passed them in."""
    if backbone.type not in networks:
        raise NetworksMissing(
            f"the backbone {backbone.type!r} is built outside of tokenizers, and was not passed in; "
            f"open the tokenizer with worldloom.stages.open_tokenizer, or pass networks={{{backbone.type!r}: ...}}"
        )
    return networks[backbone.type](backbone, sides, generator)
