"""The Vision Transformer against transformers' own, and the laws that it obeys."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worldloom.world_model.encoders.patches import ConvPatches, LinearPatches, fold, unfold
from worldloom.world_model.encoders.positions import LearnedPositions, SinePositions
from worldloom.world_model.encoders.vit import Style, ViT

PATCH, WIDTH, DEPTH, HEADS = 4, 32, 2, 2
# ours -> theirs; several of theirs stand one above the other
OUTSIDE = {
    "class_token": ("embeddings.cls_token",),
    "positions.table": ("embeddings.position_embeddings",),
    "patches.weight": ("embeddings.patch_embeddings.projection.weight",),
    "patches.bias": ("embeddings.patch_embeddings.projection.bias",),
    "trunk.norm.weight": ("layernorm.weight",),
    "trunk.norm.bias": ("layernorm.bias",),
}
LAYER = {
    "attention_norm": ("layernorm_before",),
    "qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "out": ("attention.o_proj",),
    "mlp_norm": ("layernorm_after",),
    "up": ("mlp.fc1",),
    "down": ("mlp.fc2",),
}


def names(depth: int) -> dict[str, tuple[str, ...]]:
    inside = {
        f"trunk.blocks.{layer}.{ours}.{part}": tuple(f"layers.{layer}.{each}.{part}" for each in theirs)
        for layer in range(depth)
        for ours, theirs in LAYER.items()
        for part in ("weight", "bias")
    }
    return OUTSIDE | inside


def randomised(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def vit(linear: bool = False, positions: bool = True, **changes: Any) -> ViT:
    generator = torch.Generator().manual_seed(0)
    form = LinearPatches if linear else ConvPatches
    table = LearnedPositions((3, 3), WIDTH, generator=generator) if positions else None
    made = ViT(form(3, WIDTH, PATCH, generator=generator), table, DEPTH, Style(HEADS, 48), generator=generator, **changes)
    return randomised(made, 1)  # type: ignore[return-value]


def copied(theirs: Mapping[str, Tensor], ours: nn.Module) -> None:
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    ours.load_state_dict({name: torch.cat([theirs[each] for each in parts]).view(shapes[name]) for name, parts in names(DEPTH).items()})


@pytest.mark.parametrize("linear", [False, True], ids=["convolution", "unfolded"])
@pytest.mark.parametrize("size", [12, 20], ids=["its own grid", "a larger grid"])
def test_transformers_gives_the_same_hidden_states_and_gradients(linear: bool, size: int) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=48,
        image_size=12,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )
    theirs = randomised(ViTModel(config, add_pooling_layer=False), 7)
    ours = vit(linear)
    copied(theirs.state_dict(), ours)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = list(ours.hidden_states(one))
    out = theirs(other, output_hidden_states=True, interpolate_pos_encoding=size != 12)
    expected = [*out.hidden_states[: DEPTH + 1], out.last_hidden_state]
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-5)
    features = ours(one)
    torch.testing.assert_close(features.pooled, out.last_hidden_state[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.tokens, out.last_hidden_state[:, 1:], rtol=0, atol=1e-5)
    weight = torch.randn(found[-1].shape, generator=torch.Generator().manual_seed(5))
    (found[-1] * weight).sum().backward()
    (out.last_hidden_state * weight).sum().backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_the_names_are_a_bijection() -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=48, image_size=12, patch_size=4
    )
    theirs = [each for parts in names(DEPTH).values() for each in parts]
    assert set(names(DEPTH)) == set(vit().state_dict())
    assert sorted(theirs) == sorted(ViTModel(config, add_pooling_layer=False).state_dict())


def test_b_16_with_a_thousand_classes_has_the_known_number_of_parameters() -> None:
    from worldloom.world_model.encoders.classifier import Classifier

    with torch.device("meta"):
        encoder = ViT(ConvPatches(3, 768, 16), LearnedPositions((14, 14), 768), 12, Style(12))
        assert sum(each.numel() for each in Classifier(encoder, 1000).parameters()) == 86_567_656


def test_a_fresh_classifier_says_nothing_and_its_hidden_layer_is_a_tanh() -> None:
    from worldloom.world_model.encoders.classifier import Classifier

    x = torch.randn(2, 3, 12, 12)
    assert not Classifier(vit(), 7)(x).any()
    hidden = randomised(Classifier(vit(), 7, hidden=5), 2)
    assert isinstance(hidden, Classifier) and hidden.pre_logits is not None
    expected = hidden.head(torch.tanh(hidden.pre_logits(hidden.encoder(x).pooled)))
    torch.testing.assert_close(hidden(x), expected)


def test_without_positions_patches_may_change_places() -> None:
    blind = vit(positions=False)
    x, order = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3)), [8, 1, 5, 0, 7, 2, 6, 4, 3]
    shuffled = fold(unfold(x, PATCH, "channel_first")[:, order], (3, 3), PATCH, "channel_first")
    before, after = blind(x), blind(shuffled)
    torch.testing.assert_close(after.tokens, before.tokens[:, order], rtol=0, atol=1e-5)
    torch.testing.assert_close(after.pooled, before.pooled, rtol=0, atol=1e-5)
    seeing = vit()
    assert not torch.allclose(seeing(shuffled).pooled, seeing(x).pooled, atol=1e-3)


def test_the_mean_is_pooled_where_it_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = LinearPatches(3, WIDTH, PATCH, generator=generator)
    made = ViT(patches, SinePositions(WIDTH, prefix=0), DEPTH, Style(HEADS), class_token=False, pooling="mean", generator=generator).eval()
    features = made(torch.randn(2, 3, 8, 12))
    assert features.tokens.shape == (2, 6, WIDTH) and made.width == WIDTH
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_first_weights_follow_the_generator_and_the_paper() -> None:
    one, same = (ViT(ConvPatches(3, 64, 4), None, 1, Style(2), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    block = one.trunk.blocks[0]
    assert torch.equal(block.qkv.weight, same.trunk.blocks[0].qkv.weight)
    bound = (6 / (64 + 64)) ** 0.5
    assert 0.98 * bound < block.qkv.weight.abs().max() <= bound
    assert not one.class_token.any() and 0 < block.up.bias.abs().max() < 1e-5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_token": False}, "there is no class token; set pooling to 'mean'"),
        ({"class_token": False, "pooling": "mean"}, "positions for 1 class tokens, the encoder has 0"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(**changes)
    with pytest.raises(ValueError, match=r"width \(32\) must be a multiple of heads \(5\)"):
        ViT(ConvPatches(3, 32, 4), None, 1, Style(5))
