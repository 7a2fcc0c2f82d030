"""Vision transformers as the networks of an image tokenizer (ViT-VQGAN, arXiv:2110.04627, section 3.1).

The encoder's patches are the cells of the codes: one token, one code. The decoder is its mirror, as in the paper: codes to tokens, blocks,
then one linear map from every token to the pixels of its cell. B batch, C channels, h x w grid, p pixels of a cell, D width.
"""

import torch
from torch import Tensor, nn

from worldloom.stages.artifact import Artifact
from worldloom.tokenizers.backbone_settings import VitBackbone
from worldloom.tokenizers.learned import LearnedTokenizer
from worldloom.tokenizers.networks.elsewhere import EncoderDecoder, Sides
from worldloom.world_model.encoders.load import from_pretrained
from worldloom.world_model.encoders.patches import LinearPatches, fold
from worldloom.world_model.encoders.positions import LearnedPositions, SinePositions
from worldloom.world_model.encoders.settings import VitSettings
from worldloom.world_model.encoders.vit import Style, Trunk, ViT


def vit_networks(backbone: VitBackbone, sides: Sides, generator: torch.Generator) -> EncoderDecoder:
    """Both networks, first weights drawn from `generator`."""
    style = Style(backbone.heads, round(backbone.mlp_ratio * backbone.width))

    def positions(prefix: int) -> LearnedPositions | SinePositions:
        if backbone.positions == "sine":
            return SinePositions(backbone.width, prefix)
        return LearnedPositions(sides.grid, backbone.width, prefix, generator=generator)

    patches = LinearPatches(sides.channels_in, backbone.width, sides.downsample, generator=generator)
    seen = positions(int(backbone.class_token))
    vit = ViT(patches, seen, backbone.depth, style, class_token=backbone.class_token, pooling="mean", generator=generator)
    trunk = Trunk(backbone.width, backbone.decoder_depth or backbone.depth, style, generator)
    return EncoderDecoder(VitEncoder(vit, sides, generator), VitDecoder(positions(0), trunk, backbone.width, sides, generator))


def begin_with(tokenizer: LearnedTokenizer, artifact: Artifact) -> None:
    """Gives the tokenizer's encoder, in place, the weights of a trained one, whose tokens are then what the codes are made of; positions
    are brought to the tokenizer's grid. ValueError that says what does not fit."""
    found, about = from_pretrained(artifact.folder / "encoder")
    encoder, backbone = tokenizer.autoencoder.encoder, getattr(tokenizer.settings, "backbone", None)
    assert isinstance(encoder, VitEncoder) and isinstance(backbone, VitBackbone), "settings see to it"
    if not isinstance(found, ViT) or not isinstance(about, VitSettings):
        raise ValueError(f"encoder: {artifact.name} is a {about.type}, and the backbone a vit; name a stage that trains a vit")
    pairs = {
        "downsample (its patch)": (about.patch, encoder.vit.patches.patch),
        "width": (about.width, backbone.width),
        "depth": (about.depth, backbone.depth),
        "heads": (about.heads, backbone.heads),
        "mlp_ratio": ((about.mlp_width or 4 * about.width) / about.width, backbone.mlp_ratio),
        "class_token": (about.class_token, backbone.class_token),
        "positions": (about.positions, backbone.positions),
    }
    unlike = [f"{name} {theirs} against {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]
    plain = VitSettings(patch=about.patch, width=about.width, heads=about.heads)
    special = ("stem", "distillation_token", "registers", "swiglu", "gelu", "relation", "layer_scale", "epsilon")
    unlike += [
        f"{name} {getattr(about, name)}, which a tokenizer has not" for name in special if getattr(about, name) != getattr(plain, name)
    ]
    if unlike:
        raise ValueError(f"encoder: {artifact.name} does not fit tokenizer.backbone: {'; '.join(unlike)}; make them equal")
    weights = {name: value for name, value in found.state_dict().items() if name in encoder.vit.state_dict()}
    if isinstance(found.positions, LearnedPositions) and isinstance(encoder.vit.positions, LearnedPositions):
        weights["positions.table"] = found.positions(encoder.vit.positions.grid)
    encoder.vit.load_state_dict(weights)


class VitEncoder(nn.Module):
    """Pictures [B, C, h p, w p] -> [B, code width, h, w]; other sizes get the positions interpolated."""

    def __init__(self, vit: ViT, sides: Sides, generator: torch.Generator) -> None:
        super().__init__()
        self.vit = vit
        self.head = _linear(vit.width, sides.width_in, generator)

    def forward(self, pictures: Tensor) -> Tensor:
        tokens = self.vit(pictures).tokens
        with torch.autocast(tokens.device.type, enabled=False):  # codes are chosen by small differences: the last product is float32
            features: Tensor = self.head(tokens.to(self.head.weight.dtype))
        h, w = self.vit.patches.grid(*pictures.shape[-2:])
        return features.transpose(1, 2).reshape(len(features), -1, h, w)


class VitDecoder(nn.Module):
    """[B, code width, h, w] -> [B, C, h p, w p], unbounded."""

    def __init__(
        self, positions: LearnedPositions | SinePositions, trunk: Trunk, width: int, sides: Sides, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.patch = sides.downsample
        self.stem = _linear(sides.width_out, width, generator)
        self.positions, self.trunk = positions, trunk
        self.head = _linear(width, sides.channels_out * sides.downsample**2, generator)

    def forward(self, z: Tensor) -> Tensor:
        h, w = z.shape[-2:]
        tokens = self.stem(z.flatten(2).transpose(1, 2))
        tokens = tokens + self.positions((h, w)).to(tokens.device, tokens.dtype)
        return fold(self.head(self.trunk(tokens)), (h, w), self.patch, "channel_first")

    @property
    def last_weight(self) -> nn.Parameter:
        """The weight of the map to pixels, against which a VQ-GAN balances its losses."""
        weight = self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight


def _linear(before: int, after: int, generator: torch.Generator) -> nn.Linear:
    made = nn.Linear(before, after)
    with torch.no_grad():
        nn.init.xavier_uniform_(made.weight, generator=generator)
        made.bias.zero_()
    return made
