"""Views against torch's interpolation, Pillow's blur and Python's colours, and the same whoever makes them."""

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from worldloom.stages import view_draws
from worldloom.stages.augment import (
    KNOTS,
    Jitter,
    View,
    along_both,
    blur_matrix,
    crop,
    moved,
    multi_crop,
    resize_matrix,
    see,
    turn_hue,
    warp,
)
from worldloom.stages.luma import luma
from worldloom.stages.view_draws import Draw, Draws

EVERYTHING = View(9, (0.3, 0.8), jittered=0.8, grey=0.3, blur=0.5, solarise=0.5)


def pictures(count: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (count, 13, 17, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def draws(sample: list[int], epoch: int = 2, view: int = 0, seed: int = 1) -> Draws:
    return Draws(seed, np.full(len(sample), epoch), np.array(sample), view)


def test_a_view_is_a_function_of_seed_epoch_and_sample_whatever_the_batch() -> None:
    x = pictures()
    together = see(x, EVERYTHING, draws([5, 8, 2, 9, 4, 3]))
    assert together.shape == (6, 3, 9, 9) and together.dtype == torch.float32 and together.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(see(x[[3]], EVERYTHING, draws([9])), together[[3]], rtol=0, atol=1e-6)
    for other in (draws([9], epoch=3), draws([9], view=1), draws([9], seed=2)):
        assert not torch.allclose(see(x[[3]], EVERYTHING, other), together[[3]], atol=1e-2)


def test_the_highest_draws_stay_below_one_and_boxes_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_draws, "uniform", lambda *counters: np.full(1, 1 - 2.0**-30))
    highest = draws([5, 8, 2, 9, 4, 3])
    assert (highest[Draw.TOP] < 1).all() and (highest[Draw.TOP] > 1 - 2.0**-23).all()
    assert see(pictures(), View(9, (0.2, 0.3)), highest).isfinite().all()


@pytest.mark.parametrize("size", [5, 9, 20])
def test_resizing_a_box_is_torchs_antialiased_bilinear(size: int) -> None:
    x = torch.rand(2, 3, 13, 17, generator=torch.Generator().manual_seed(0))
    rows = resize_matrix(13, size, torch.tensor([2.0, 0.0]), torch.tensor([7.0, 13.0]))
    columns = resize_matrix(17, size, torch.tensor([5.0, 1.0]), torch.tensor([12.0, 9.0]))
    found = along_both(x, rows, columns)
    for number, box in enumerate((x[:1, :, 2:9, 5:17], x[1:, :, :13, 1:10])):
        expected = F.interpolate(box, size=(size, size), mode="bilinear", antialias=True)
        torch.testing.assert_close(found[number : number + 1], expected, rtol=0, atol=1e-5)


def test_boxes_have_the_shares_asked_for_and_lie_everywhere_and_half_are_mirrored() -> None:
    count = 3000
    chosen = draws(list(range(count)))
    ramp = torch.linspace(0, 1, 40).expand(count, 1, 40, 40)
    x = torch.cat([ramp, ramp.mT, torch.ones_like(ramp)], 1)
    views = crop(x, View(8, (0.2, 0.5)), chosen)
    across, down = (views[:, 0, 0, 4] - views[:, 0, 0, 3]) * 8, (views[:, 1, 4, 0] - views[:, 1, 3, 0]) * 8
    assert abs((across < 0).float().mean() - 0.5) < 0.03 and (down > 0).all()
    share = across.abs() * down * (39 / 40) ** 2  # the ramp rises over 39 of 40 pixels
    assert share.min() > 0.17 and share.max() < 0.56 and abs(share.mean() - 0.35) < 0.02
    middle = views[:, 1].mean((1, 2))
    assert middle.min() < 0.35 and middle.max() > 0.65 and abs(middle.mean() - 0.5) < 0.02


def test_the_whole_picture_is_seen_where_no_less_is_asked_for() -> None:
    x = pictures()
    found = see(x, View(9, flip=0.0), draws([0, 1, 2, 3, 4, 5]))
    expected = F.interpolate(x.permute(0, 3, 1, 2) / 255, size=(9, 9), mode="bilinear", antialias=True) * 2 - 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_hues_turn_as_in_python() -> None:
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    x[0, :, 0, 0] = 0.3  # a grey has no hue
    turn = torch.tensor([0.1, -0.3])
    found = turn_hue(x, turn)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                h, s, v = colorsys.rgb_to_hsv(*x[b, :, i, j].tolist())
                expected = colorsys.hsv_to_rgb((h + turn[b].item()) % 1, s, v)
                assert found[b, :, i, j].tolist() == pytest.approx(expected, abs=1e-5)


def test_blurs_are_gaussian_and_none_is_none() -> None:
    matrix = blur_matrix(31, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 31))
    torch.testing.assert_close(matrix[1], torch.eye(31))
    at = np.arange(31) - 15
    gauss = np.exp(-(at**2) / 8)
    np.testing.assert_allclose(matrix[0, 15].numpy(), gauss / gauss.sum(), atol=1e-6)


def test_colours_move_within_their_bounds_and_grey_has_none() -> None:
    x = pictures()
    grey = see(x, View(9, jittered=1.0, grey=1.0), draws(list(range(6))))
    torch.testing.assert_close(grey, grey[:, :1].expand_as(grey))
    still = View(9, flip=0.0, jittered=1.0, jitter=Jitter(0, 0, 0, 0))
    torch.testing.assert_close(see(x, still, draws(list(range(6)))), see(x, View(9, flip=0.0), draws(list(range(6)))), rtol=0, atol=1e-5)
    grounds = torch.full((500, 8, 8, 3), 100, dtype=torch.uint8)
    bright = (see(grounds, View(4, jittered=1.0, jitter=Jitter(0.4, 0, 0, 0)), draws(list(range(500)))) + 1) / 2
    factor = luma(bright)[:, 0, 0, 0] / (100 / 255)
    assert 0.599 < factor.min() < 0.62 and 1.38 < factor.max() < 1.401


def test_what_is_bright_is_solarised() -> None:
    x = pictures()
    plain, inverted = (see(x, View(9, flip=0.0, solarise=share), draws(list(range(6)))) for share in (0.0, 1.0))
    torch.testing.assert_close(inverted, torch.where(plain >= 0, -plain, plain), rtol=0, atol=1e-5)


def test_pictures_are_turned_about_their_middle_against_the_clock() -> None:
    x = torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    found = moved(x, torch.tensor([0.0, 90.0, -180.0]))
    for number, quarters in enumerate((0, 1, 2)):
        torch.testing.assert_close(found[number], x[number].rot90(quarters, (1, 2)), rtol=0, atol=1e-5)
    wide = moved(x[:, :, :5], torch.full((3,), 180.0))
    torch.testing.assert_close(wide, x[:, :, :5].flip(2, 3), rtol=0, atol=1e-5)
    flat = torch.full((1, 5, 9, 3), 77, dtype=torch.uint8)
    assert see(flat, View(9, turn=30.0), draws([4])).std() < 1e-6  # what comes in is as the edge
    many = see(pictures(), View(9, flip=0.0, turn=30.0), draws([5, 8, 2, 9, 4, 3]))
    torch.testing.assert_close(see(pictures()[[3]], View(9, flip=0.0, turn=30.0), draws([9])), many[[3]], rtol=0, atol=1e-6)
    assert not torch.allclose(many, see(pictures(), View(9, flip=0.0), draws([5, 8, 2, 9, 4, 3])), atol=1e-2)


def test_a_rectangle_is_turned_without_shear() -> None:
    x = torch.zeros(1, 1, 20, 40)
    x[:, :, 8:12, 15:25] = 1
    expected = Image.fromarray((x[0, 0] * 255).byte().numpy()).rotate(37, Image.Resampling.BILINEAR)
    found = moved(x, torch.tensor([37.0]))[0, 0] * 255
    assert float((found - torch.from_numpy(np.asarray(expected).copy())).abs().max()) < 2


def test_a_picture_is_bent_at_its_knots_and_smoothly_between_them() -> None:
    across = (torch.arange(33.0) / 32).expand(1, 1, 33, 33)  # says where it is
    shift = torch.zeros(1, 2, KNOTS, KNOTS)
    shift[:, 0] = 0.1
    inner = moved(across, torch.zeros(1), shift)[..., 5:-5]
    torch.testing.assert_close(inner, across[..., 5:-5] + 0.1 * 33 / 32, rtol=0, atol=1e-5)  # alike everywhere: a shift
    one = torch.zeros(1, 2, KNOTS, KNOTS)
    one[0, 0, 1, 2] = 0.06
    bend = moved(across, torch.zeros(1), one)[0, 0] - across[0, 0]
    row, column = divmod(int(bend.argmax()), 33)
    assert abs(row - 32 / 3) <= 1 and abs(column - 64 / 3) <= 2 and bend.max() < 0.07
    wild = torch.full((1, 2, KNOTS, KNOTS), 0.1)
    wild[0, :, ::3], wild[0, :, :, ::3] = -0.1, -0.1  # so that between the inner knots a curve would go furthest beyond them
    assert (moved(across, torch.zeros(1), wild) - across).abs().max() < 0.1 + 1 / 32 * 0.11
    assert bend[-1].abs().max() < 0.01  # far from it nearly nothing moves
    assert (bend[1:] - bend[:-1]).abs().max() < 0.02


def test_bends_are_drawn_for_each_picture_and_view_whatever_the_batch() -> None:
    bent = View(9, flip=0.0, warp=0.2)
    many = see(pictures(), bent, draws([5, 8, 2, 9, 4, 3]))
    torch.testing.assert_close(see(pictures()[[3]], bent, draws([9])), many[[3]], rtol=0, atol=1e-6)
    assert not torch.allclose(many, see(pictures(), View(9, flip=0.0), draws([5, 8, 2, 9, 4, 3])), atol=1e-2)
    field = warp(0.2, draws(list(range(300))))
    assert field.abs().max() <= 0.2 and abs(float(field.mean())) < 0.01 and abs(float(field.std()) - 0.2 / 3**0.5) < 0.005


def test_dinos_views_are_two_large_ones_and_many_small_ones() -> None:
    views = multi_crop(64, 32, 8)
    assert [view.size for view in views] == [64, 64] + [32] * 8
    assert [view.blur for view in views[:3]] == [1.0, 0.1, 0.5] and [view.solarise for view in views[:3]] == [0, 0.2, 0]
    assert views[0].scale == (0.4, 1.0) and views[2].scale == (0.05, 0.4)
    assert {(view.jittered, view.grey, view.flip, view.turn) for view in views} == {(0.8, 0.2, 0.5, 0.0)}
    plain = multi_crop(64, 32, 1, like=View(1, flip=0.0, turn=20.0, blur=0.4))
    assert [view.blur for view in plain] == pytest.approx([0.4, 0.04, 0.2])
    assert {(view.jittered, view.grey, view.flip, view.turn, view.solarise) for view in plain} == {(0.0, 0.0, 0.0, 20.0, 0.0)}
