from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldloom.tokenizers import perceptual
from worldloom.tokenizers.perceptual import lpips_perceptual, random_perceptual

TINY = (((0, 4), (2, 5)), ((5, 6),))  # stands in for VGG16, whose 59 MB say no more


def pictures(seed: int) -> torch.Tensor:
    return torch.rand((2, 3, 16, 24), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def lpips_file(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    shapes = {"features.0": (4, 3), "features.2": (5, 4), "features.5": (6, 5)}
    weights = {f"{name}.weight": torch.randn((*shape, 3, 3), generator=generator) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0], generator=generator) for name, shape in shapes.items()}
    weights |= {f"lin{index}.model.1.weight": torch.rand((1, width, 1, 1), generator=generator) for index, width in enumerate((5, 6))}
    save_file(weights, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def test_it_is_a_distance() -> None:
    loss, a, b = random_perceptual(), pictures(1), pictures(2)
    assert loss(a, a).item() == 0
    assert loss(a, b).item() == pytest.approx(loss(b, a).item()) and loss(a, b).item() > 0


def test_it_is_frozen_and_the_same_every_time() -> None:
    first, second = random_perceptual(), random_perceptual()
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert torch.equal(first(pictures(1), pictures(2)), second(pictures(1), pictures(2)))
    assert first.name == "random_vgg"


def test_gradients_reach_the_pictures() -> None:
    x = pictures(1).requires_grad_()
    random_perceptual()(x, pictures(2)).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_lpips_weights_are_used_as_lpips_uses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "VGG16", TINY)
    loss, a, b = lpips_perceptual(lpips_file(tmp_path)), pictures(1), pictures(2)
    weights = load_file(tmp_path / "weights.safetensors")

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        conv = torch.nn.functional.conv2d
        x = conv(x, weights["features.0.weight"], weights["features.0.bias"], padding=1).relu()
        first = conv(x, weights["features.2.weight"], weights["features.2.bias"], padding=1).relu()
        second = conv(torch.nn.functional.max_pool2d(first, 2), weights["features.5.weight"], weights["features.5.bias"], padding=1).relu()
        return [f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in (first, second)]

    expected = sum(
        ((left - right) ** 2 * weights[f"lin{index}.model.1.weight"]).sum(1).mean()
        for index, (left, right) in enumerate(zip(features(a), features(b), strict=True))
    )
    assert loss(a, b).item() == pytest.approx(float(expected), rel=1e-4)
    assert loss.name == "lpips_vgg"


def test_a_file_without_the_known_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"features\.0\.weight has the shape \(4, 3, 3, 3\), expected \(64, 3, 3, 3\)"):
        lpips_perceptual(lpips_file(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"features\.0\.weight is missing"):
        lpips_perceptual(tmp_path / "other.safetensors")
