import math

import pytest
import torch

from worldloom.tokenizers.quantizers.codebooks import Upkeep
from worldloom.tokenizers.quantizers.fsq_quantizer import FsqQuantizer

PRESETS = [(8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5)]


def quantizer(*levels: int) -> FsqQuantizer:
    return FsqQuantizer(levels, Upkeep(place_after=-1, restart_every=0, least_use=0.0))


@pytest.mark.parametrize("levels", PRESETS)
def test_every_code_comes_back_from_its_vector(levels: tuple[int, ...]) -> None:
    fsq = quantizer(*levels)
    codes = torch.arange(math.prod(levels)).view(1, 1, -1)
    vectors = fsq.decode(codes)
    assert vectors.abs().max() <= 1
    # The vector as a rounded channel, and the same through the encoder's side of the bound.
    half = torch.tensor([count // 2 for count in levels]).view(1, -1, 1, 1)
    assert torch.equal(fsq._codes((vectors * half).round().movedim(1, -1)), codes)
    bounded = (vectors * half).double().movedim(1, -1)
    z = ((bounded + fsq.offset_D.double()) / fsq.half_D.double()).atanh() - fsq.shift_D.double()
    assert torch.equal(fsq.encode(z.movedim(-1, 1).float()), codes)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 25, 26, 44, 255, 256])
def test_a_channel_reaches_each_of_its_levels_and_no_other(count: int) -> None:
    fsq = quantizer(count, 5)
    z = torch.zeros(1, 2, 1, 200_001)
    z[0, 0, 0] = torch.linspace(-30, 30, 200_001)
    assert fsq.encode(z).remainder(count).unique().tolist() == list(range(count))


def test_the_gradient_is_that_of_the_bound_alone() -> None:
    fsq = quantizer(5, 8)
    z = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (seen,) = torch.autograd.grad(fsq(z).z.sum(), z)
    half = torch.tensor([2, 4]).view(1, 2, 1, 1)
    (expected,) = torch.autograd.grad((fsq.bound(z.movedim(1, -1)).movedim(-1, 1) / half).sum(), z)
    assert torch.equal(seen, expected)


def test_training_counts_the_codes_and_evaluation_none() -> None:
    fsq = quantizer(5, 3)
    z = torch.randn(2, 2, 7, 3, generator=torch.Generator().manual_seed(1))
    fsq.eval()(z)
    assert int(fsq.statistics.updates) == 0
    made = fsq.train()(z)
    assert int(fsq.statistics.updates) == 1
    assert ((fsq.statistics.idle_K == 0).nonzero()[:, 0]).tolist() == made.codes.unique().tolist()
    assert torch.equal(made.codes, fsq.encode(z))
    assert torch.allclose(made.z, fsq.decode(made.codes), atol=1e-6)
    assert made.loss == 0


@pytest.mark.parametrize("levels", [(), (2, 5), (5, 257)])
def test_counts_of_levels_that_do_not_work_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="every channel has 3 to 256 levels"):
        quantizer(*levels)
