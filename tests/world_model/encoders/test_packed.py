"""Pictures of several sizes in one pass: the same features as batch by batch, gradients too, and stochastic depth by whole pictures."""

from typing import Any

import pytest
import torch

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.drop_path import DropPath, SubsetPath
from worldloom.world_model.encoders.settings import VitSettings
from worldloom.world_model.encoders.vit import ViT


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vit(**changes: Any) -> ViT:
    about = VitSettings(width=16, depth=2, heads=2, patch=2, grid=(3, 3), mask_token=True, layer_scale=0.5, **changes)
    return build_encoder(about, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes", [{}, {"relation": "rotary", "positions": "none"}, {"relation": "relative_bias"}, {"registers": 2, "pooling": "attention"}]
)
def test_in_one_pass_pictures_of_two_sizes_give_what_they_give_apart(changes: dict[str, Any]) -> None:
    model, large, small = vit(**changes), some(1, 3, 3, 6, 6), some(2, 5, 3, 4, 4)
    hidden = some(3, 3, 9) > 0
    together = model.several([large, small], [hidden, None])
    apart = [model(large, hidden), model(small)]
    gradients = []
    for found in (together, apart):
        model.zero_grad()
        sum(((each.tokens**2).sum() + each.pooled.sin().sum() for each in found), start=torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one.tokens, other.tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.pooled, other.pooled, rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("form", [DropPath, SubsetPath])
def test_packed_pictures_are_dropped_whole_or_kept_with_the_mean_unchanged(form: type[DropPath]) -> None:
    torch.manual_seed(0)
    sizes, entered = [(40, 3), (80, 5)], []

    def branch(x: torch.Tensor, sizes: Any) -> torch.Tensor:
        entered.append((len(x), list(sizes)))
        return torch.ones_like(x)

    out = form(0.25).packed(torch.zeros(40 * 3 + 80 * 5, 2), sizes, branch)
    for part, (B, T) in zip(out.split([120, 400]), sizes, strict=True):
        each = part.view(B, T, 2)
        assert (each == each[:, :1, :1]).all() and set(each.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
        assert abs(float(each.mean()) - 1) < 0.15
    assert entered == ([(30 * 3 + 60 * 5, [(30, 3), (60, 5)])] if form is SubsetPath else [(520, sizes)])
    x = some(4, 520, 2)
    assert torch.equal(form(0.25).eval().packed(x, sizes, branch), x + 1)
