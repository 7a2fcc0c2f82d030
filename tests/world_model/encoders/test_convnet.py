"""The residual network of convolutions: what it gives, its start as an identity, and that samples do not see each other."""

import pytest
import torch

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.settings import ConvSettings


def some(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("patch", "side", "places"), [(1, 10, 25), (2, 12, 9), (4, 20, 9)])
def test_the_grid_is_the_pictures_over_the_stride(patch: int, side: int, places: int) -> None:
    encoder = build_encoder(ConvSettings(patch=patch, width=8, depths=(1, 2)), torch.Generator().manual_seed(0))
    features = encoder(some(2, 3, side, side))
    assert features.tokens.shape == (2, places, 16) and encoder.width == 16 and encoder.stride == 2 * patch
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_samples_do_not_see_each_other() -> None:
    encoder = build_encoder(ConvSettings(width=8, depths=(1, 1)), torch.Generator().manual_seed(0))
    x = some(3, 3, 8, 8)
    together, apart = encoder(x).pooled, torch.cat([encoder(one[None]).pooled for one in x])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_branches_start_at_zero_and_the_same_seed_gives_the_same_weights() -> None:
    about = ConvSettings(width=8, depths=(2, 1))
    first, again = (build_encoder(about, torch.Generator().manual_seed(4)) for _ in range(2))
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    x = some(1, 8, 6, 6)
    assert torch.equal(first.blocks[0](x), x)
