import torch

from worldloom.tokenizers.pixels import from_mapped, from_signed, to_mapped, to_signed

ALL = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16)[..., None].repeat(1, 1, 1, 3)


def test_every_value_returns() -> None:
    assert torch.equal(from_signed(to_signed(ALL)), ALL)
    assert torch.equal(from_mapped(to_mapped(ALL)), ALL)


def test_ranges_are_those_of_the_papers_and_the_way_back_is_clipped() -> None:
    assert (to_signed(ALL).min().item(), to_signed(ALL).max().item()) == (-1, 1)
    assert abs(to_mapped(ALL).min().item() - 0.1) < 1e-6 and abs(to_mapped(ALL).max().item() - 0.9) < 1e-6
    wild = torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert from_signed(wild)[0, 0, :, 0].tolist() == from_mapped(wild)[0, 0, :, 0].tolist() == [0, 255]


def test_channels_move_and_places_stay() -> None:
    pictures = torch.arange(2 * 3 * 5 * 3, dtype=torch.uint8).reshape(2, 3, 5, 3)
    assert to_signed(pictures).shape == (2, 3, 3, 5)
    assert torch.equal(from_signed(to_signed(pictures)), pictures)
