import pytest
import torch
import torch.nn.functional as F

from worldloom.world_model.encoders.convnet import ConvNet
from worldloom.world_model.encoders.patches import (
    ConvPatches,
    Fitting,
    HybridPatches,
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


def hybrid(fitting: Fitting = "error", frozen: bool = False) -> HybridPatches:
    generator = torch.Generator().manual_seed(1)
    made = HybridPatches(ConvNet(3, 2, 8, (1, 1), generator=generator), 7, fitting, frozen, generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def test_places_of_convolutions_become_vectors_by_a_convolution_of_1_x_1() -> None:
    made, x = hybrid(), pixels(8, 20)
    assert made.patch == 4 and made.grid(8, 20) == (2, 5) and made.width == 7 and made.channels == 3
    features = made.convolutions(x).tokens.transpose(1, 2).reshape(2, 16, 2, 5)
    expected = F.conv2d(features, made.weight[..., None, None], made.bias).flatten(2).transpose(1, 2)
    torch.testing.assert_close(made(x), expected)


def test_behind_convolutions_pictures_are_fitted_as_elsewhere() -> None:
    x = pixels(10, 12)
    with pytest.raises(ValueError, match="pictures of 10 x 12 pixels cannot be divided into patches of 4"):
        hybrid()(x)
    torch.testing.assert_close(hybrid("pad")(x), hybrid()(torch.cat([x, torch.zeros(2, 3, 2, 12)], dim=2)))
    torch.testing.assert_close(hybrid("crop")(x), hybrid()(x[:, :, :8]))


@pytest.mark.parametrize("fitting", ["pad", "crop"])
def test_convolutions_hear_nothing_of_hidden_cells(fitting: Fitting) -> None:
    made, x, hidden = hybrid(fitting), pixels(10, 13), torch.zeros(2, 6 if fitting == "crop" else 12, dtype=torch.bool)
    hidden[0, 1] = hidden[1, 0] = True
    changed = x.clone()
    changed[0, :, :4, 4:8] += 5
    changed[1, :, :4, :4] -= 5
    assert torch.equal(made(made.blanked(x, hidden)), made(made.blanked(changed, hidden)))
    assert not torch.allclose(made(x)[~hidden], made(changed)[~hidden])
    changed[0, :, 4:8, 4:8] += 5
    assert not torch.allclose(made(made.blanked(x, hidden)), made(made.blanked(changed, hidden)))


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_convolutions_get_no_gradient_and_pass_it_on(frozen: bool) -> None:
    made, x = hybrid(frozen=frozen), pixels(8, 12).requires_grad_()
    made(x).square().sum().backward()
    assert made.weight.grad is not None and made.bias.grad is not None and x.grad is not None and x.grad.any()
    found = {name: parameter.grad is not None and bool(parameter.grad.any()) for name, parameter in made.convolutions.named_parameters()}
    assert set(found.values()) == {not frozen}
