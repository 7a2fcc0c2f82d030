import pytest
import torch

from worldloom.tokenizers.discriminator import PatchDiscriminator, smallest_side


def discriminator(layers: int = 2) -> PatchDiscriminator:
    return PatchDiscriminator(width=8, layers=layers, generator=torch.Generator().manual_seed(0))


def pictures(side: int) -> torch.Tensor:
    return torch.rand((2, 3, side, side), generator=torch.Generator().manual_seed(1))


def test_it_judges_each_picture_alone() -> None:
    net, x = discriminator().eval(), pictures(32)
    assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_pictures_of_the_smallest_side_leave_a_patch(layers: int) -> None:
    net, side = discriminator(layers), smallest_side(layers)
    assert min(net(pictures(side)).shape[-2:]) >= 1
    with pytest.raises(RuntimeError):
        net(pictures(side - 1 if layers == 1 else side // 2))


def test_weights_start_as_the_paper_says_and_follow_the_generator() -> None:
    first, second = discriminator(3), discriminator(3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    largest = max(first.parameters(), key=torch.Tensor.numel)
    assert largest.std().item() == pytest.approx(0.02, rel=0.05)
    assert all(parameter.is_contiguous() for parameter in first.parameters())
