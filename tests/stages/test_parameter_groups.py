"""Groups of parameters name by name, against tables, and what an optimizer makes of them."""

from typing import Any

import pytest
import torch
from torch import nn

from worldloom.stages.deepspeed_engine import parameter_groups, set_rates
from worldloom.stages.dinov2_learner import Dinov2Learner
from worldloom.stages.encoder_learner import Recipe
from worldloom.stages.encoder_settings import Dinov2
from worldloom.stages.learner import Player
from worldloom.stages.pretrain_encoder import PretrainEncoder, recipe_of
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.settings import VitSettings


def by_name(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Share of the learning rate, and weight decay."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(parameter)]: (group["share"], group["weight_decay"]) for group in groups for parameter in group["params"]}


def test_dinov2s_rates_are_those_of_the_paper() -> None:
    about = VitSettings(patch=4, width=16, depth=2, heads=2, grid=(4, 4), mask_token=True, layer_scale=1e-5)
    recipe = Recipe(10, 3, 1e-3, (0.9, 0.95), 0.04, "fp32", layer_decay=0.9, patch_rate=0.2)
    small: dict[str, Any] = {"prototypes": 11, "hidden": 12, "bottleneck": 6, "local_views": 1}
    encoder: Any = build_encoder(about, torch.Generator().manual_seed(0))
    learner = Dinov2Learner(encoder, Dinov2(**small), 16, 4, recipe)
    (player,) = learner.players
    found = by_name(learner.module, parameter_groups(player))
    table = {
        "encoder.patches.weight": (0.2 * 0.729, 0.04),
        "encoder.patches.bias": (0.2 * 0.729, 0),
        "encoder.class_token": (0.729, 0),
        "encoder.mask_token": (0.729, 0),
        "encoder.positions.table": (0.729, 0),
        "encoder.trunk.norm.weight": (1, 0),
        "encoder.trunk.norm.bias": (1, 0),
    }
    for block, share in enumerate((0.81, 0.9)):
        for layer in ("qkv", "out", "up", "down"):
            table |= {
                f"encoder.trunk.blocks.{block}.{layer}.weight": (share, 0.04),
                f"encoder.trunk.blocks.{block}.{layer}.bias": (share, 0),
            }
        for vector in ("attention_norm.weight", "attention_norm.bias", "mlp_norm.weight", "mlp_norm.bias", "attention_scale", "mlp_scale"):
            table[f"encoder.trunk.blocks.{block}.{vector}"] = (share, 0)
    heads = {name: (1.0, 0.04 if value.dim() > 1 else 0) for name, value in learner.module.named_parameters() if name.startswith("head.")}
    assert len(heads) > 3 and found.keys() == {*table, *heads}  # and nothing of the teacher
    for name, (share, decay) in {**table, **heads}.items():
        assert found[name] == pytest.approx((share, decay)), name


def test_without_shares_groups_are_matrices_then_vectors_and_without_decay_there_is_one() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    module[2].bias.requires_grad_(False)
    decayed, still = parameter_groups(Player("module", module, 1.0, weight_decay=0.1))
    assert [id(p) for p in decayed["params"]] == [id(p) for p in (module[0].weight, module[2].weight)]
    assert [id(p) for p in still["params"]] == [id(p) for p in (module[0].bias, module[1].weight, module[1].bias)]
    assert (decayed["weight_decay"], still["weight_decay"]) == (0.1, 0.0)
    named, *_ = parameter_groups(Player("module", module, 1.0, weight_decay=0.1, undecayed=frozenset({"2.weight"})))
    assert [id(p) for p in named["params"]] == [id(module[0].weight)]
    (all_of_them,) = parameter_groups(Player("module", module, 1.0))
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert [id(p) for p in all_of_them["params"]] == [id(p) for p in trained] and all_of_them["share"] == 1


def test_a_share_is_a_learning_rate_of_its_own() -> None:
    def trained(groups: Any, module: nn.Linear) -> list[torch.Tensor]:
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        for step in range(3):
            set_rates(optimizer.param_groups, 1e-2 * (step + 1) / 3, 0.3)
            optimizer.zero_grad()
            module(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        return [parameter.detach() for parameter in module.parameters()]

    def linear() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    found = trained(parameter_groups(Player("line", module := linear(), 1e-2, weight_decay=0.3, shares={"weight": 0.25})), module)
    module = linear()
    optimizers = [torch.optim.AdamW([module.weight], weight_decay=0.3), torch.optim.AdamW([module.bias], weight_decay=0.0)]
    for step in range(3):
        module.zero_grad()
        module(torch.ones(2, 3)).square().sum().backward()
        for optimizer, share in zip(optimizers, (0.25, 1.0), strict=True):
            optimizer.param_groups[0]["lr"] = share * 1e-2 * (step + 1) / 3
            optimizer.step()
    for ours, parameter in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.detach(), rtol=1e-6, atol=1e-7)


def test_the_stages_settings_reach_the_optimizer() -> None:
    base = {"run": "pretrain_encoder", "data": "data", "stream": "view", "labels": "words", "objective": {"type": "supervised"}}
    settings = PretrainEncoder.model_validate(
        {**base, "layer_decay": 0.65, "patch_rate": 0.5, "ema": 0.99, "weight_decay": 0.2, "last_weight_decay": 0.7}
    )
    module = nn.Module()
    module.encoder = build_encoder(VitSettings(patch=4, width=16, depth=1, heads=2, grid=(4, 4)), torch.Generator().manual_seed(0))
    player = recipe_of(settings, "fp32").player(module)
    assert (
        player.average == 0.99
        and (player.weight_decay, player.last_weight_decay) == (0.2, 0.7)
        and "encoder.class_token" in player.undecayed
    )
    assert player.shares["encoder.patches.bias"] == pytest.approx(0.5 * 0.65**2) and "encoder.trunk.norm.bias" not in player.shares
    plain = recipe_of(PretrainEncoder.model_validate(base), "fp32").player(module)
    assert plain.shares == {} and plain.average is None and plain.last_weight_decay is None
