"""SimMIM against transformers' masked-image models, and the laws of its masks and loss."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.settings import PixelError, StemSettings, VitSettings
from worldloom.world_model.encoders.simmim import ERRORS, SimMIM, hide_units, masked_error
from worldloom.world_model.encoders.transformers_layout import load_transformers


def randomised(model, seed: int):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def their_model(kind: str):
    from transformers import SwinConfig, SwinForMaskedImageModeling, ViTConfig, ViTForMaskedImageModeling

    if kind == "swin":
        config = SwinConfig(
            image_size=24, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=3, encoder_stride=4, drop_path_rate=0.0
        )
        return randomised(SwinForMaskedImageModeling(config), 7)
    vit = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=24, patch_size=4, encoder_stride=4
    )
    return randomised(ViTForMaskedImageModeling(vit), 7)


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_transformers_gives_the_same_loss_and_pictures(kind: str, tmp_path) -> None:
    theirs = their_model(kind)
    theirs.save_pretrained(tmp_path)
    encoder, _ = load_transformers(tmp_path)
    ours = SimMIM(encoder)
    with torch.no_grad():
        ours.head.weight.copy_(theirs.decoder[0].weight.flatten(1))
        ours.head.bias.copy_(theirs.decoder[0].bias)
    x = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    hidden = hide_units(2, encoder.patches.grid(24, 24), 2, 0.6, torch.Generator().manual_seed(4))
    with torch.no_grad():
        found, expected = ours(x, hidden), theirs(x, bool_masked_pos=hidden)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pixels, expected.reconstruction, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("grid", "unit", "ratio"), [((48, 48), 8, 0.6), ((12, 12), 2, 0.6), ((5, 7), 2, 0.3)])
def test_masks_hide_whole_units_and_as_many_as_the_ratio_says(grid: tuple[int, int], unit: int, ratio: float) -> None:
    down, across = math.ceil(grid[0] / unit), math.ceil(grid[1] / unit)
    for seed in range(100):
        mask = hide_units(1, grid, unit, ratio, torch.Generator().manual_seed(seed)).view(grid)
        units = mask[::unit, ::unit]
        assert int(units.sum()) == math.ceil(ratio * down * across)
        assert torch.equal(units.repeat_interleave(unit, 0).repeat_interleave(unit, 1)[: grid[0], : grid[1]], mask)


@pytest.mark.parametrize(
    ("error", "of"), [("l1", abs), ("l2", lambda far: far**2), ("smooth_l1", lambda far: far**2 / 2 if abs(far) < 1 else abs(far) - 0.5)]
)
def test_the_loss_is_the_mean_error_of_hidden_pixels(error: PixelError, of: Callable[[float], float]) -> None:
    x, y = torch.randn(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    mask = (torch.rand(2, 1, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    far = (x - y)[mask.expand_as(x) == 1].tolist()
    expected = torch.tensor(sum(map(of, far)) / len(far))
    torch.testing.assert_close(masked_error(x, y, mask, error), expected, rtol=1e-5, atol=1e-6)


def test_every_error_that_may_be_chosen_is_known() -> None:
    assert set(ERRORS) == set(get_args(PixelError))


STEM = StemSettings(patch=1, width=8, depths=(1, 1))


def model(stem: StemSettings | None) -> tuple[SimMIM, Tensor, Tensor]:
    about = VitSettings(
        width=24, depth=1, heads=3, patch=2, stem=stem, grid=(3, 4), mask_token=True, positions="none", relation="relative_bias"
    )
    made = randomised(SimMIM(build_encoder(about, torch.Generator().manual_seed(0))), 1)
    hidden = torch.zeros(2, 12, dtype=torch.bool)
    hidden[0, [1, 6]] = hidden[1, 4] = True
    return made, torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(3)), hidden


@pytest.mark.parametrize("stem", [None, STEM], ids=["linear", "convolutions"])
def test_the_encoder_does_not_see_what_is_hidden_and_visible_pixels_are_not_judged(stem: StemSettings | None) -> None:
    made, x, hidden = model(stem)
    changed = x.clone()
    changed[0, :, :2, 2:4] += 5  # patch 1 of the first picture
    assert torch.equal(made(x, hidden).pixels, made(changed, hidden).pixels)
    drawn = made(x, hidden).pixels.detach().requires_grad_()
    pixels = made.hidden_pixels(hidden, 6, 8)
    masked_error(x, drawn, pixels).backward()
    assert drawn.grad is not None
    assert not drawn.grad[pixels.expand_as(x) == 0].any() and drawn.grad[pixels.expand_as(x) == 1].all()


def test_what_is_cropped_is_neither_drawn_nor_judged() -> None:
    about = VitSettings(width=24, depth=1, heads=3, patch=2, grid=(3, 4), mask_token=True, fitting="crop")
    made = randomised(SimMIM(build_encoder(about, torch.Generator().manual_seed(0))), 1)
    x = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(3))
    hidden = hide_units(2, made.encoder.patches.grid(7, 9), 1, 0.5, torch.Generator().manual_seed(4))
    whole, cut = made(x, hidden), made(x[..., :6, :8], hidden)
    assert whole.pixels.shape == x.shape and not whole.pixels[..., 6:, :].any() and not whole.pixels[..., 8:].any()
    assert torch.equal(whole.pixels[..., :6, :8], cut.pixels)
    torch.testing.assert_close(whole.loss, cut.loss)
    assert made.hidden_pixels(hidden, 7, 9).sum() == 4 * hidden.sum()


def test_an_encoder_without_a_mask_token_is_refused() -> None:
    with pytest.raises(ValueError, match="needs an encoder with a mask token"):
        SimMIM(build_encoder(VitSettings(width=24, depth=1, heads=3, patch=2, grid=(3, 4)), torch.Generator()))
