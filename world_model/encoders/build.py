"""Encoders from their settings."""

from collections.abc import Callable
from typing import overload

import torch

from worldloom.world_model.encoders.coca import CoCa
from worldloom.world_model.encoders.convnet import ConvNet
from worldloom.world_model.encoders.patches import ConvPatches, HybridPatches
from worldloom.world_model.encoders.positions import LearnedPositions, SinePositions
from worldloom.world_model.encoders.relative_bias import BucketBias, GridBias
from worldloom.world_model.encoders.relative_keys import RelativeKeys, TwoPhase
from worldloom.world_model.encoders.rotary import Rotary
from worldloom.world_model.encoders.settings import ConvSettings, SwinSettings, TextSideSettings, VitSettings
from worldloom.world_model.encoders.swin import Swin
from worldloom.world_model.encoders.text_decoder import TextDecoder
from worldloom.world_model.encoders.vit import Relation, Style, ViT

Network = ViT | Swin | ConvNet
NetworkSettings = VitSettings | SwinSettings | ConvSettings


@overload
def build_encoder(about: VitSettings, generator: torch.Generator) -> ViT: ...
@overload
def build_encoder(about: SwinSettings, generator: torch.Generator) -> Swin: ...
@overload
def build_encoder(about: ConvSettings, generator: torch.Generator) -> ConvNet: ...
def build_encoder(about: NetworkSettings, generator: torch.Generator) -> Network:
    """Untrained, in fp32 on the CPU; first weights are drawn from `generator`."""
    if isinstance(about, VitSettings):
        return _vit(about, generator)
    if isinstance(about, SwinSettings):
        return _swin(about, generator)
    return ConvNet(about.channels, about.patch, about.width, about.depths, about.epsilon, generator)


def build_coca(encoder: Network, about: TextSideSettings, vocabulary: int, generator: torch.Generator) -> CoCa:
    """CoCa around `encoder`, for captions of `vocabulary` ids; poolers and text decoder untrained, drawn from `generator`."""
    text = TextDecoder(vocabulary, about.length, about.width, about.depth, about.heads, about.width, generator)
    return CoCa(encoder, text, about.width, about.heads, about.queries, about.cascade, generator)


def _vit(about: VitSettings, generator: torch.Generator) -> ViT:
    style = Style(
        about.heads,
        about.mlp_width,
        about.dropout,
        about.epsilon,
        about.gelu,
        about.swiglu,
        about.layer_scale,
        about.drop_path,
        about.subset,
        _relations(about, generator)[about.relation],
    )
    return ViT(
        _patches(about, generator),
        _positions(about, generator),
        about.depth,
        style,
        about.class_token,
        about.distillation_token,
        about.registers,
        about.mask_token,
        about.pooling,
        generator,
    )


def _patches(about: VitSettings, generator: torch.Generator) -> ConvPatches | HybridPatches:
    stem = about.stem
    if stem is None:
        return ConvPatches(about.channels, about.width, about.patch, about.fitting, generator)
    convolutions = ConvNet(about.channels, stem.patch, stem.width, stem.depths, stem.epsilon, generator)
    return HybridPatches(convolutions, about.width, about.fitting, stem.frozen, generator)


def _positions(about: VitSettings, generator: torch.Generator) -> LearnedPositions | SinePositions | None:
    placed = int(about.class_token) + int(about.distillation_token)
    if about.positions == "learned":
        return LearnedPositions(about.grid, about.width, placed, generator, about.antialias, about.interpolation)
    return SinePositions(about.width, placed) if about.positions == "sine" else None


def _relations(about: VitSettings, generator: torch.Generator) -> dict[str, Callable[[], Relation] | None]:
    head = about.width // about.heads
    furthest = {} if about.furthest is None else {"furthest": about.furthest}
    return {
        "none": None,
        "rotary": lambda: Rotary(head, about.theta, about.native),
        "relative_bias": lambda: GridBias(about.heads, about.grid, generator),
        "buckets": lambda: BucketBias(about.heads, **furthest, generator=generator),
        "relative_keys": lambda: RelativeKeys(head, **furthest, generator=generator),
        "two_phase": lambda: TwoPhase(head, about.grid[0] * about.grid[1], generator),
    }


def _swin(about: SwinSettings, generator: torch.Generator) -> Swin:
    return Swin(
        about.channels,
        about.patch,
        about.width,
        about.depths,
        about.heads,
        about.window,
        about.mlp_ratio,
        about.drop_path,
        about.mask_token,
        about.mask_padding,
        about.epsilon,
        generator,
    )
