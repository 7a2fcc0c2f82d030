"""Windows, masks and index tables against transformers' own and the formulas of the paper."""

import pytest
import torch

from worldloom.world_model.encoders.windows import merge, offset_index, padding_mask, partition, shift_mask, shift_of

CPU = torch.device("cpu")


def their_layer(window: int, shift: int, heads: int = 2):
    from transformers import SwinConfig
    from transformers.models.swin.modeling_swin import SwinLayer

    return SwinLayer(SwinConfig(window_size=window), 8, (9, 9), heads, shift_size=shift)


@pytest.mark.parametrize(("window", "grid"), [(2, (4, 6)), (3, (9, 6)), (5, (10, 15)), (7, (14, 14))])
def test_masks_are_those_of_transformers_element_by_element(window: int, grid: tuple[int, int]) -> None:
    expected = their_layer(window, window // 2).get_attn_mask(*grid, torch.float32, CPU)
    assert torch.equal(shift_mask(grid, window, window // 2, CPU), expected)


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_index_tables_are_those_of_transformers_and_of_the_formula(window: int) -> None:
    found = offset_index(window, window, CPU)
    theirs = their_layer(window, 0).attention.relative_position_bias.relative_position_index.view(window**2, window**2)
    assert torch.equal(found, theirs)
    for query in range(window**2):
        for key in range(window**2):
            down, across = query // window - key // window, query % window - key % window
            assert found[query, key] == (down + window - 1) * (2 * window - 1) + across + window - 1


def test_a_smaller_window_reads_the_middle_of_the_table() -> None:
    table = torch.arange(25).view(5, 5)  # offsets of windows of 3
    assert torch.equal(table.flatten()[offset_index(2, 3, CPU)], table[1:4, 1:4].flatten()[offset_index(2, 2, CPU)])


def test_merging_undoes_partitioning() -> None:
    x = torch.arange(2 * 4 * 6 * 5).view(2, 4, 6, 5)
    windows = partition(x, 2)
    assert windows.shape == (12, 4, 5) and torch.equal(windows[1], x[0, :2, 2:4].reshape(4, 5))
    assert torch.equal(merge(windows, (4, 6), 2), x)


def test_a_window_is_never_larger_than_the_grid_and_one_alone_is_not_shifted() -> None:
    assert shift_of((14, 14), 7, True) == (7, 3) and shift_of((14, 14), 7, False) == (7, 0)
    assert shift_of((7, 9), 7, True) == (7, 0) and shift_of((3, 9), 7, True) == (3, 0)


def test_padding_is_barred_wherever_the_shift_takes_it() -> None:
    grid, padded, window, shift = (3, 5), (4, 6), 2, 1
    cells = torch.zeros(padded)
    cells[:3, :5] = 1
    seen = partition(cells.roll((-shift, -shift), (0, 1))[None, ..., None], window)[..., 0] == 1
    assert torch.equal(padding_mask(grid, padded, window, shift, CPU)[:, 0] == 0, seen)


def test_tables_first_asked_for_in_inference_serve_a_training() -> None:
    offsets = torch.zeros(81, 2, requires_grad=True)
    for cached in (offset_index, shift_mask):
        cached.cache_clear()
    with torch.inference_mode():
        index, mask = offset_index(4, 5, torch.device("cpu")), shift_mask((8, 8), 4, 2, torch.device("cpu"))
    assert index is offset_index(4, 5, torch.device("cpu"))
    (offsets[index].sum() * mask.sum()).backward()  # type: ignore[no-untyped-call]
    assert offsets.grad is not None and not mask.is_inference()
