"""Attention by products, which CPUs take in bfloat16, against torch's fused one in float64."""

import pytest
import torch
import torch.nn.functional as F

from worldloom.world_model.encoders import attention
from worldloom.world_model.encoders.attention import attend
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.settings import SwinSettings, VitSettings


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BIASES = {"none": None, "scores": some(3, 2, 1, 3, 5, 7), "keys": some(4, 2, 1, 1, 1, 7) > -0.5}


@pytest.mark.parametrize("kind", [*BIASES, "causal"])
def test_by_products_it_is_the_fused_one_with_its_gradients(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    causal, bias = kind == "causal", BIASES.get(kind)
    made = []
    for by_products in (True, False):
        monkeypatch.setattr(attention, "_by_products", lambda query, key, way=by_products: way)
        rows = 7 if causal else 5
        given = [some(seed, 2, 4, 3, rows if seed == 0 else 7, 4).double().requires_grad_() for seed in range(3)]
        out = attend(*given, None if bias is None else bias if bias.dtype == torch.bool else bias.double(), causal)
        out.sin().sum().backward()  # type: ignore[no-untyped-call]
        made.append([out, *(each.grad for each in given)])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_bfloat16_takes_products_on_a_cpu_and_stays_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (some(seed, 2, 3, 9, 8) for seed in range(3))
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    found = attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert found.dtype == torch.bfloat16
    monkeypatch.undo()
    torch.testing.assert_close(found.float(), attend(query, key, value), rtol=0.05, atol=0.03)
    long = some(4, 1, 1, attention.LONGEST + 1, 2).bfloat16()
    with pytest.raises(TypeError, match="not callable"):
        monkeypatch.setattr(F, "scaled_dot_product_attention", None)
        attend(long, long, long)


@pytest.mark.parametrize(
    "about", [VitSettings(width=16, depth=2, heads=2, patch=4, grid=(3, 4)), SwinSettings(width=8, depths=(2, 1), heads=(2, 2), window=3)]
)
def test_an_encoder_in_bfloat16_stays_near_float32(about: VitSettings | SwinSettings) -> None:
    encoder, x = build_encoder(about, torch.Generator().manual_seed(0)).eval(), some(1, 2, 3, 12, 16)
    with torch.no_grad():
        exact = encoder(x).tokens
        rounded = encoder.bfloat16()(x.bfloat16()).tokens.float()
    assert float((rounded - exact).norm() / exact.norm()) < 0.02
