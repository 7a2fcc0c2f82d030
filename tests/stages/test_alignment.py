"""Pairs of pictures after alignment: crops, mirrored and compressed ones are found again, other scenes are not."""

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from worldloom.stages.alignment import Views, align, concordance, cut
from worldloom.stages.shapes import COLOURS, GROUND, SHAPES, coverage

SIDE = 64


def scene(seed: int) -> NDArray[np.uint8]:
    """Three shapes, anywhere."""
    generator = np.random.default_rng(seed)
    picture = np.zeros((SIDE, SIDE, 1)) + np.asarray(GROUND)
    for _ in range(3):
        x, y, radius = (np.float64(generator.uniform(low, high)) for low, high in ((0.15, 0.85), (0.15, 0.85), (0.1, 0.24)))
        cover = coverage(SHAPES[generator.integers(4)], x, y, radius, SIDE)[..., None]
        picture = picture * (1 - cover) + np.asarray(list(COLOURS.values())[generator.integers(6)]) * cover
    return np.rint(picture).astype(np.uint8)


def cropped(picture: NDArray[np.uint8], box: tuple[float, ...]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=tuple(edge * SIDE for edge in box)))


def compressed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=50)
    return np.asarray(Image.open(buffer))


def test_copies_are_found_with_their_box_and_mirroring_from_either_side() -> None:
    box = (0.11, 0.2, 0.93, 0.97)
    first = scene(1)
    copies = [first, compressed(first), first[:, ::-1], cropped(first, box), compressed(cropped(first, box)[:, ::-1])]
    pictures = np.stack([first, *copies])
    for pairs in (np.array([[0, 1 + n] for n in range(5)]), np.array([[1 + n, 0] for n in range(5)])):
        with torch.inference_mode():
            found = align(pictures, pairs, bar=0.98, smallest=0.7)
        assert (found.concordance > 0.96).all()
        assert found.flipped.tolist() == [False, False, True, False, True]
        np.testing.assert_allclose(found.box[3], box, atol=0.03)
        assert bool(found.reversed[3]) == bool(pairs[0, 0])


def test_other_scenes_are_far_from_the_bar() -> None:
    pictures = np.stack([scene(n) for n in range(2, 14)])
    pairs = np.array([(a, b) for a in range(12) for b in range(a + 1, 12)])
    with torch.inference_mode():
        assert align(pictures, pairs, bar=0.94, smallest=0.7).concordance.max() < 0.9


def test_concordance_is_lins_and_minds_contrast() -> None:
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = 0.5 * x + 0.1
    a, b = x.flatten(1).numpy(), y.flatten(1).numpy()
    for row in range(2):
        lin = 2 * np.cov(a[row], b[row], bias=True)[0, 1] / (a[row].var() + b[row].var() + (a[row].mean() - b[row].mean()) ** 2)
        assert float(concordance(x, y)[row]) == pytest.approx(lin, abs=1e-3)
    assert torch.allclose(concordance(x, x), torch.ones(2, dtype=torch.float64))
    blank = torch.full((1, 3, 4, 4), 0.5)
    assert float(concordance(blank, blank)) == 1 and float(concordance(blank, blank + 0.2)) < 0.01


def test_views_are_the_boxes_that_they_say() -> None:
    views = Views(0.7)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    seen = views(x)
    assert seen.shape == (2, len(views.boxes), 3 * 16 * 16)
    for at in (0, 3, len(views.boxes) - 1):
        made = cut(x, torch.from_numpy(views.boxes[at : at + 1]).expand(2, -1), 16)
        torch.testing.assert_close(seen[:, at], made.flatten(1), atol=1e-5, rtol=0)
