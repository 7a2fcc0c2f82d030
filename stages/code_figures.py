"""What every tokenizer's figures share: how its codes are used, what they cost in bits, and how fast it is on this machine.

K codes of a level, L levels.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.card import Curves
from worldloom.stages.disk import canonical_json, write_file
from worldloom.tokenizers.tokenizer import Tokenizer

_PICTURES = ("l1", "reconstruction", "nll", "kl", "codebook", "random_vgg", "lpips_vgg", "adversarial")
_SOUNDS = ("waveform", "energy", "mel", "codebook", "adversarial", "features", "vocoder")
LOSSES = tuple(f"loss/{name}" for name in dict.fromkeys((*_PICTURES, *_SOUNDS)))  # of whoever has them
RATES = "logs/rates.json"  # rates differ from run to run, so they lie where an artifact may differ
MOST_BARS = 128


def loss_curves(name: str, settings: Any, *judges: str) -> tuple[Curves, ...]:
    """The losses of a training as curves, those by `judges` among them; a discriminator's apart, where one joins: of another size."""
    main = Curves(series=(*LOSSES, *(f"loss/{judge}" for judge in judges)), title=f"Losses of {name}")
    if not getattr(settings, "adversarial_weight", 0) or settings.adversarial_from >= 1:
        return (main,)
    return (
        main,
        Curves(series=("loss/discriminator", "loss/lecam"), title=f"Losses of the discriminator of {name}"),
        Curves(series=("gradient_ratio",), title=f"Gradient of the reconstruction over that of the discriminator, last layer ({name})"),
    )


class CodeUse(NamedTuple):
    """How the codes of one split are spread over the codebook, each level by itself."""

    count_LK: NDArray[np.int64]  # choices

    @property
    def share(self) -> float:
        """Share of all levels' codes that are chosen at least once."""
        return float((self.count_LK > 0).mean())

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the choices, K if all are chosen alike; the mean of the levels' where there are several."""
        return float(np.mean([_perplexity(count_K) for count_K in self.count_LK]))

    def bars(self) -> tuple[float, ...]:
        """Choices from high to low, levels together, in at most 128 bars of equally many codes (their mean)."""
        ordered = np.sort(self.count_LK.sum(0))[::-1].astype(np.float64)
        return tuple(round(float(part.mean()), 3) for part in np.array_split(ordered, min(MOST_BARS, len(ordered))))


def use_of(codes: Iterable[NDArray[Any]], codebook_size: int, levels: int = 1) -> CodeUse:
    """Counts batches of codes [B, *grid], or [B, *grid, L] where there are several levels."""
    count_LK = np.zeros((levels, codebook_size), np.int64)
    for batch in codes:
        for level, part in enumerate(np.moveaxis(batch, -1, 0) if levels > 1 else [batch]):
            count_LK[level] += np.bincount(part.ravel(), minlength=codebook_size)
    return CodeUse(count_LK)


def bits(tokenizer: Tokenizer) -> float:
    """Bits of one value's codes, all codes being equally long: log2 K for each place and level."""
    assert tokenizer.shape is not None, "texts differ in length: count their codes"
    return math.prod(tokenizer.shape) * math.log2(tokenizer.codebook_size)


def rate(work: Callable[[], object], values: int, rounds: int = 3) -> float:
    """Values a second: `work` handles `values` of them; the best of `rounds` after one that is not counted."""
    work()
    best = math.inf
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return values / best


def write_rates(out: Path, rates: Mapping[str, float]) -> None:
    """Writes logs/rates.json, for people: {"encode_pictures_per_second": 812.5} and the like, of the machine that trained."""
    (out / RATES).parent.mkdir(parents=True, exist_ok=True)
    write_file(out / RATES, canonical_json({name: float(f"{value:.4g}") for name, value in rates.items()}))


def markdown_table(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """A table for the README.md beside the weights; numbers are written as they are."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _perplexity(count_K: NDArray[np.int64]) -> float:
    share_K = count_K[count_K > 0] / max(1, count_K.sum())
    return float(np.exp(-(share_K * np.log(share_K)).sum()))
