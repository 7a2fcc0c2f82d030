"""The transformer is the graph of Qwen3, the same packed as alone, and the same again from its folder."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from worldloom.world_model.attention import PackedAttention
from worldloom.world_model.example import Choice, Example, Run
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.load import from_pretrained, save_pretrained
from worldloom.world_model.transformer import Shape, WorldModel
from worldloom.world_model.vocabulary import Vocabulary, code_stream

SHAPE = Shape(vocab_size=23, width=16, depth=2, heads=4, kv_heads=2, ff=24, head_width=8, rope_theta=500.0)
RUNS = (Run(2, 4), Run(1, 9))
TOKENS = torch.randint(23, (17,), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.cat([torch.arange(4), torch.arange(4), torch.arange(9)])


def random_model(shape: Shape = SHAPE) -> WorldModel:
    generator = torch.Generator().manual_seed(1)
    model = WorldModel(shape, generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)  # norms too, so that none can stand for another
    return model


def test_logits_are_those_of_qwen3_with_the_same_weights() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = random_model()
    E, H, K = SHAPE.head_width, SHAPE.heads, SHAPE.kv_heads
    weights = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm, "lm_head.weight": model.output}
    for n, block in enumerate(model.blocks):
        ours = dict(block.named_parameters())
        query, key, value = torch.split(ours["qkv"], [H * E, K * E, K * E])
        gate, up = ours["gate_up"].chunk(2)
        theirs = {
            "input_layernorm": ours["attention_norm"],
            "post_attention_layernorm": ours["ff_norm"],
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": ours["out"],
            "self_attn.q_norm": ours["query_norm"],
            "self_attn.k_norm": ours["key_norm"],
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": ours["down"],
        }
        weights |= {f"model.layers.{n}.{name}.weight": weight for name, weight in theirs.items()}
    config = Qwen3Config(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=E,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        rms_norm_eps=SHAPE.norm_eps,
        tie_word_embeddings=False,
    )
    oracle = Qwen3ForCausalLM(config).eval()
    oracle.load_state_dict(weights)  # strict: every weight of theirs has one of ours
    document = TOKENS[8:]
    with torch.no_grad():
        expected = oracle(document[None], use_cache=False).logits[0]
        found = model.logits(model(document, torch.arange(9), PackedAttention((Run(1, 9),))))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_packed_documents_get_the_logits_that_each_gets_alone() -> None:
    model = random_model()
    packed = model(TOKENS, POSITIONS, PackedAttention(RUNS))
    alone = [model(part, torch.arange(len(part)), PackedAttention((Run(1, len(part)),))) for part in torch.split(TOKENS, [4, 4, 9])]
    torch.testing.assert_close(packed, torch.cat(alone))


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_comes_back(tied: bool, tmp_path: Path) -> None:
    ids = Vocabulary((code_stream("view", "image", 23 - 6, shape=(2, 2)),), 0)
    model = random_model(Shape(**{**SHAPE.__dict__, "tied": tied}))
    save_pretrained(tmp_path, model, Grammar(ids))
    world = from_pretrained(tmp_path)
    assert world.vocabulary == ids and world.model.shape == model.shape
    assert all(torch.equal(ours, back) for ours, back in zip(model.parameters(), world.model.parameters(), strict=True))
    assert (world.model.output is world.model.embedding) is tied


def test_another_folder_is_not_taken_for_a_world_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": "vqgan"}')
    with pytest.raises(ValueError, match=r"does not hold a world model: its config\.json has no type 'world_model'"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 5}, "heads \\(5\\) must be a multiple of kv_heads \\(2\\)"), ({"head_width": 7}, "head_width \\(7\\) must be even")],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shape(**{**SHAPE.__dict__, **changes})


def test_bfloat16_stays_near_float32() -> None:
    model = random_model()
    wide = model(TOKENS, POSITIONS, PackedAttention(RUNS)).detach()
    narrow = model.bfloat16()(TOKENS, POSITIONS, PackedAttention(RUNS)).detach()
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - wide).norm() / wide.norm() < 0.05


def test_operations_are_those_that_torch_counts() -> None:
    """Where whole documents are seen: causal ones are counted half, plus the diagonal."""
    model, places = random_model(), torch.arange(0, 17, 2)
    tensors = (TOKENS, TOKENS, POSITIONS, torch.ones(17), TOKENS)
    choice = Choice("some", places, ((2, 5), (7, 18)), torch.zeros(9, dtype=torch.int64), None)
    example = Example(*tensors, tuple(run._replace(causal=False) for run in RUNS), (choice,))
    with FlopCounterMode(display=False) as counted:
        model.losses(example).total.backward()  # type: ignore[no-untyped-call]
    assert model.operations(example) == counted.get_total_flops()
    unseen = sum(run.documents * run.length * (run.length - 1) // 2 for run in RUNS)
    saved = model.operations(example) - model.operations(example._replace(runs=RUNS))
    assert saved == 12 * SHAPE.depth * SHAPE.heads * SHAPE.head_width * unseen


def test_what_is_computed_again_on_the_way_back_is_the_same_to_the_bit_and_need_not_be_kept() -> None:
    def gradients(recompute: bool) -> tuple[list[torch.Tensor], int]:
        model, kept = random_model().bfloat16(), 0
        model.recompute = recompute

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = model(TOKENS, POSITIONS, PackedAttention(RUNS))
        hidden.float().square().sum().backward()  # type: ignore[no-untyped-call]
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None], kept

    (plain, kept), (again, kept_again) = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)) and len(plain) == 2 * 8 + 2
    assert kept_again < kept / 4
