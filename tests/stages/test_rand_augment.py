"""Operations against Pillow's, how often and how strongly they come, and the same whatever the batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from worldloom.stages import rand_augment as operations
from worldloom.stages.encoder_settings import RandAugment
from worldloom.stages.rand_augment import OPERATIONS, rand_augment
from worldloom.stages.view_draws import Draws

STRENGTHS, SIDES = (0.0, 0.35, 0.93, 1.0), (1.0, -1.0)


def pictures(count: int = 3) -> Tensor:
    """Smooth ones, float32 [n, 3, 24, 33] of whole numbers; the first has few values, the last one colour in a channel."""
    ways = torch.linspace(0, 3, 33) * torch.arange(1, count * 3 + 1).view(count, 3, 1, 1) / 3 + torch.linspace(0, 2, 24).view(24, 1)
    x = (100 + 90 * ways.sin() + 40 * torch.rand(count, 3, 24, 33, generator=torch.Generator().manual_seed(0))).round()
    x[0] = (x[0] / 64).floor() * 64
    x[-1, 1] = 77
    return x.clamp(0, 255)


def pillow(x: Tensor) -> Image.Image:
    return Image.fromarray(x.permute(1, 2, 0).byte().numpy())


def numbers(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float()


def factor(strength: float, side: float) -> float:
    return max(0.1, 1 + side * 0.9 * strength)


def solarized_and_added(picture: Image.Image, strength: float, side: float) -> Image.Image:
    table = [min(255, i + min(128, int(strength * 110))) if i < 128 else i for i in range(256)]
    return picture.point(table * 3)


PILLOWS: dict[str, tuple[Callable[[Image.Image, float, float], Image.Image], int]] = {  # and by how much a number may differ
    "autocontrast": (lambda x, strength, side: ImageOps.autocontrast(x), 1),
    "equalize": (lambda x, strength, side: ImageOps.equalize(x), 0),
    "invert": (lambda x, strength, side: ImageOps.invert(x), 0),
    "posterize": (lambda x, strength, side: ImageOps.posterize(x, max(1, 4 - int(strength * 4))), 0),
    "solarize": (lambda x, strength, side: ImageOps.solarize(x, 256 - min(256, int(strength * 256))), 0),
    "solarize_add": (solarized_and_added, 0),
    "colour": (lambda x, strength, side: ImageEnhance.Color(x).enhance(factor(strength, side)), 2),
    "contrast": (lambda x, strength, side: ImageEnhance.Contrast(x).enhance(factor(strength, side)), 2),
    "brightness": (lambda x, strength, side: ImageEnhance.Brightness(x).enhance(factor(strength, side)), 1),
    "sharpness": (lambda x, strength, side: ImageEnhance.Sharpness(x).enhance(factor(strength, side)), 2),
}
GREY = (128, 128, 128)
AFFINE: dict[str, Callable[[Image.Image, float, float], tuple[float, ...]]] = {
    "shear_x": lambda x, strength, side: (1, 0.3 * side * strength, 0, 0, 1, 0),
    "shear_y": lambda x, strength, side: (1, 0, 0, 0.3 * side * strength, 1, 0),
    "translate_x": lambda x, strength, side: (1, 0, 0.45 * side * strength * x.width, 0, 1, 0),
    "translate_y": lambda x, strength, side: (1, 0, 0, 0, 1, 0.45 * side * strength * x.height),
}


def applied(name: str, x: Tensor, strength: float, side: float) -> Tensor:
    found: Tensor = getattr(operations, name)(x, torch.full((len(x),), strength), torch.full((len(x),), side))
    return found.round().clamp(0, 255)


@pytest.mark.parametrize("name", PILLOWS)
def test_colours_are_pillows(name: str) -> None:
    x, (expected, near) = pictures(), PILLOWS[name]
    for strength in STRENGTHS:
        for side in SIDES:
            for found, picture in zip(applied(name, x, strength, side), x, strict=True):
                assert (found - numbers(expected(pillow(picture), strength, side))).abs().max() <= near, (name, strength, side)


@pytest.mark.parametrize("name", [*AFFINE, "rotate"])
def test_geometry_is_pillows(name: str) -> None:
    x = pictures()
    x[:, :, :2] = x[:, :, -2:] = x[..., :2] = x[..., -2:] = 128  # at the very edge Pillow does not blend with what comes in from outside
    for strength in STRENGTHS:
        for side in SIDES:
            for found, picture in zip(applied(name, x, strength, side), x, strict=True):
                whole, way = pillow(picture), Image.Resampling.BILINEAR
                if name == "rotate":
                    expected = whole.rotate(30 * side * strength, way, fillcolor=GREY)
                else:
                    ways = AFFINE[name](whole, strength, side)
                    expected = whole.transform(whole.size, Image.Transform.AFFINE, ways, way, fillcolor=GREY)
                assert (found - numbers(expected)).abs().max() <= 2, (name, strength, side)


def draws(sample: list[int], epoch: int = 2) -> Draws:
    return Draws(1, np.full(len(sample), epoch), np.array(sample), 0)


def test_what_happens_is_a_function_of_epoch_and_sample_whatever_the_batch() -> None:
    x, about = pictures(6) / 255, RandAugment(operations=3, share=1.0)
    together = rand_augment(x, about, draws([5, 8, 2, 9, 4, 3]))
    assert together.shape == x.shape and together.min() >= 0 and together.max() <= 1
    torch.testing.assert_close(together * 255, (together * 255).round(), rtol=0, atol=1e-4)
    torch.testing.assert_close(rand_augment(x[[3]], about, draws([9])), together[[3]], rtol=0, atol=1e-6)
    assert not torch.allclose(rand_augment(x[[3]], about, draws([9], epoch=3)), together[[3]], atol=1e-2)
    untouched = rand_augment(x, RandAugment(share=0.0), draws([5, 8, 2, 9, 4, 3]))
    torch.testing.assert_close(untouched, x, rtol=0, atol=1e-6)


def test_all_operations_come_equally_often_about_as_strong_as_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Tensor, Tensor]] = []

    def watched(number: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def watching(x: Tensor, strength: Tensor, side: Tensor) -> Tensor:
            seen.append((number, strength, side))
            return x

        return watching

    monkeypatch.setattr(operations, "OPERATIONS", tuple(watched(number) for number in range(len(OPERATIONS))))
    count = 6_000
    rand_augment(torch.zeros(count, 3, 2, 2), RandAugment(magnitude=6.0, spread=0.5), draws(list(range(count))))
    strength, side = (torch.cat([each[part] for each in seen]) for part in (1, 2))  # type: ignore[misc]
    assert abs(len(strength) / (2 * count) - 0.5) < 0.02 and len(OPERATIONS) == 15
    often = [sum(len(strengths) for number, strengths, _ in seen if number == each) / len(strength) for each in range(15)]
    assert all(abs(share - 1 / 15) < 0.01 for share in often)
    assert abs(strength.mean() - 0.6) < 0.005 and abs(strength.std() - 0.05) < 0.005 and abs(side.mean()) < 0.05
