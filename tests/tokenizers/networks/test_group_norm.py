import pytest
import torch
from torch import Tensor, nn

from worldloom.tokenizers.networks import group_norm
from worldloom.tokenizers.networks.group_norm import GroupNorm


def pair(channels: int) -> tuple[GroupNorm, nn.GroupNorm]:
    """Ours and torch's, with the same random weights."""
    generator = torch.Generator().manual_seed(channels)
    ours, plain = GroupNorm(4, channels, eps=1e-3), nn.GroupNorm(4, channels, eps=1e-3)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn(channels, generator=generator))
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def activations(dtype: torch.dtype, channels: int = 12) -> Tensor:
    x = 5 + 2 * torch.randn((3, channels, 5, 7), generator=torch.Generator().manual_seed(1))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def gradients(norm: nn.GroupNorm, x: Tensor) -> list[Tensor]:
    """Of the input, the weight and the bias, for a loss that no two places share."""
    x = x.clone().requires_grad_()
    y = norm(x)
    loss = (y.double() * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)).sum()
    return list(torch.autograd.grad(loss, [x, norm.weight, norm.bias]))


@pytest.mark.parametrize("small", [1, 1024])
def test_values_and_gradients_are_those_of_torch_in_float64(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(group_norm, "SMALL", small)
    ours, plain = (norm.double() for norm in pair(12))
    x = activations(torch.float64)
    assert torch.allclose(ours(x), plain(x), atol=1e-12, rtol=0)
    for got, expected in zip(gradients(ours, x), gradients(plain, x), strict=True):
        assert torch.allclose(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("small", [1, 1024])
def test_bfloat16_is_rounded_once_at_the_end(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(group_norm, "SMALL", small)
    ours, plain = pair(12)
    x = activations(torch.bfloat16)
    assert ours(x).dtype == torch.bfloat16 and ours(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(ours(x).float(), plain(x.float()), rtol=2**-8, atol=1e-5)
    got, expected = gradients(ours, x), gradients(plain, x.float())
    assert [each.dtype for each in got] == [torch.bfloat16, torch.float32, torch.float32]
    for one, other in zip(got, expected, strict=True):
        # What arrives at the norm from above is itself rounded to bfloat16.
        assert (one.float() - other).norm() <= 0.01 * other.norm()


def test_a_large_mean_does_not_eat_the_digits_of_a_small_grid() -> None:
    ours, plain = pair(12)
    x = activations(torch.float32) + 1000
    assert torch.allclose(ours(x), plain.double()(x.double()).float(), atol=1e-3, rtol=0)


def test_other_layouts_keep_their_layout() -> None:
    ours, plain = pair(12)
    x = activations(torch.float32).contiguous()
    assert torch.equal(ours(x), plain(x)) and ours(x).is_contiguous()


def test_swish_is_the_norm_times_its_sigmoid() -> None:
    ours, _ = pair(12)
    x = activations(torch.float32)
    expected = ours(x) * ours(x).sigmoid()
    assert torch.allclose(ours.swish(x), expected, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(ours.swish(x), expected, atol=1e-6)
