import pytest
import torch
import torch.nn.functional as F

from worldloom.world_model.encoders.positions import LearnedPositions, SinePositions, sine_cosine


def learned(**changes: object) -> LearnedPositions:
    return LearnedPositions((2, 3), 5, generator=torch.Generator().manual_seed(1), **changes)  # type: ignore[arg-type]


def test_a_learned_table_is_itself_on_its_own_grid() -> None:
    positions = learned()
    assert torch.equal(positions((2, 3)), positions.table) and positions.table.shape == (7, 5)
    assert 0.01 < positions.table.std() < 0.03


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_on_another_grid_it_is_what_interpolation_gives_and_the_class_token_stays(interpolation: str) -> None:
    positions = learned(interpolation=interpolation)
    found, places = positions((4, 6)), positions.table[1:].view(2, 3, 5).permute(2, 0, 1)[None]
    expected = F.interpolate(places, size=(4, 6), mode=interpolation)[0].permute(1, 2, 0)
    torch.testing.assert_close(found[1:].view(4, 6, 5), expected)
    assert torch.equal(found[0], positions.table[0])


def test_a_constant_table_stays_constant() -> None:
    positions = learned()
    with torch.no_grad():
        positions.table.fill_(0.25)
    torch.testing.assert_close(positions((5, 4)), torch.full((21, 5), 0.25))


def test_in_half_precision_it_is_interpolated_in_float32() -> None:
    positions = learned()
    exact = positions((4, 6))
    low = positions.to(torch.bfloat16)
    assert low((4, 6)).dtype == torch.bfloat16
    torch.testing.assert_close(low((4, 6)).float(), exact, rtol=0.02, atol=2e-3)


def test_sines_say_the_row_first_then_the_column() -> None:
    table = SinePositions(12)((3, 4))
    assert table.shape == (13, 12) and not table[0].any()
    grid = table[1:].view(3, 4, 12)
    assert torch.equal(grid[2, 0, :6], grid[2, 3, :6]) and torch.equal(grid[0, 3, 6:], grid[2, 3, 6:])
    angle = torch.tensor([2.0, 2.0 / 10_000 ** (1 / 3), 2.0 / 10_000 ** (2 / 3)])
    torch.testing.assert_close(grid[2, 0, :6], torch.cat([angle.sin(), angle.cos()]))
    torch.testing.assert_close(grid[0, 2, 6:], torch.cat([angle.sin(), angle.cos()]))


def test_a_shift_is_one_rotation_so_products_depend_on_the_offset_alone() -> None:
    table = sine_cosine(torch.arange(40), 8).double()
    products = table @ table.T
    for offset in (1, 7, 20):
        along = products.diagonal(offset)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)


def test_a_width_that_two_axes_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="need a width that 4 divides, got 6"):
        SinePositions(6)
