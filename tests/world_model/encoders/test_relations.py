"""Positions inside the attention, each against a loop over pairs or transformers' own, and the laws of attention pooling."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worldloom.world_model.encoders.attention_pool import AttentionPool
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.relative_bias import BucketBias, GridBias, bucket
from worldloom.world_model.encoders.relative_keys import RelativeKeys, TwoPhase
from worldloom.world_model.encoders.rotary import Rotary, axial_angles, turn
from worldloom.world_model.encoders.settings import StemSettings, SwinSettings, VitSettings

GRID, PREFIX, HEADS, E = (2, 3), 2, 3, 8
CELLS = list(itertools.product(range(GRID[0]), range(GRID[1])))


def some(seed: int = 0, tokens: int = PREFIX + 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, HEADS, tokens, E, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def randomised(module: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, generator=generator)
    return module


def expect(bias: Tensor, score: Any) -> None:
    """`bias` is `score(batch, head, query, key)` for pairs of patches, and zero for pairs with a prefix token."""
    bias = bias.expand(2, -1, -1, -1)
    for b, k, (q, key) in itertools.product(range(2), range(HEADS), itertools.product(range(6), repeat=2)):
        assert float(bias[b, k, PREFIX + q, PREFIX + key].detach()) == pytest.approx(float(score(b, k, q, key).detach()), abs=1e-9)
    assert not bias[:, :, :PREFIX].any() and not bias[:, :, :, :PREFIX].any()


def test_relative_keys_are_added_to_the_keys_of_pairs() -> None:
    relation, (query, key) = randomised(RelativeKeys(E, furthest=1)), some()

    def score(b: int, k: int, q: int, at: int) -> Tensor:
        down, across = (max(-1, min(1, CELLS[at][axis] - CELLS[q][axis])) for axis in (0, 1))
        return query[b, k, PREFIX + q] @ (relation.rows[down + 1] + relation.columns[across + 1]) / E**0.5

    expect(relation(query, key, GRID)[2], score)


def test_the_two_phases_are_a_loop_over_pairs() -> None:
    relation, (query, key) = randomised(TwoPhase(E, 6)), some()
    expect(relation(query, key, GRID)[2], lambda b, k, q, at: query[b, k, PREFIX + q] @ relation.table[q - at + 5] / E**0.5)
    nn.init.zeros_(relation.table)
    assert not relation(query, key, GRID)[2].any()
    with pytest.raises(ValueError, match="made for 6 patches, the picture has 8"):
        relation(query, key, (2, 4))


def test_buckets_are_those_of_t5() -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    offsets = torch.arange(-300, 301)
    for buckets, furthest in ((32, 128), (8, 20)):
        expected = T5Attention._relative_position_bucket(offsets, bidirectional=True, num_buckets=buckets, max_distance=furthest)
        assert torch.equal(bucket(offsets, buckets, furthest), expected)
    relation, (query, key) = randomised(BucketBias(HEADS, 8, 20)), some()
    expect(relation(query, key, GRID)[2], lambda b, k, q, at: relation.table[bucket(torch.tensor(at - q), 8, 20), k])


def test_a_grid_bias_is_read_by_offset_and_prefix_tokens_have_entries_of_their_own() -> None:
    relation, (query, key) = randomised(GridBias(HEADS, GRID)), some()
    bias = relation(query, key, GRID)[2]
    table = relation.table.view(3, 5, HEADS)
    for (q, (i, j)), (at, (m, n)) in itertools.product(enumerate(CELLS), repeat=2):
        assert torch.equal(bias[0, :, PREFIX + q, PREFIX + at], table[i - m + 1, j - n + 2])
    on, of, among = relation.prefix
    assert torch.equal(bias[0, :, 1, 3], on) and torch.equal(bias[0, :, 3, 1], of) and torch.equal(bias[0, :, 0, 1], among)


def test_a_constant_bias_stays_constant_on_another_grid() -> None:
    relation, (query, key) = GridBias(HEADS, GRID).double(), some(tokens=PREFIX + 20)
    nn.init.constant_(relation.table, 0.25)
    bias = relation(query, key, (4, 5))[2][:, :, PREFIX:, PREFIX:]
    torch.testing.assert_close(bias, torch.full((1, HEADS, 20, 20), 0.25, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("theta", [10_000.0, 1e7])
def test_rotary_angles_are_llamas(theta: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=16, num_attention_heads=1, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": theta})
    places = torch.tensor([0, 1, 5, 300])
    x = torch.randn(1, 1, 4, 16, generator=torch.Generator().manual_seed(0))
    cos, sin = LlamaRotaryEmbedding(config)(x, places[None])
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(turn(x, axial_angles(places[:, None], 16, theta)), expected, rtol=0, atol=1e-6)


def test_turning_keeps_norms_and_scores_depend_on_the_offset_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    query, key = (torch.randn(E, generator=generator, dtype=torch.float64) for _ in range(2))
    places = torch.tensor(CELLS, dtype=torch.float32)

    def scores(shift: tuple[float, float]) -> Tensor:
        angles = axial_angles(places + torch.tensor(shift), E, 100.0).double()
        turned = [turn(x.expand(6, E), angles) for x in (query, key)]
        torch.testing.assert_close(turned[0].norm(dim=1), query.norm().expand(6))
        return turned[0] @ turned[1].T

    torch.testing.assert_close(scores((0, 0)), scores((3, 7)), rtol=0, atol=1e-5)
    assert not torch.allclose(scores((0, 0)), scores((0, 0)).T)


def test_rotary_leaves_prefix_tokens_alone_and_scales_places_to_the_native_grid() -> None:
    query, key = some()
    turned, _, bias = Rotary(E)(query, key, GRID)
    assert bias is None and torch.equal(turned[:, :, :PREFIX], query[:, :, :PREFIX])
    assert not torch.allclose(turned[:, :, PREFIX + 1], query[:, :, PREFIX + 1])
    scaled = Rotary(E, native=(2, 6))(query, key, GRID)[0]
    angles = axial_angles(torch.tensor([[i, 2.0 * j] for i, j in CELLS]), E, 10_000.0)
    torch.testing.assert_close(scaled[:, :, PREFIX:], turn(query[:, :, PREFIX:], angles))
    with pytest.raises(ValueError, match="heads of a width that 4 divides, got 6"):
        Rotary(6)


@pytest.mark.parametrize("relation", ["rotary", "relative_bias", "buckets", "relative_keys", "two_phase"])
def test_an_encoder_with_a_relation_knows_where_patches_lie_and_attends_by_it(relation: Any) -> None:
    about = VitSettings(width=24, depth=2, heads=3, patch=2, grid=(2, 3), positions="none", relation=relation, registers=1)
    encoder = build_encoder(about, torch.Generator().manual_seed(0))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    assert not torch.allclose(encoder(x).pooled, encoder(x.flip(3)).pooled, atol=1e-3)
    weights = encoder.attention(x)  # type: ignore[operator]
    assert weights.shape == (2, 3, 8, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 8))
    # The weights are those that the last block really mixes with.
    *_, entering, _, last = encoder.hidden_states(x)  # type: ignore[operator]
    block = encoder.trunk.blocks[-1]  # type: ignore[union-attr]
    value = block.qkv(block.attention_norm(entering)).view(2, 8, 3, 3, 8)[:, :, 2].transpose(1, 2)
    mixed = entering + block.out((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(encoder.trunk.norm(mixed + block._thought(mixed)), last, rtol=0, atol=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "part", "side"),
    [
        ({"interpolation": "bilinear"}, "positions", 1),
        ({"antialias": True}, "positions", 1),
        ({"relation": "rotary", "theta": 100.0}, "trunk.blocks.0.relation", 2),
        ({"relation": "rotary", "native": (4, 6)}, "trunk.blocks.0.relation", 1),
        ({"relation": "relative_keys", "furthest": 1}, "trunk.blocks.0.relation", 2),
        ({"relation": "buckets", "furthest": 9}, "trunk.blocks.0.relation", 2),
    ],
)
def test_what_is_asked_of_positions_reaches_them_and_changes_what_they_say(changes: dict[str, Any], part: str, side: int) -> None:
    name, value = list(changes.items())[-1]
    usual = VitSettings(width=24, depth=1, heads=3, patch=2, grid=(4, 6), relation=changes.get("relation", "none"))
    one, other = (build_encoder(about, torch.Generator().manual_seed(0)) for about in (usual, usual.model_copy(update=changes)))
    for parameter in one.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    assert getattr(other.get_submodule(part), name) == value
    x = torch.randn(2, 3, 4 * side, 6 * side, generator=torch.Generator().manual_seed(3))  # of the grid where `side` is 2
    for own, its in zip(other.state_dict().values(), one.state_dict().values(), strict=True):
        before = (len(its) - len(own)) // 2  # of a table of offsets those that are left, about its middle
        own.copy_(its[before : before + len(own)])
    assert not torch.allclose(one(x).tokens, other(x).tokens, atol=1e-3)


def test_attention_pooling_is_torchs_attention_between_norms() -> None:
    pool = AttentionPool(12, 3, queries=4, context=20)
    for parameter in pool.parameters():
        nn.init.normal_(parameter, std=0.3)
    oracle = nn.MultiheadAttention(12, 3, kdim=20, vdim=20, batch_first=True)
    with torch.no_grad():
        for name in "query", "key", "value":
            getattr(oracle, f"{name[0]}_proj_weight").copy_(getattr(pool, name).weight)
        oracle.in_proj_bias.copy_(torch.cat([pool.query.bias, pool.key.bias, pool.value.bias]))
        oracle.out_proj.load_state_dict(pool.out.state_dict())
    tokens = torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(0))
    x, query = pool.context_norm(tokens), pool.query_norm(pool.queries).expand(2, -1, -1)
    torch.testing.assert_close(pool(tokens), pool.out_norm(oracle(query, x, x)[0]), rtol=0, atol=1e-5)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(pool(tokens[:, order]), pool(tokens), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"width \(12\) must be a multiple of heads \(5\)"):
        AttentionPool(12, 5)


def test_layer_scale_starts_branches_small_and_blocks_near_the_identity() -> None:
    about = VitSettings(width=24, depth=3, heads=3, patch=2, grid=(2, 3), layer_scale=1e-5)
    states = list(build_encoder(about, torch.Generator().manual_seed(0)).hidden_states(torch.randn(2, 3, 4, 6)))  # type: ignore[operator]
    torch.testing.assert_close(states[-2], states[0], rtol=0, atol=1e-3)
    assert not torch.equal(states[-2], states[0])


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        (VitSettings, {"heads": 5}, r"width \(384\) must be a multiple of heads \(5\)"),
        (VitSettings, {"class_token": False}, "there is no class token; set pooling to 'mean'"),
        (VitSettings, {"width": 18, "heads": 3, "relation": "rotary"}, "need heads of a width that 4 divides, got 6"),
        (VitSettings, {"width": 18, "heads": 3, "positions": "sine"}, "need a width that 4 divides, got 18"),
        (VitSettings, {"interpolation": "bilinear", "positions": "sine"}, "interpolation: of no use to positions 'sine' with relation"),
        (VitSettings, {"antialias": True, "positions": "none"}, "antialias: of no use"),
        (VitSettings, {"theta": 100.0, "native": (2, 3), "relation": "buckets"}, "theta, native: of no use .* 'buckets'; leave it out"),
        (VitSettings, {"furthest": 9, "relation": "rotary"}, "furthest: of no use"),
        (VitSettings, {"furthest": 8, "relation": "buckets"}, "the 8 nearest offsets have a bucket each, and furthest is 8; set it higher"),
        (VitSettings, {"patch": 8, "stem": StemSettings(patch=2)}, r"as large as the stem's stride: 4 \(stem.patch, .* not 8; set patch"),
        (SwinSettings, {"depths": (2, 2)}, "2 depths and 4 heads"),
        (SwinSettings, {"heads": (3, 6, 12, 25)}, r"width of stage 3 \(768\) must be a multiple of its heads \(25\)"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(form: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        form(**changes)
