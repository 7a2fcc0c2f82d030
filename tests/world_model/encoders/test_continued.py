"""An encoder that goes on from another: its weights, on another grid, with tokens that come and go."""

from typing import Any

import pytest
import torch
from torch import nn

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.continued import begin_stem, continue_from
from worldloom.world_model.encoders.convnet import ConvNet
from worldloom.world_model.encoders.patches import HybridPatches
from worldloom.world_model.encoders.settings import ConvSettings, StemSettings, SwinSettings, VitSettings

ABOUT = VitSettings(width=8, depth=2, heads=2, patch=2, grid=(3, 3), mask_token=True)


def test_the_same_form_gives_the_same_features() -> None:
    before, after = (build_encoder(ABOUT, torch.Generator().manual_seed(seed)) for seed in range(2))
    continue_from(after, before, "here")
    x = torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(3))
    assert torch.equal(before(x).tokens, after(x).tokens)


def test_positions_are_interpolated_to_the_new_grid_and_new_tokens_stay_as_drawn() -> None:
    before = build_encoder(ABOUT, torch.Generator().manual_seed(0))
    wider = ABOUT.model_copy(update={"grid": (4, 5), "distillation_token": True, "mask_token": False, "registers": 2})
    after = build_encoder(wider, torch.Generator().manual_seed(1))
    drawn = {name: value.clone() for name, value in after.state_dict().items()}
    continue_from(after, before, "here")
    assert before.positions is not None and after.positions is not None
    table, found = after.state_dict()["positions.table"], before.positions((4, 5))
    torch.testing.assert_close(table[2:], found[1:])
    assert torch.equal(table[0], found[0]) and torch.equal(table[1], drawn["positions.table"][1])
    for name in ("distillation_token", "registers"):
        assert torch.equal(after.state_dict()[name], drawn[name])
    assert torch.equal(after.state_dict()["trunk.blocks.1.qkv.weight"], before.state_dict()["trunk.blocks.1.qkv.weight"])


@pytest.mark.parametrize("other", [ABOUT.model_copy(update={"width": 12}), SwinSettings(width=8, depths=(1,), heads=(2,), window=3)])
def test_another_form_is_refused(other: VitSettings | SwinSettings) -> None:
    before: nn.Module = build_encoder(ABOUT, torch.Generator())
    with pytest.raises(ValueError, match=r"init: its weights do not fit the encoder at .*; they are of different forms"):
        continue_from(build_encoder(other, torch.Generator()), before, "init")


@pytest.mark.parametrize(
    "changes",
    [
        {"relation": "relative_bias"},
        {"relation": "relative_bias", "positions": "none", "registers": 2},
        {"relation": "rotary", "native": (3, 3)},
        {"relation": "buckets"},
        {"relation": "relative_keys", "furthest": 2},
        {"positions": "sine"},
        {"interpolation": "bilinear"},
        {"stem": StemSettings(patch=1, width=8, depths=(1, 1))},
    ],
)
def test_on_larger_pictures_it_begins_with_what_the_other_says_of_them(changes: dict[str, Any]) -> None:
    about = VitSettings.model_validate({**ABOUT.model_dump(), **changes})
    before = build_encoder(about, torch.Generator().manual_seed(0))
    for parameter in before.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    after = build_encoder(about.model_copy(update={"grid": (4, 5)}), torch.Generator().manual_seed(1))
    x = torch.randn((2, 3, 8, 10), generator=torch.Generator().manual_seed(3))
    assert not torch.allclose(after(x).tokens, before(x).tokens, atol=1e-3)
    continue_from(after, before, "here")
    torch.testing.assert_close(after(x).tokens, before(x).tokens, rtol=0, atol=1e-5)


def test_offsets_of_two_phases_do_not_go_to_another_grid() -> None:
    about = ABOUT.model_copy(update={"relation": "two_phase"})
    before = build_encoder(about, torch.Generator().manual_seed(0))
    continue_from(build_encoder(about, torch.Generator()), before, "init")
    with pytest.raises(ValueError, match=r"init: its two-phase positions are of 9 patches, the pictures have 20, .* with another relation"):
        continue_from(build_encoder(about.model_copy(update={"grid": (4, 5)}), torch.Generator()), before, "init")


def test_a_stem_begins_with_an_encoder_of_convolutions_of_its_form() -> None:
    form, stem = ConvSettings(patch=1, width=8, depths=(1, 1)), StemSettings(patch=1, width=8, depths=(1, 1))
    before: ConvNet = build_encoder(form, torch.Generator().manual_seed(5))
    vit = build_encoder(ABOUT.model_copy(update={"stem": stem}), torch.Generator().manual_seed(0))
    assert isinstance(vit.patches, HybridPatches)
    x = torch.randn((2, 3, 6, 6), generator=torch.Generator().manual_seed(3))
    assert not torch.equal(vit.patches.convolutions(x).tokens, before(x).tokens)
    begin_stem(vit, stem, before, form, "here")
    assert torch.equal(vit.patches.convolutions(x).tokens, before(x).tokens)
    with pytest.raises(ValueError, match=r"its form is not that of encoder\.stem: patch 2 against 1; depths \(1,\) against \(1, 1\); make"):
        begin_stem(vit, stem, before, ConvSettings(patch=2, width=8, depths=(1,)), "here")
    with pytest.raises(ValueError, match="a stem is of convolutions, and this is a vit; name a stage that trains an encoder of type conv"):
        begin_stem(vit, stem, vit, ABOUT, "here")
