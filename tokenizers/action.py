"""Actions, rewards and ends of episodes to codes and back: every dimension has bins of its own.

B batch, T steps, D dimensions, N bins. Real numbers fall into one of N intervals and come back as its centre; numbers outside the range
of the training data are clipped to it. Discrete ones are codes already. A dimension that never changed has one bin.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from worldloom.tokenizers.action_settings import Binning, MuLaw, Quantile, Uniform

FORMAT = 1
_BINNING: TypeAdapter[Uniform | Quantile | MuLaw] = TypeAdapter(Binning)


class ActionTokenizer:
    """float32 [B, T, D] to int64 [B, T] (D = 1) or [B, T, D], whose last axis are levels: each dimension has codes of its own."""

    kind: ClassVar[str] = "action"

    def __init__(
        self, steps: int, edges: tuple[NDArray[np.float64], ...], choices: int | None, binning: Uniform | Quantile | MuLaw
    ) -> None:
        """`edges`: the limits of each dimension's bins, ascending, one more than bins; for discrete actions only how many there are."""
        for number, limits in enumerate(edges):
            if choices is None and (len(limits) < 2 or not (np.diff(limits) > 0).all()):
                raise ValueError(f"dimension {number} needs at least two limits in ascending order, got {limits.tolist()}")
        self.steps, self.edges, self.choices, self.binning = steps, edges, choices, binning
        self.measured = ""

    @classmethod
    def fit(cls, values: NDArray[np.float32], steps: int, choices: int | None, binning: Uniform | Quantile | MuLaw) -> Self:
        """Bins for the training data, float32 [rows, D]; ValueError without rows, or for numbers that are not finite."""
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(f"bins need rows of finite numbers, got {len(values)} rows")
        columns = np.asarray(values, np.float64).T
        edges = tuple(np.zeros(0) if choices is not None else limits_of(column, binning) for column in columns)
        for number, limits in enumerate(edges if choices is None else ()):
            _check_centres(number, limits, binning)
        return cls(steps, edges, choices, binning)

    @property
    def dimensions(self) -> int:
        return len(self.edges)

    @property
    def codebook_size(self) -> int:
        """Codes of one dimension."""
        return self.binning.bins if self.choices is None else self.choices

    @property
    def levels(self) -> int:
        return self.dimensions

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.steps,) if self.dimensions == 1 else (self.steps, self.dimensions)

    @property
    def form(self) -> dict[str, Any]:
        return {"steps": self.steps, "dimensions": self.dimensions, "choices": self.choices}

    @property
    def fingerprint(self) -> str:
        """sha256 over config.json."""
        return hashlib.sha256(self._config()).hexdigest()

    def encode(self, batch: NDArray[np.float32]) -> NDArray[np.int64]:
        """ValueError for another shape, numbers that are not finite, or discrete ones out of range."""
        values = np.asarray(batch, np.float64)
        if values.shape[1:] != (self.steps, self.dimensions):
            raise ValueError(f"this tokenizer reads actions [B, {self.steps}, {self.dimensions}], got an array of shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("actions must be finite numbers, and some of these are not")
        if self.choices is not None:
            if not ((values == np.floor(values)) & (values >= 0) & (values < self.choices)).all():
                raise ValueError(f"discrete actions are whole numbers in 0 .. {self.choices - 1}, got {values.min()} .. {values.max()}")
            codes = values.astype(np.int64)
        else:
            inner = [np.searchsorted(edges[1:-1], values[..., d], side="right") for d, edges in enumerate(self.edges)]
            codes = np.stack(inner, axis=-1).astype(np.int64)
        return codes.reshape(len(codes), *self.shape)

    def decode(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """int [B, *shape] -> float32 [B, T, D], the centres of the bins; ValueError for codes out of range or another shape.

        A code that its dimension has no bin for (fewer numbers than bins were seen) stands for the last one.
        """
        grid = np.asarray(codes)
        if grid.shape[1:] != self.shape or not np.issubdtype(grid.dtype, np.integer):
            raise ValueError(f"this tokenizer reads integer codes [B, {', '.join(map(str, self.shape))}], got {grid.dtype} {grid.shape}")
        if grid.size and not 0 <= int(grid.min()) <= int(grid.max()) < self.codebook_size:
            raise ValueError(f"codes must lie in 0 .. {self.codebook_size - 1}, got {grid.min()} .. {grid.max()}")
        grid = grid.astype(np.int64).reshape(len(grid), self.steps, self.dimensions)
        if self.choices is not None:
            return grid.astype(np.float32)
        centres = [centres_of(edges, self.binning) for edges in self.edges]
        values = [centre[np.minimum(grid[..., d], len(centre) - 1)] for d, centre in enumerate(centres)]
        return np.stack(values, axis=-1).astype(np.float32)

    def clipped(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Share of each dimension's numbers, of float32 [rows, D], that lie outside its range."""
        if self.choices is not None:
            return np.zeros(self.dimensions)
        return np.array([((column < edges[0]) | (column > edges[-1])).mean() for column, edges in zip(values.T, self.edges, strict=True)])

    def save_pretrained(self, folder: Path) -> None:
        """Writes config.json, which holds everything, and README.md."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes(self._config())
        (folder / "README.md").write_text(
            f"# Tokenizer of actions ({'discrete' if self.choices else self.binning.type})\n\n"
            f"{self.steps} steps of {self.dimensions} numbers to codes of {self.codebook_size}, and back.\n"
            f"{self.measured and chr(10) + self.measured}",
            encoding="utf-8",
        )

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Reads what `save_pretrained` wrote; ValueError where it is something else."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("format") != FORMAT or config.get("kind") != cls.kind:
            raise ValueError(
                f"{folder}: config.json has format {config.get('format')!r} and kind {config.get('kind')!r}, expected {FORMAT} and 'action'"
            )
        try:
            binning = _BINNING.validate_json(json.dumps(config["tokenizer"]))
        except ValidationError as error:
            raise ValueError(f"{folder}: config.json does not describe bins: {error}") from None
        edges = tuple(np.array(limits, np.float64) for limits in config["edges"])
        return cls(config["form"]["steps"], edges, config["form"]["choices"], binning)

    def _config(self) -> bytes:
        config = {
            "format": FORMAT,
            "kind": self.kind,
            "type": self.binning.type,
            "form": self.form,
            "shape": list(self.shape),
            "codebook_size": self.codebook_size,
            "levels": self.levels,
            "tokenizer": self.binning.model_dump(mode="json"),
            "edges": [limits.tolist() for limits in self.edges],  # JSON gives float64 back exactly
        }
        return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def limits_of(column: NDArray[np.float64], binning: Uniform | Quantile | MuLaw) -> NDArray[np.float64]:
    """The limits of the bins for one dimension's numbers; two of them where all numbers are the same."""
    low, high = float(column.min()), float(column.max())
    if isinstance(binning, Uniform):
        cut = [float(np.quantile(column, share)) for share in (binning.cut, 1 - binning.cut)]
        # What is rare but all there is to see, as a reward of the last step, is not cut off.
        low, high = cut if cut[0] < cut[1] else (low, high)
    if low == high:
        width = max(abs(low), 1.0) * 1e-6
        return np.array([low - width, low + width])
    if isinstance(binning, Quantile):
        # Between two neighbours of the sorted numbers, so that equal numbers never fall into two bins.
        numbers = np.unique(column)
        middles = (numbers[1:] + numbers[:-1]) / 2
        wanted = np.quantile(column, np.linspace(0, 1, binning.bins + 1)[1:-1])
        inner = np.unique(middles[np.minimum(np.searchsorted(middles, wanted), len(middles) - 1)])
        return np.concatenate([[low], inner, [high]])
    if isinstance(binning, MuLaw):
        largest = max(abs(low), abs(high))
        limits = _expanded(np.linspace(-1, 1, binning.bins + 1), binning.mu) * largest
        limits[0], limits[-1] = -largest, largest  # rounded, the largest number would lie outside
        return limits
    return np.linspace(low, high, binning.bins + 1)


def _check_centres(dimension: int, edges: NDArray[np.float64], binning: Uniform | Quantile | MuLaw) -> None:
    """ValueError where bins are so narrow that their centres, as float32, lie in other bins."""
    centres = centres_of(edges, binning).astype(np.float32).astype(np.float64)
    if (np.searchsorted(edges[1:-1], centres, side="right") != np.arange(len(centres))).any():
        raise ValueError(
            f"dimension {dimension} lies in {edges[0]:.9g} .. {edges[-1]:.9g}, and float32 cannot tell {len(centres)} bins apart there; "
            f"subtract an offset from these numbers, or take fewer bins"
        )


def centres_of(edges: NDArray[np.float64], binning: Uniform | Quantile | MuLaw) -> NDArray[np.float64]:
    """The middle of every bin; of mu-law bins, in their own scale."""
    if isinstance(binning, MuLaw) and len(edges) > 2:
        largest = float(edges[-1])
        places = _compressed(edges / largest, binning.mu)
        return _expanded((places[1:] + places[:-1]) / 2, binning.mu) * largest
    middles: NDArray[np.float64] = (edges[1:] + edges[:-1]) / 2
    return middles


def _compressed(x: NDArray[np.float64], mu: float) -> NDArray[np.float64]:
    y: NDArray[np.float64] = np.sign(x) * np.log1p(mu * np.abs(x)) / np.log1p(mu)
    return y


def _expanded(y: NDArray[np.float64], mu: float) -> NDArray[np.float64]:
    x: NDArray[np.float64] = np.sign(y) * np.expm1(np.abs(y) * np.log1p(mu)) / mu
    return x
