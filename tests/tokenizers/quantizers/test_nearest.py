import pytest
import torch

from worldloom.tokenizers.quantizers.nearest import TILE, nearest_codes


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Float64, the direct formula, ties to the lowest index."""
    distances = (vectors.double()[:, None] - codebook.double()[None]).square().sum(-1)
    return (distances == distances.amin(1, keepdim=True)).int().argmax(1)


@pytest.mark.parametrize("count, codes, width", [(1000, 37, 5), (3 * TILE + 1, 130, 17), (1, 2, 3), (TILE, 1, 1)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_codes_are_the_float64_argmin(count: int, codes: int, width: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(count + codes)
    vectors = torch.randn((count, width), generator=generator) + offset
    codebook = torch.randn((codes, width), generator=generator) + offset
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


def test_ties_go_to_the_lowest_index() -> None:
    codebook = torch.tensor([[5.0, 5.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    vectors = torch.tensor([[0.0, 0.7], [0.0, -3.0], [2.0, 0.1], [-2.0, 0.1]])
    assert nearest_codes(vectors, codebook).tolist() == [1, 1, 1, 2]


def test_codes_that_all_coincide_give_the_first() -> None:
    codebook = torch.randn((1, 7), generator=torch.Generator().manual_seed(1)).expand(300, 7)
    vectors = torch.randn((TILE + 3, 7), generator=torch.Generator().manual_seed(2))
    assert nearest_codes(vectors, codebook).unique().tolist() == [0]


def test_codes_too_close_for_float32_scores_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(3)
    centre = 50 * torch.randn((1, 9), generator=generator)
    codebook = torch.cat([centre + 1e-4 * torch.randn((40, 9), generator=generator), -centre])
    vectors = codebook[:40] + 1e-5 * torch.randn((40, 9), generator=generator)
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


def test_autocast_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    vectors, codebook = torch.randn((200, 6), generator=generator), torch.randn((50, 6), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


def test_vectors_that_are_not_finite_still_get_a_code_in_range() -> None:
    vectors = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [1.0, 1.0]])
    codes = nearest_codes(vectors, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert codes.tolist()[2] == 1 and all(code in (0, 1) for code in codes.tolist())


def test_no_vectors_give_no_codes() -> None:
    assert nearest_codes(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0,)


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="width 3 cannot be compared with codes of width 4"):
        nearest_codes(torch.zeros(2, 3), torch.zeros(5, 4))
