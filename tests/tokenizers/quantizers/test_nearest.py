import pytest
import torch

from worldloom.tokenizers.quantizers import nearest
from worldloom.tokenizers.quantizers.nearest import FEWEST, nearest_codes


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Float64, the direct formula, ties to the lowest index."""
    distances = (vectors.double()[:, None] - codebook.double()[None]).square().sum(-1)
    return (distances == distances.amin(1, keepdim=True)).int().argmax(1)


PRODUCTS = ["float32", "bfloat16", "int8"]


def multiply_by(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_multiplies_bytes", lambda: product == "int8")
    monkeypatch.setattr(nearest, "_multiplies_bfloat16", lambda: product == "bfloat16")


@pytest.mark.parametrize("count, codes, width", [(1000, 37, 5), (3 * FEWEST + 1, 130, 17), (1, 2, 3), (FEWEST, 1, 1)])
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
    vectors = torch.randn((FEWEST + 3, 7), generator=torch.Generator().manual_seed(2))
    assert nearest_codes(vectors, codebook).unique().tolist() == [0]


@pytest.mark.parametrize("product", PRODUCTS)
def test_codes_too_close_for_float32_scores_are_told_apart(monkeypatch: pytest.MonkeyPatch, product: str) -> None:
    multiply_by(product, monkeypatch)
    generator = torch.Generator().manual_seed(3)
    centre = 50 * torch.randn((1, 9), generator=generator)
    codebook = torch.cat([centre + 1e-4 * torch.randn((40, 9), generator=generator), -centre])
    vectors = codebook[:40] + 1e-5 * torch.randn((40, 9), generator=generator)
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("length", [1e-3, 1e-12, 1e-20])
def test_vectors_far_shorter_than_codes_find_theirs(monkeypatch: pytest.MonkeyPatch, product: str, length: float) -> None:
    """All on the far side of every code, which are equally long: no score is below nothing."""
    multiply_by(product, monkeypatch)
    codebook = torch.tensor([[-0.0625, -1.0], [-0.0625, 1.0]]).repeat_interleave(16, 0)
    vectors = length * torch.tensor([[1.0, 0.03], [1.0, -0.03], [0.5, 0.01]])
    assert nearest_codes(vectors, codebook).tolist() == ([16, 0, 16] if length > 1e-16 else [0, 0, 0])  # beyond float64


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("spread, likely", [(1.0, 64), (1.0, 0), (0.02, 64)])
def test_the_type_of_the_product_changes_nothing(monkeypatch: pytest.MonkeyPatch, product: str, spread: float, likely: int) -> None:
    """Nor does which way a tile goes; codes at a small spread differ by less than bfloat16 tells apart."""
    multiply_by(product, monkeypatch)
    monkeypatch.setattr(nearest, "LIKELY", likely)
    monkeypatch.setattr(nearest, "SCORES", 1)  # several tiles
    generator = torch.Generator().manual_seed(6)
    codebook = 1 + spread * torch.randn((500, 12), generator=generator)
    vectors = 1 + spread * torch.randn((2 * FEWEST + 5, 12), generator=generator)
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


@pytest.mark.parametrize("few", [1, 8, 1000])
@pytest.mark.parametrize("offset, spread", [(0.0, 1.0), (300.0, 1.0), (0.0, 0.01), (0.3, 1e-20)])
def test_products_of_bytes_give_the_same_codes(monkeypatch: pytest.MonkeyPatch, few: int, offset: float, spread: float) -> None:
    """However many codes they leave in question, and where sizes of codes differ by more than the columns for them hold."""
    multiply_by("int8", monkeypatch)
    monkeypatch.setattr(nearest, "FEW", few)
    monkeypatch.setattr(nearest, "SCORES", 1)
    generator = torch.Generator().manual_seed(8)
    codebook = offset + spread * torch.randn((512, 24), generator=generator) * torch.linspace(0.1, 2, 512)[:, None]
    vectors = offset + spread * torch.randn((2 * FEWEST + 5, 24), generator=generator)
    assert torch.equal(nearest_codes(vectors, codebook), brute_force(vectors, codebook))


def test_one_code_far_from_the_others_does_not_hide_them() -> None:
    generator = torch.Generator().manual_seed(7)
    codebook = torch.cat([torch.randn((300, 8), generator=generator), torch.full((1, 8), 1e4)])
    vectors = torch.randn((200, 8), generator=generator)
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
