import pytest
import torch

from worldloom.world_model.encoders.patches import (
    ConvPatches,
    Fitting,
    LinearPatches,
    Order,
    flatten_kernel,
    fold,
    patch_grid,
    unflatten_kernel,
    unfold,
)

ORDERS: tuple[Order, ...] = ("channel_first", "channel_last")


def pixels(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(4))


def conv(fitting: Fitting = "error") -> ConvPatches:
    made = ConvPatches(3, 7, 5, fitting, torch.Generator().manual_seed(1))
    with torch.no_grad():
        made.bias.normal_(generator=torch.Generator().manual_seed(2))
    return made


@pytest.mark.parametrize("order", ORDERS)
def test_a_convolution_and_unfolding_give_the_same_with_the_same_weights(order: Order) -> None:
    one, other = conv(), LinearPatches(3, 7, 5, order=order)
    other.load_state_dict(one.state_dict())
    x = pixels(10, 15)
    torch.testing.assert_close(other(x), one(x), rtol=0, atol=2e-6)
    one.load_state_dict(other.state_dict())
    assert one(x).shape == (2, 6, 7)


@pytest.mark.parametrize("order", ORDERS)
def test_matrices_and_patches_of_both_orders_come_back(order: Order) -> None:
    kernel, x = torch.randn(7, 3, 5, 5), pixels(10, 15)
    assert torch.equal(unflatten_kernel(flatten_kernel(kernel, order), 3, 5, order), kernel)
    assert torch.equal(fold(unfold(x, 5, order), (2, 3), 5, order), x)


def test_a_flax_kernel_is_read_as_its_comment_says() -> None:
    kernel = torch.randn(7, 3, 5, 5)
    flax = kernel.permute(2, 3, 1, 0).contiguous()  # [p, p, C, D]
    assert torch.equal(unflatten_kernel(flax.reshape(-1, 7).T, 3, 5, "channel_last"), kernel)


def test_patches_that_change_places_change_the_places_of_their_vectors() -> None:
    x, order = pixels(10, 15), [4, 2, 0, 5, 1, 3]
    shuffled = fold(unfold(x, 5, "channel_first")[:, order], (2, 3), 5, "channel_first")
    torch.testing.assert_close(conv()(shuffled), conv()(x)[:, order])


@pytest.mark.parametrize("made", [conv(), LinearPatches(3, 7, 5)])
def test_a_vector_hears_of_its_own_pixels_only(made: torch.nn.Module) -> None:
    x = pixels(10, 15).requires_grad_()
    made(x)[:, 4].square().sum().backward()  # row 1, column 1
    assert x.grad is not None
    heard = x.grad.abs().sum((0, 1)) > 0
    assert heard[5:10, 5:10].all() and heard.sum() == 25


def test_a_picture_that_patches_do_not_divide_is_refused_filled_or_cut() -> None:
    x = pixels(39, 45)
    with pytest.raises(ValueError, match="pictures of 39 x 45 pixels cannot be divided into patches of 5"):
        conv()(x)
    filled = torch.cat([x, torch.zeros(2, 3, 1, 45)], dim=2)
    torch.testing.assert_close(conv("pad")(x), conv()(filled))
    torch.testing.assert_close(conv("crop")(x), conv()(x[:, :, :35]))
    assert patch_grid(39, 45, 5, "pad") == (8, 9) and patch_grid(39, 45, 5, "crop") == (7, 9)
    with pytest.raises(ValueError, match="hold no patch of 5"):
        conv("crop")(pixels(4, 45))
