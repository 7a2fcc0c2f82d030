"""Lookup-free quantization: signs as codes, entropies against brute force over all codes."""

import math

import pytest
import torch

from worldloom.tokenizers.quantizers.build import build_quantizer
from worldloom.tokenizers.quantizers.code_entropy import entropy
from worldloom.tokenizers.quantizers.codebooks import Upkeep
from worldloom.tokenizers.quantizers.lfq_quantizer import LfqQuantizer, bit_entropy, mean_probability
from worldloom.tokenizers.quantizers.settings import Lfq

QUIET = Upkeep(place_after=-1, restart_every=0, least_use=0)
B, D, H, W = 2, 6, 5, 3


def quantizer(bits: int = D, **options: float) -> LfqQuantizer:
    return LfqQuantizer(bits, QUIET, **options)


def data(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def softmax_over_codes(z_ND: torch.Tensor, temperature: float) -> torch.Tensor:
    """[N, 2^D] in float64: softmax of minus the squared distance to every code over the temperature."""
    codes = torch.arange(2 ** z_ND.shape[1])
    corners = torch.stack([2 * (codes // 2**bit % 2) - 1 for bit in range(z_ND.shape[1])], dim=1).double()
    return (-(z_ND.double()[:, None] - corners).square().sum(-1) / temperature).softmax(-1)


def test_a_code_is_the_signs_of_its_channels_lowest_first_and_zero_counts_as_minus_one() -> None:
    z = torch.tensor([[0.3, -2.0, 0.0], [-0.1, 5.0, 1e-9]]).view(2, 3, 1, 1)
    assert quantizer(3).encode(z).flatten().tolist() == [0b001, 0b110]
    assert quantizer(3).eval()(z).z[0].flatten().tolist() == pytest.approx([1, -1, -1])


@pytest.mark.parametrize("bits", [1, 5, 18])
def test_every_code_comes_back_from_its_vector(bits: int) -> None:
    lfq = quantizer(bits)
    codes = torch.arange(lfq.codebook_size).view(1, -1)
    assert lfq.codebook_size == 2**bits
    assert torch.equal(lfq.encode(lfq.decode(codes)), codes)


@pytest.mark.parametrize("temperature", [0.01, 0.7, 5.0])
def test_the_entropy_of_a_vectors_code_is_the_sum_over_its_bits(temperature: float) -> None:
    z_ND = data(40, D, scale=0.3)
    p = softmax_over_codes(z_ND, temperature)
    brute = -(p * p.clamp(min=1e-300).log()).sum(-1)
    torch.testing.assert_close(bit_entropy(4 * z_ND / temperature).sum(-1).double(), brute, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [1, 5, 6])
def test_the_mean_probability_is_that_of_all_codes(bits: int) -> None:
    z_ND = data(40, bits, scale=0.3)
    torch.testing.assert_close(mean_probability(4 * z_ND / 0.5).double(), softmax_over_codes(z_ND, 0.5).mean(0), atol=1e-6, rtol=0)


def test_the_entropy_of_the_mean_is_below_the_sum_over_bits_where_bits_hang_together() -> None:
    z_ND = data(64, 1).repeat(1, 2)  # the second bit repeats the first
    joint = entropy(mean_probability(400 * z_ND))
    one = entropy(mean_probability(400 * z_ND[:, :1]))
    assert joint.item() == pytest.approx(one.item(), abs=1e-4)
    assert joint.item() < 2 * one.item() - 0.5


def test_the_loss_and_its_gradient_equal_the_formula_over_all_codes() -> None:
    lfq = quantizer(commitment=0.3, entropy_weight=0.2, diversity=0.7, temperature=0.9)
    z = data(B, D, H, W, scale=0.5).requires_grad_()
    out = lfq(z)
    (found,) = torch.autograd.grad(out.loss, z)
    exact = z.detach().double().requires_grad_()
    z_ND = exact.movedim(1, -1).reshape(-1, D)
    p = softmax_over_codes(z_ND, 0.9)
    mean = p.mean(0)
    spread = -(p * p.log()).sum(-1).mean() + 0.7 * (mean * mean.log()).sum()
    signs = torch.where(z_ND > 0, 1.0, -1.0).double()
    loss = 0.3 * (z_ND - signs).square().mean() + 0.2 * spread
    (expected,) = torch.autograd.grad(loss, exact)
    assert out.loss.item() == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-4)


def test_the_published_weights_are_the_defaults() -> None:
    made = build_quantizer(Lfq(bits=4), 16, seed=0, generator=torch.Generator())
    assert isinstance(made, LfqQuantizer) and made.codebook_size == Lfq(bits=4).codes() == 16
    assert (made.commitment, made.entropy_weight, made.diversity, made.temperature) == (0.25, 0.1, 1.0, 0.01)


def test_each_setting_reaches_the_loss() -> None:
    settings = Lfq(bits=3, commitment=0.5, entropy_weight=0.4, diversity=0.2, temperature=0.3)
    made = build_quantizer(settings, 8, seed=0, generator=torch.Generator())
    assert isinstance(made, LfqQuantizer)
    assert (made.commitment, made.entropy_weight, made.diversity, made.temperature) == (0.5, 0.4, 0.2, 0.3)


def test_the_decoders_gradient_reaches_the_encoder_unchanged() -> None:
    lfq, z, towards = quantizer(), data(B, D, 7).requires_grad_(), data(B, D, 7)
    (gradient,) = torch.autograd.grad(lfq(z).z, z, towards)
    assert torch.equal(gradient, towards)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e4])
def test_loss_and_gradient_are_finite_for_vectors_of_any_length(scale: float) -> None:
    z = data(B, 14, 9, scale=scale).requires_grad_()
    loss = quantizer(14)(z).loss
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite() and gradient.isfinite().all()


def test_a_quarter_of_a_million_codes_need_no_table_of_vectors_by_codes() -> None:
    """2,048 vectors x 2^18 probabilities would be 2 GiB; what is kept for the backward pass is counted."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    z = data(2, 18, 1024).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = quantizer(18)(z).loss
    loss.backward()
    assert kept < 100 << 20 and z.grad is not None


def test_it_counts_in_training_alone() -> None:
    lfq = quantizer(2)
    lfq.eval()(data(1, 2, 5))
    assert int(lfq.statistics.updates) == 0
    lfq.train()(torch.ones(1, 2, 5))
    assert int(lfq.statistics.updates) == 1 and (lfq.statistics.idle_K == 0).tolist() == [False, False, False, True]


@pytest.mark.parametrize("grid", [(12,), (3, 4), (3, 2, 2)])
def test_the_grid_does_not_matter(grid: tuple[int, ...]) -> None:
    z, lfq = data(2, D, 12), quantizer()
    codes = lfq.encode(z.view(2, D, *grid))
    assert codes.shape == (2, *grid) and torch.equal(codes.reshape(2, 12), lfq.encode(z))
    assert torch.equal(lfq.decode(codes).reshape(2, D, 12), lfq.decode(lfq.encode(z)))
    assert lfq(z.view(2, D, *grid)).loss.item() == pytest.approx(lfq(z).loss.item(), rel=1e-5)


def test_uniform_chances_have_the_entropy_of_all_codes() -> None:
    assert entropy(mean_probability(torch.zeros(3, 5))).item() == pytest.approx(5 * math.log(2), rel=1e-6)


def test_bits_and_codes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 20 bits, got 21"):
        quantizer(21)
    with pytest.raises(ValueError, match=r"0 \.\. 3, got 4 \.\. 4"):
        quantizer(2).decode(torch.tensor([[4]]))
