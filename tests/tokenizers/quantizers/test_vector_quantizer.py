import pytest
import torch

from worldloom.tokenizers.quantizers.build import build_quantizer
from worldloom.tokenizers.quantizers.code_entropy import code_entropy
from worldloom.tokenizers.quantizers.codebooks import EmaCodebook, GradientCodebook, Upkeep
from worldloom.tokenizers.quantizers.settings import Ema, Gradient
from worldloom.tokenizers.quantizers.vector_quantizer import VectorQuantizer

QUIET = Upkeep(place_after=-1, restart_every=0, least_use=0)
B, K, D, H, W = 2, 7, 3, 5, 4


def quantizer(kind: type[EmaCodebook] | type[GradientCodebook] = GradientCodebook, upkeep: Upkeep = QUIET) -> VectorQuantizer:
    generator = torch.Generator().manual_seed(0)
    codebook = kind(K, D, upkeep, generator)
    with torch.no_grad():
        (codebook.weight_KD if isinstance(codebook, GradientCodebook) else codebook.embedding_KD).normal_(generator=generator)
    return VectorQuantizer(codebook)


def features() -> torch.Tensor:
    return torch.randn((B, D, H, W), generator=torch.Generator().manual_seed(9)).requires_grad_()


def test_the_encoder_gets_the_decoders_gradient_and_the_commitment() -> None:
    vq, z = quantizer(), features()
    upstream = torch.randn((B, D, H, W), generator=torch.Generator().manual_seed(3))
    out = vq(z)
    ((out.z * upstream).sum() + out.loss).backward()
    assert z.grad is not None
    e = vq.decode(out.codes).detach()
    assert torch.allclose(z.grad, upstream + 2 * 0.25 * (z.detach() - e) / z.numel(), atol=1e-6)


def test_beta_stands_on_the_commitment_and_not_on_the_codebook() -> None:
    vq, z = quantizer(), features()
    out = vq(z)
    out.loss.backward()
    e = vq.decode(out.codes).detach()
    weight = vq.codebook.weight_KD
    assert isinstance(weight, torch.nn.Parameter) and weight.grad is not None and z.grad is not None
    chosen = torch.nn.functional.one_hot(out.codes, K).double()
    pull = torch.einsum("bhwk,bdhw->kd", chosen, (e - z.detach()).double()) * 2 / z.numel()
    assert torch.allclose(weight.grad.double(), pull, atol=1e-6)
    assert torch.allclose(z.grad, 2 * 0.25 * (z.detach() - e) / z.numel(), atol=1e-7)


def test_codes_become_their_vectors() -> None:
    vq, z = quantizer(EmaCodebook).eval(), features()
    out = vq(z)
    assert torch.allclose(out.z, vq.decode(out.codes), atol=1e-6)
    assert torch.equal(out.codes, vq.encode(z))
    assert out.codes.shape == (B, H, W)


@pytest.mark.parametrize("kind", [EmaCodebook, GradientCodebook])
def test_eval_mode_changes_no_buffer(kind: type[EmaCodebook] | type[GradientCodebook]) -> None:
    vq = quantizer(kind, Upkeep(place_after=0)).eval()
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    for _ in range(3):
        vq(features())
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


def test_vectors_pass_unquantized_until_codes_are_placed() -> None:
    vq = quantizer(EmaCodebook, Upkeep(place_after=1, least_use=0)).train()
    z = features()
    first, second, third = vq(z), vq(z), vq(z)
    assert torch.equal(first.z, z) and torch.equal(second.z, z) and first.loss.item() == 0
    assert not torch.equal(third.z, z) and third.loss.item() > 0


def test_averages_leave_the_codebook_without_a_loss() -> None:
    vq, z = quantizer(EmaCodebook), features()
    out = vq(z)
    e = vq.eval()(z).z  # after the update
    assert out.loss.item() == pytest.approx(0.25 * (z - out.z).square().mean().item(), rel=1e-4)
    assert not torch.equal(e, out.z)


def test_it_stays_float32_under_autocast_and_for_bfloat16_features() -> None:
    vq = quantizer(EmaCodebook).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vq(features().bfloat16())
    assert out.z.dtype == out.loss.dtype == torch.float32


def test_the_entropies_come_on_top_of_the_loss_in_training_alone_and_leave_the_codes_as_they_are() -> None:
    z = features()
    plain, even = quantizer(), quantizer()
    even.entropy_weight, even.entropy_temperature = 0.3, 2.0
    each, together = code_entropy(z.movedim(1, -1).reshape(-1, D), even.codebook.vectors(), plain.encode(z).flatten(), 2.0)
    before, after = plain(z), even(z)
    assert after.loss.item() == pytest.approx((before.loss + 0.3 * (each - together)).item(), rel=1e-6)
    assert torch.equal(before.codes, after.codes) and torch.equal(before.z, after.z)
    assert torch.equal(plain.eval()(z).loss, even.eval()(z).loss)


@pytest.mark.parametrize("kind", [EmaCodebook, GradientCodebook])
def test_an_encoder_learns_to_use_codes_evenly(kind: type[EmaCodebook] | type[GradientCodebook]) -> None:
    """Vectors that all choose one code spread over most of the codes when only the entropies move them."""
    vq = quantizer(kind).train()
    vq.commitment, vq.codebook_weight, vq.entropy_weight = 0.0, 0.0, 1.0
    z = (0.3 * features()).detach().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    vq.codebook.update = lambda *_: None  # type: ignore[method-assign]
    first = len(vq.encode(z).unique())
    for _ in range(100):
        optimizer.zero_grad()
        vq(z).loss.backward()
        optimizer.step()
    assert len(vq.encode(z).unique()) > first and len(vq.encode(z).unique()) >= K - 1


@pytest.mark.parametrize(
    "codes, message", [(torch.tensor([[[7]]]), r"0 \.\. 6, got 7 \.\. 7"), (torch.tensor([[[0.5]]]), "codes are integers")]
)
def test_codes_out_of_range_are_refused(codes: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantizer().decode(codes)


@pytest.mark.parametrize("kind", ["ema", "gradient"])
def test_cosine_codes_are_those_of_the_smallest_angle_and_of_length_one(kind: str) -> None:
    settings = {"ema": Ema, "gradient": Gradient}[kind](code_width=5, place_after=-1, cosine=True)
    quantizer = build_quantizer(settings, 11, 0, torch.Generator().manual_seed(0))
    z = torch.randn(3, 5, 4, 2, generator=torch.Generator().manual_seed(1))
    vectors = quantizer.codebook.vectors().detach().double()  # type: ignore[attr-defined]
    rows = z.movedim(1, -1).reshape(-1, 5).double()
    cosines = (rows / rows.norm(dim=1, keepdim=True)) @ (vectors / vectors.norm(dim=1, keepdim=True)).T
    codes = quantizer.encode(z)
    assert torch.equal(codes.flatten(), cosines.argmax(1))
    scale = torch.rand(3, 1, 4, 2) + 0.5
    assert torch.equal(quantizer.encode(z * scale), codes), "lengths do not count"
    torch.testing.assert_close(quantizer.decode(codes).norm(dim=1), torch.ones(3, 4, 2))


def test_the_gradient_of_cosine_codes_turns_vectors_and_does_not_stretch_them() -> None:
    settings = Ema(code_width=5, place_after=-1, cosine=True)
    quantizer = build_quantizer(settings, 11, 0, torch.Generator().manual_seed(0))
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    made = quantizer(z)
    (made.z * torch.randn(made.z.shape)).sum().add(made.loss).backward()
    assert z.grad is not None and z.grad.abs().max() > 0.1
    torch.testing.assert_close((z.grad * z).sum(1), torch.zeros(3, 4), atol=1e-5, rtol=0)
