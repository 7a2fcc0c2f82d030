import pytest
import torch

from worldloom.tokenizers.networks.convnet import ConvDecoder, ConvEncoder, depth_to_space, space_to_depth


@pytest.mark.parametrize("patch, downsample", [(2, 2), (2, 8), (4, 8), (8, 8), (2, 16)])
def test_any_aspect_that_divides_goes_there_and_back(patch: int, downsample: int) -> None:
    encoder = ConvEncoder(3, 4, 1, patch, downsample, code_width=5)
    decoder = ConvDecoder(6, 4, 1, patch, downsample, code_width=5)
    z = encoder(torch.rand((2, 3, 3 * downsample, downsample)))
    assert z.shape == (2, 5, 3, 1)
    assert decoder(z).shape == (2, 6, 3 * downsample, downsample)


def test_cells_and_pixels_are_two_views_of_the_same() -> None:
    x = torch.arange(2 * 6 * 9 * 5).reshape(2, 6, 9, 5)
    cells = space_to_depth(x, 3)
    assert cells.shape == (2, 2, 3, 45)
    assert torch.equal(cells[0, 1, 2].view(3, 3, 5), x[0, 3:6, 6:9])
    assert torch.equal(depth_to_space(cells, 3), x)


def test_a_change_is_felt_where_it_is_made() -> None:
    encoder = ConvEncoder(3, 4, 1, 2, 4, code_width=3).eval()
    x = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., :4, :4] += 1
    with torch.no_grad():
        moved = (encoder(x) - encoder(changed)).abs().amax((0, 1)) > 1e-6
    assert moved[0, 0] and not moved[12:, 12:].any()


def test_the_last_product_is_float32_under_autocast() -> None:
    encoder = ConvEncoder(3, 4, 1, 2, 4, code_width=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(torch.rand((1, 3, 8, 8))).dtype == torch.float32


def test_pictures_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="10 x 8 pixels cannot be divided into cells of 4 x 4"):
        ConvEncoder(3, 4, 1, 2, 4, code_width=3)(torch.rand((1, 3, 10, 8)))


@pytest.mark.parametrize("patch, downsample", [(2, 6), (8, 4), (1, 4)])
def test_resolutions_that_are_no_powers_of_two_are_refused(patch: int, downsample: int) -> None:
    with pytest.raises(ValueError, match="powers of two with 2 <= patch <= downsample"):
        ConvEncoder(3, 4, 1, patch, downsample, code_width=3)


@pytest.mark.parametrize("width", [4, 9, 16])
def test_with_mixing_a_change_is_felt_everywhere_on_both_ways(width: int) -> None:
    encoder = ConvEncoder(3, width, 1, 2, 8, code_width=3, mixing=2).eval()
    decoder = ConvDecoder(3, width, 1, 2, 8, code_width=3, mixing=1).eval()
    x = torch.rand((1, 3, 128, 96), generator=torch.Generator().manual_seed(0))
    z = torch.rand((1, 3, 16, 12), generator=torch.Generator().manual_seed(0))
    for network, given, cell in ((encoder, x, 8), (decoder, z, 1)):
        changed = given.clone()
        changed[..., :cell, :cell] += 1
        with torch.no_grad():
            moved = (network(given) - network(changed)).abs().amax((0, 1))
        assert (moved > 0).float().mean() > 0.9


def test_with_mixing_the_cells_of_a_flat_picture_differ_by_their_place() -> None:
    flat = torch.zeros((1, 3, 128, 128))
    cells = [ConvEncoder(3, 4, 1, 2, 8, code_width=3, mixing=mixing).eval()(flat)[0, :, 5:-5, 5:-5].flatten(1) for mixing in (0, 1)]
    spread = [each.std(1).max().item() for each in cells]
    assert spread[0] < 1e-6 < 1e-3 < spread[1]


def test_cells_apart_are_each_a_picture_of_their_own() -> None:
    encoder = ConvEncoder(3, 5, 1, 2, 8, code_width=3, apart=True).eval()
    alone = ConvEncoder(3, 5, 1, 2, 8, code_width=3).eval()
    alone.load_state_dict(encoder.state_dict())
    x = torch.rand((2, 3, 24, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = encoder(x)
        for row in range(3):
            for column in range(2):
                cell = x[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                torch.testing.assert_close(found[:, :, row, column], alone(cell)[:, :, 0, 0])
