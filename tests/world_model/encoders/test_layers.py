"""Layers and learning rates name by name, against tables."""

import pytest
import torch

from worldloom.world_model.encoders.build import build_coca, build_encoder
from worldloom.world_model.encoders.layers import layers_of, rate_shares, undecayed
from worldloom.world_model.encoders.settings import ConvSettings, EncoderSettings, StemSettings, SwinSettings, TextSideSettings, VitSettings

GENERATOR = torch.Generator().manual_seed(0)
VIT = VitSettings(
    patch=4,
    width=8,
    depth=3,
    heads=2,
    grid=(2, 2),
    registers=1,
    mask_token=True,
    distillation_token=True,
    layer_scale=0.1,
    pooling="attention",
)
SMALL = {"patch": 4, "width": 8, "depth": 1, "heads": 1, "grid": (2, 2), "positions": "none"}
STEMMED = VitSettings(patch=4, width=8, depth=1, heads=1, grid=(2, 2), stem=StemSettings(patch=2, width=8, depths=(1, 1)))


def test_layers_of_a_vit_are_its_blocks_between_the_embedding_and_the_norm() -> None:
    found = layers_of(build_encoder(VIT, GENERATOR))
    outside = {name: layer for name, layer in found.items() if ".blocks." not in name and not name.startswith("pool.")}
    assert outside == {
        "class_token": 0,
        "distillation_token": 0,
        "registers": 0,
        "mask_token": 0,
        "patches.weight": 0,
        "patches.bias": 0,
        "positions.table": 0,
        "trunk.norm.weight": 4,
        "trunk.norm.bias": 4,
    }
    assert {layer for name, layer in found.items() if name.startswith("pool.")} == {4}
    for block in range(3):
        inside = {name.removeprefix(f"trunk.blocks.{block}."): layer for name, layer in found.items() if f"blocks.{block}." in name}
        assert set(inside.values()) == {block + 1} and {"qkv.weight", "attention_scale", "down.bias"} <= inside.keys()


def test_layers_of_a_swin_go_on_over_its_stages_and_merging_belongs_to_the_block_before() -> None:
    found = layers_of(build_encoder(SwinSettings(patch=2, width=8, depths=(2, 1, 3), heads=(2, 2, 2), window=3), GENERATOR))
    starts = {name.rpartition(".")[0] if "blocks" not in name else ".".join(name.split(".")[:4]): layer for name, layer in found.items()}
    assert starts == {
        "patches": 0,
        "patch_norm": 0,
        "stages.0.blocks.0": 1,
        "stages.0.blocks.1": 2,
        "stages.0.merging.norm": 2,
        "stages.0.merging.reduction": 2,
        "stages.1.blocks.0": 3,
        "stages.1.merging.norm": 3,
        "stages.1.merging.reduction": 3,
        "stages.2.blocks.0": 4,
        "stages.2.blocks.1": 5,
        "stages.2.blocks.2": 6,
        "norm": 7,
    }


def test_a_network_of_convolutions_has_layers_too() -> None:
    found = layers_of(build_encoder(ConvSettings(width=8, depths=(1, 2)), GENERATOR))
    assert {name: layer for name, layer in found.items() if not name.startswith("blocks.")} == {
        "stem.weight": 0,
        "stem.bias": 0,
        "norm.weight": 4,
        "norm.bias": 4,
    }
    assert {name.split(".")[1]: layer for name, layer in found.items() if name.startswith("blocks.")} == {"0": 1, "1": 2, "2": 3}


def test_rates_fall_towards_the_patches_which_learn_more_slowly_still() -> None:
    shares = rate_shares(build_encoder(VIT, GENERATOR), 0.9, 0.2)
    table = {"trunk.norm.bias": 1, "trunk.blocks.2.up.weight": 0.9, "trunk.blocks.1.up.weight": 0.81, "trunk.blocks.0.up.weight": 0.729}
    table |= {"class_token": 0.6561, "positions.table": 0.6561, "patches.weight": 0.13122, "patches.bias": 0.13122}
    assert {name: shares[name] for name in table} == pytest.approx(table)
    assert set(rate_shares(build_encoder(VIT, GENERATOR), 1.0, 1.0).values()) == {1}


def test_a_stem_is_part_of_the_patch_embedding() -> None:
    shares = rate_shares(build_encoder(STEMMED, GENERATOR), 0.9, 0.2)
    embedding = {name: share for name, share in shares.items() if name.startswith("patches.")}
    assert {"patches.weight", "patches.convolutions.stem.weight", "patches.convolutions.blocks.1.first.weight"} < set(embedding)
    assert list(embedding.values()) == pytest.approx([0.2 * 0.9**2] * len(embedding))
    assert shares["trunk.blocks.0.up.weight"] == pytest.approx(0.9) and shares["class_token"] == pytest.approx(0.9**2)


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (VIT, {"class_token", "distillation_token", "registers", "mask_token", "positions.table", "pool.queries"}),
        *(
            (VitSettings.model_validate({**SMALL, "relation": relation}), {"class_token", *tables})
            for relation, tables in {
                "relative_bias": ("trunk.blocks.0.relation.table", "trunk.blocks.0.relation.prefix"),
                "buckets": ("trunk.blocks.0.relation.table",),
                "relative_keys": ("trunk.blocks.0.relation.rows", "trunk.blocks.0.relation.columns"),
                "two_phase": ("trunk.blocks.0.relation.table",),
                "rotary": (),
            }.items()
        ),
        (
            SwinSettings(patch=2, width=8, depths=(1, 1), heads=(2, 2), window=3, mask_token=True),
            {"mask_token", "stages.0.blocks.0.offsets", "stages.1.blocks.0.offsets"},
        ),
        (ConvSettings(width=8, depths=(1, 2)), set()),
        (STEMMED, {"class_token", "positions.table"}),
    ],
)
def test_what_decays_in_an_encoder_multiplies(about: EncoderSettings, expected: set[str]) -> None:
    encoder = build_encoder(about, GENERATOR)
    assert undecayed(encoder) == expected
    matrices = {name for name, parameter in encoder.named_parameters() if parameter.dim() > 1}
    assert expected <= matrices and all(name.endswith(".weight") for name in matrices - expected)


def test_a_text_sides_positions_and_queries_do_not_decay_either() -> None:
    coca = build_coca(build_encoder(VIT, GENERATOR), TextSideSettings(width=12, depth=2, heads=3, length=5, queries=3), 7, GENERATOR)
    own = {name for name in undecayed(coca) if not name.startswith("encoder.")}
    assert own == {"text.positions", "text.class_token", "caption_pool.queries", "contrastive_pool.queries"}
    matrices = {name for name, parameter in coca.named_parameters() if parameter.dim() > 1} - undecayed(coca)
    assert {name for name in matrices if not name.endswith(".weight")} == {"text.embedding"}
