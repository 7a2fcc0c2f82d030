"""An encoder that goes on from another: its weights, on another grid, with tokens that come and go."""

import pytest
import torch
from torch import nn

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.continued import continue_from
from worldloom.world_model.encoders.settings import SwinSettings, VitSettings

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
