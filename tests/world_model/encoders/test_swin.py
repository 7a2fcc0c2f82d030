"""Swin against transformers' own, and the laws that it obeys."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from worldloom.world_model.encoders.swin import SIZES, Swin

WIDTH, DEPTHS, HEADS, WINDOW, PATCH = 8, (2, 3), (2, 4), 3, 2


def randomised(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def swin(**changes: Any) -> Swin:
    form: dict[str, Any] = {"depths": DEPTHS, "heads": HEADS, "window": WINDOW, **changes}
    return randomised(Swin(3, PATCH, WIDTH, **form, generator=torch.Generator().manual_seed(0)), 1)


def theirs(size: tuple[int, int]) -> nn.Module:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=size, patch_size=PATCH, embed_dim=WIDTH, depths=list(DEPTHS), num_heads=list(HEADS), window_size=WINDOW, drop_path_rate=0
    )
    return randomised(SwinModel(config), 7)


def names() -> dict[str, tuple[str, ...]]:
    """Ours -> theirs; several of theirs stand one above the other."""
    pairs = {"patches": ("embeddings.patch_embeddings.projection",), "patch_norm": ("embeddings.norm",), "norm": ("layernorm",)}
    table: dict[str, tuple[str, ...]] = {}
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            ours, its = f"stages.{stage}.blocks.{block}", f"encoder.layers.{stage}.blocks.{block}"
            pairs |= {
                f"{ours}.attention_norm": (f"{its}.layernorm_before",),
                f"{ours}.qkv": tuple(f"{its}.attention.{part}_proj" for part in "qkv"),
                f"{ours}.out": (f"{its}.attention.o_proj",),
                f"{ours}.mlp_norm": (f"{its}.layernorm_after",),
                f"{ours}.up": (f"{its}.mlp.fc1",),
                f"{ours}.down": (f"{its}.mlp.fc2",),
            }
            table[f"{ours}.offsets"] = (f"{its}.attention.relative_position_bias.relative_position_bias_table",)
        if stage + 1 < len(DEPTHS):
            pairs[f"stages.{stage}.merging.norm"] = (f"encoder.layers.{stage}.downsample.norm",)
            table[f"stages.{stage}.merging.reduction.weight"] = (f"encoder.layers.{stage}.downsample.reduction.weight",)
    return table | {f"{a}.{part}": tuple(f"{b}.{part}" for b in bs) for a, bs in pairs.items() for part in ("weight", "bias")}


def copied(source: nn.Module, target: Swin) -> None:
    state = source.state_dict()
    assert sorted(each for parts in names().values() for each in parts) == sorted(state)
    target.load_state_dict({name: torch.cat([state[each] for each in parts]) for name, parts in names().items()})


@pytest.mark.parametrize(
    "size", [(24, 24), (23, 29), (20, 26), (12, 12)], ids=["divided", "padded patches", "padded windows", "one window"]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)], ids=["fp32", "fp64"])
def test_transformers_gives_the_same_hidden_states(size: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    its, ours = theirs(size), swin()
    copied(its, ours)
    its, ours = its.to(dtype), ours.to(dtype)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3)).to(dtype)
    with torch.no_grad():
        out = its(x, output_hidden_states=True)
        found = list(ours.grids(x))
        features = ours(x)
    for mine, expected in zip(found, out.hidden_states, strict=True):
        torch.testing.assert_close(mine.flatten(1, 2), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(features.tokens, out.last_hidden_state, rtol=0, atol=tolerance)
    torch.testing.assert_close(features.pooled, out.pooler_output, rtol=0, atol=tolerance)


def test_transformers_gives_the_same_gradients() -> None:
    its, ours = theirs((24, 24)), swin()
    copied(its, ours)
    one = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(3)).requires_grad_()
    other = one.detach().clone().requires_grad_()
    weight = torch.randn(2, 36, 16, generator=torch.Generator().manual_seed(4))
    (ours(one).tokens * weight).sum().backward()
    (its(other).last_hidden_state * weight).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    for name, parts in names().items():
        expected = torch.cat([its.get_parameter(each).grad for each in parts])  # type: ignore[misc]
        torch.testing.assert_close(ours.get_parameter(name).grad, expected, rtol=1e-4, atol=1e-4)


def test_a_shifted_block_is_attention_over_all_cells_with_a_mask() -> None:
    block = swin().double().stages[0].blocks[1]
    x = torch.randn(1, 6, 9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    # Windows of the shifted grid: lines 1-3 and 4-0, of which 0 is not a neighbour of 5.
    window_of = [(at - 1) % 6 // 3 * 2 + (at == 0) for at in range(6)], [(at - 1) % 9 // 3 * 2 + (at == 0) for at in range(9)]
    cells = [(i, j) for i in range(6) for j in range(9)]
    scores_bias = torch.full((2, len(cells), len(cells)), -torch.inf, dtype=torch.float64)
    offsets = block.offsets.view(5, 5, 2)
    for q, (i, j) in enumerate(cells):
        for k, (m, n) in enumerate(cells):
            if (window_of[0][i], window_of[1][j]) == (window_of[0][m], window_of[1][n]):
                scores_bias[:, q, k] = offsets[i - m + 2, j - n + 2].detach()
    query, key, value = block.qkv(block.attention_norm(x)).view(1, 54, 3, 2, 4).permute(2, 0, 3, 1, 4)
    mixed = ((query @ key.mT / 2 + scores_bias).softmax(-1) @ value).transpose(1, 2).flatten(2)
    expected = x + block.out(mixed).view(1, 6, 9, WIDTH)
    expected = expected + block.down(F.gelu(block.up(block.mlp_norm(expected))))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-9)


def test_a_small_picture_leaves_later_outputs_as_they_were() -> None:
    ours = swin()
    x = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = ours(x)
        small = ours(x[..., :3, :5])
        after = ours(x)
    assert small.tokens.shape == (1, 2, 16) and small.tokens.isfinite().all()
    assert torch.equal(before.tokens, after.tokens) and torch.equal(before.pooled, after.pooled)


def test_a_cell_alone_among_barred_padding_sees_itself_only() -> None:
    x = torch.randn(1, 4, 4, WIDTH, generator=torch.Generator().manual_seed(5))
    for barred in (False, True):
        block = swin(mask_padding=barred).stages[0].blocks[0]  # windows of 3 over 4 x 4 cells: the last cell has one for itself
        _, _, value = block.qkv(block.attention_norm(x[:, 3, 3])).chunk(3, dim=-1)
        alone = x[:, 3, 3] + block.out(value)
        alone = alone + block.down(F.gelu(block.up(block.mlp_norm(alone))))
        assert torch.allclose(block(x)[:, 3, 3], alone, atol=1e-5) is barred


def test_tiny_has_the_known_number_of_parameters() -> None:
    size = SIZES["tiny"]
    with torch.device("meta"):
        encoder = Swin(3, 4, size.width, size.depths, size.heads)
    assert sum(each.numel() for each in encoder.parameters()) + 1000 * encoder.width + 1000 == 28_288_354
    assert (encoder.width, encoder.stride) == (768, 32)


def test_what_is_hidden_cannot_be_seen() -> None:
    ours = swin(mask_token=True)
    x = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(3)).requires_grad_()
    hidden = torch.zeros(2, 24, dtype=torch.bool)
    hidden[:, 7] = True  # the second row's second patch
    ours(x, hidden).tokens.sum().backward()
    assert x.grad is not None
    assert not x.grad[:, :, 2:4, 2:4].any() and x.grad[:, :, :2].any()
    with pytest.raises(ValueError, match="has no mask token"):
        swin()(x, hidden)


def test_first_weights_follow_the_generator_and_the_paper() -> None:
    one, same = (Swin(3, 2, 16, (2,), (2,), generator=torch.Generator().manual_seed(3)) for _ in range(2))
    for mine, its in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, its)
    offsets = one.stages[0].blocks[0].offsets
    assert offsets.abs().max() <= 0.04 and 0.01 < offsets.std() < 0.03 and not one.stages[0].blocks[0].qkv.bias.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": (3, 4)}, r"width \(8\) must be a multiple of heads \(3\)"), ({"heads": (2,)}, "2 depths and 1 numbers of heads")],
)
def test_parts_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swin(**changes)
