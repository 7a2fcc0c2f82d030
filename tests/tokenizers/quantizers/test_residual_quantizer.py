"""Residual quantization: levels add up, errors fall, every level pulls at the encoder, and prefixes decode."""

from itertools import pairwise

import pytest
import torch

from worldloom.tokenizers.quantizers.build import build_quantizer
from worldloom.tokenizers.quantizers.codebooks import EmaCodebook, GradientCodebook, Upkeep
from worldloom.tokenizers.quantizers.residual_quantizer import ResidualQuantizer
from worldloom.tokenizers.quantizers.settings import Residual
from worldloom.tokenizers.quantizers.vector_quantizer import VectorQuantizer

K, D, L = 7, 3, 4
QUIET = Upkeep(place_after=-1, restart_every=0, least_use=0)


def quantizer(kind: type = EmaCodebook, upkeep: Upkeep = QUIET, dropout: float = 0.0) -> ResidualQuantizer:
    generator = torch.Generator().manual_seed(0)
    made = ResidualQuantizer([kind(K, D, upkeep, generator) for _ in range(L)], commitment=0.25, dropout=dropout)
    with torch.no_grad():
        for level, codebook in enumerate(made.codebooks):
            vectors = torch.randn((K, D), generator=generator) / 2**level
            (codebook.embedding_KD if kind is EmaCodebook else codebook.weight_KD).copy_(vectors)
    return made


def data(*grid: int, seed: int = 1) -> torch.Tensor:
    return torch.randn((2, D, *grid), generator=torch.Generator().manual_seed(seed))


def test_each_level_takes_the_code_nearest_to_what_is_left() -> None:
    made, z = quantizer().eval(), data(5)
    codes = made.encode(z)
    assert codes.shape == (2, 5, L)
    left = z.movedim(1, -1).double()
    for level, codebook in enumerate(made.codebooks):
        vectors = codebook.vectors().double()
        expected = (left[..., None, :] - vectors).square().sum(-1).argmin(-1)
        assert torch.equal(codes[..., level], expected)
        left = left - vectors[expected]
    torch.testing.assert_close(made.decode(codes).movedim(1, -1).double() + left, z.movedim(1, -1).double())


def test_the_sum_of_levels_is_what_is_decoded_and_a_prefix_is_a_coarser_copy() -> None:
    made, z = quantizer().eval(), data(4, 3)
    codes = made.encode(z)
    parts = [codebook.vectors()[codes[..., level]] for level, codebook in enumerate(made.codebooks)]
    for levels in range(1, L + 1):
        torch.testing.assert_close(made.decode(codes[..., :levels]), sum(parts[:levels]).movedim(-1, 1))
    torch.testing.assert_close(made(z).z, made.decode(codes))


def test_with_the_zero_vector_in_each_codebook_the_error_never_grows() -> None:
    made, z = quantizer().eval(), data(200)
    with torch.no_grad():
        for codebook in made.codebooks:
            codebook.embedding_KD[0] = 0
    codes = made.encode(z)
    errors = [(made.decode(codes[..., :levels]) - z).square().sum(1) for levels in range(1, L + 1)]
    assert all((later <= earlier + 1e-6).all() for earlier, later in pairwise(errors))


@pytest.mark.parametrize("level", range(L))
def test_every_level_pulls_at_the_encoder_by_its_own_residual(level: int) -> None:
    made, z = quantizer().eval(), data(6).requires_grad_(True)
    made.commitment = 1.0
    whole = made(z).loss
    (gradient,) = torch.autograd.grad(whole, z)
    with torch.no_grad():
        codes, left, expected = made.encode(z), z.movedim(1, -1), torch.zeros(2, 6, D)
        pulls = []
        for each, codebook in enumerate(made.codebooks):
            left = left - codebook.vectors()[codes[..., each]]
            pulls.append(2 * left / left.numel() / L)
        expected = torch.stack(pulls).sum(0)
    assert pulls[level].abs().sum() > 0
    torch.testing.assert_close(gradient.movedim(1, -1), expected)


def test_the_decoders_gradient_reaches_the_encoder_unchanged() -> None:
    made, z = quantizer(), data(6).requires_grad_(True)
    made.commitment = 0.0
    towards = data(6, seed=5)
    (gradient,) = torch.autograd.grad(made(z).z, z, towards)
    assert torch.equal(gradient, towards)


def test_a_gradient_codebook_is_pulled_to_its_residuals() -> None:
    made, z = quantizer(GradientCodebook), data(50)
    found = made(z)
    gradients = torch.autograd.grad(found.loss, [codebook.weight_KD for codebook in made.codebooks])
    left = z.movedim(1, -1).reshape(-1, D)
    for level, (codebook, gradient) in enumerate(zip(made.codebooks, gradients, strict=True)):
        codes, vectors = found.codes.reshape(-1, L)[:, level], codebook.vectors().detach()
        expected = torch.zeros(K, D).index_add_(0, codes, 2 * (vectors[codes] - left) / left.numel() / L)
        torch.testing.assert_close(gradient, expected)
        left = left - vectors[codes]


def test_levels_are_placed_in_turn_and_until_then_vectors_pass_unquantized() -> None:
    made = build_quantizer(Residual(levels=3, code_width=D, place_after=2, least_use=0.0), K, 0, torch.Generator().manual_seed(0))
    assert isinstance(made, ResidualQuantizer)
    errors = []
    for step in range(14):
        z = data(100, seed=step)
        errors.append(float((made.train()(z).z - z).abs().max()))
    assert max(errors[:4]) < 1e-6 and errors[-1] > 0.1
    assert all(codebook.placed() for codebook in made.codebooks)
    z = data(400, seed=99)
    codes = made.eval().encode(z)
    error = [float((made.decode(codes[..., :levels]) - z).square().mean()) for levels in (1, 2, 3)]
    assert error[1] < 0.6 * error[0] and error[2] < 0.7 * error[1]


def test_dropout_leaves_a_share_of_the_samples_with_their_first_levels_and_is_a_function_of_the_update() -> None:
    made, z = quantizer(dropout=0.5), torch.randn((400, D, 1), generator=torch.Generator().manual_seed(2))
    other = quantizer(dropout=0.5)
    found = made.train()(z)
    assert torch.equal(found.z, other.train()(z).z)
    prefixes = torch.stack([quantizer().eval().decode(found.codes[..., :levels]) for levels in range(1, L + 1)])
    level = (prefixes - found.z[None]).abs().amax((2, 3)).argmin(0) + 1
    counts = torch.bincount(level, minlength=L + 1)[1:].tolist()
    assert counts[-1] == pytest.approx(400 * (0.5 + 0.5 / L), abs=40) and min(counts[:-1]) > 25
    torch.testing.assert_close(made.eval()(z).z, made.decode(made.encode(z)))


def test_statistics_are_those_of_the_level_that_uses_the_fewest_codes() -> None:
    made = quantizer(upkeep=QUIET._replace(window=1))
    with torch.no_grad():
        made.codebooks[2].embedding_KD.copy_(100 + torch.arange(K, dtype=torch.float32)[:, None])
    made.train()(data(300))
    assert made.statistics is made.codebooks[2].statistics


def test_one_level_is_a_plain_quantizer_and_other_codes_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    book = EmaCodebook(K, D, QUIET, generator)
    one, plain = ResidualQuantizer([book], 0.25, 0.0).eval(), VectorQuantizer(book, 0.25).eval()
    z = data(9)
    assert torch.equal(one.encode(z)[..., 0], plain.encode(z))
    torch.testing.assert_close(one(z).loss, plain(z).loss)
    with pytest.raises(ValueError, match=r"codes have 1 to 4 levels as their last axis, got \(2, 5\)"):
        quantizer().decode(torch.zeros(2, 5, dtype=torch.int64))


@pytest.mark.parametrize("grid", [(12,), (3, 4), (3, 2, 2)])
def test_the_grid_does_not_matter(grid: tuple[int, ...]) -> None:
    z = data(12)
    for made in (quantizer(), VectorQuantizer(EmaCodebook(K, D, QUIET, torch.Generator().manual_seed(3)))):
        made.eval()
        expected = made.encode(z)
        found = made.encode(z.view(2, D, *grid))
        assert torch.equal(found.reshape(expected.shape), expected)
        assert torch.equal(made.decode(found).reshape(2, D, 12), made.decode(expected))
        assert made(z.view(2, D, *grid)).z.shape == (2, D, *grid)
