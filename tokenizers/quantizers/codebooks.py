"""Codebooks that learn by moving averages or by gradient, and what both count: use, perplexity, codes that died.

K codes, D width, N vectors of this rank's batch. Papers: arXiv:1711.00937 and its appendix A.1 (moving averages); dead codes restart as in
arXiv:2005.00341 (Jukebox), section 3.1, here from vectors that are badly served. Counts and sums are those of the global batch.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from worldloom.tokenizers.quantizers.kmeans import draw_by_error, draw_evenly, kmeans
from worldloom.tokenizers.quantizers.ranks import from_first_rank, gather_over_ranks, sum_over_ranks

LOG = logging.getLogger(__name__)
POOL = 1 << 15  # vectors of the global batch that a restart or k-means looks at
EPSILON = 1e-5  # of the Laplace smoothing
# Where a dead code begins anew: at a vector far from its code, or at any vector, so that crowds of vectors share out among more codes.
RESTARTS: dict[str, Callable[[Tensor, Tensor, int, torch.Generator], Tensor]] = {"errors": draw_by_error, "crowds": draw_evenly}


class CodebookCollapse(RuntimeError):
    """Too few codes are used, and the remedy, where there is one, did not help."""


class Upkeep(NamedTuple):
    """When codes are placed by data, restarted, or given up. One update is one training batch."""

    place_after: int = 0  # updates before k-means places the codes; until then vectors pass unquantized. Negative: never placed
    restart_every: int = 10  # updates between looks for dead codes; 0: never
    dead_below: float = 0.03  # a code used less than this share of even use, on average, is dead
    restart_at: str = "errors"  # a key of RESTARTS
    decay: float = 0.99  # of all moving averages
    window: int = 100  # updates within which a code must be chosen to count as used
    least_use: float = 0.01  # share of codes used under which the training is in collapse; 0: never
    patience: int = 500  # updates in collapse before the codes are placed anew, and again before CodebookCollapse
    seed: int = 0  # of every draw, together with the number of the update


class Codebook(Protocol):
    """What a VectorQuantizer needs from its codebook, an nn.Module."""

    size: int
    width: int
    statistics: "CodeStatistics"

    def vectors(self) -> Tensor:
        """The codes as float32 [K, D]; carries a gradient if the codebook learns by one."""
        ...

    def loss(self, z_ND: Tensor, chosen_ND: Tensor) -> Tensor:
        """Scalar that pulls the chosen codes to the (detached) vectors; zero if they move by averages."""
        ...

    def placed(self) -> bool:
        """False while vectors pass unquantized."""
        ...

    def update(self, z_ND: Tensor, codes_N: Tensor) -> None:
        """Counts, moves, places and restarts codes; collective, called once a training batch."""
        ...


class Float32State(nn.Module):
    """A module whose float buffers stay float32 when the whole model is cast: a bfloat16 average stops moving."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and buffer.is_floating_point()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = buffer.to(moved.device)
        return self


class CodeStatistics(Float32State):
    """How often each code is chosen; the same on every rank."""

    average_K: Tensor
    idle_K: Tensor
    updates: Tensor
    starved: Tensor
    relapse: Tensor

    def __init__(self, size: int, upkeep: Upkeep) -> None:
        super().__init__()
        self.upkeep = upkeep
        # Sizes start at 1: from 0, the first averaged update would multiply unused codes by about 1e5.
        self.register_buffer("average_K", torch.ones(size))  # choices an update, on average
        # int64: casting a model to bfloat16 casts float buffers, and a bfloat16 count stops at 256.
        self.register_buffer("idle_K", torch.zeros(size, dtype=torch.int64))  # updates since it was last chosen
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("starved", torch.zeros((), dtype=torch.int64))  # updates in collapse, in a row
        # Updates out of collapse until the remedy is allowed once more: right after it codes count as used for a whole window.
        self.register_buffer("relapse", torch.zeros((), dtype=torch.int64))

    def count(self, count_K: Tensor) -> None:
        """Takes in the global batch's choices of each code."""
        self.average_K.lerp_(count_K, 1 - self.upkeep.decay)
        self.idle_K.add_(1).masked_fill_(count_K > 0, 0)
        collapsed = (self.updates >= self.upkeep.window) & (self.use() < self.upkeep.least_use)
        self.starved.copy_(torch.where(collapsed, self.starved + 1, 0))
        self.relapse.copy_(torch.where(collapsed, self.relapse, (self.relapse - 1).clamp(min=0)))

    def needs_remedy(self) -> bool:
        """True when patience with a collapse has run out and its codes are to be placed anew; CodebookCollapse if they just were."""
        if self.starved <= self.upkeep.patience:
            return False
        every = self.upkeep.restart_every
        restarts = f"dead codes restarted every {every} updates" if every else "restart_every is 0, so no dead code restarted"
        if self.relapse > 0:
            raise CodebookCollapse(
                f"the codebook collapsed: {self._chosen()}; {restarts}, and k-means placed all codes anew, which did not last; "
                f"lower codebook_size or the learning rate, or check that the data differ"
            )
        LOG.warning("the codebook collapsed: %s; %s; k-means places all codes anew", self._chosen(), restarts)
        self.starved.zero_()
        self.relapse.fill_(self.upkeep.window + self.upkeep.patience)
        return True

    def _chosen(self) -> str:
        return f"only {self.use().item():.1%} of {len(self.idle_K)} codes were chosen in the last {self.upkeep.window} updates"

    @torch.no_grad()
    def tally(self, codes: Tensor) -> None:
        """One update for quantizers that keep no codebook: counts this rank's codes with those of the others.

        CodebookCollapse after too long with too little use: there are no codes to place anew.
        """
        self.count(sum_over_ranks(torch.bincount(codes.flatten(), minlength=len(self.idle_K)).float()))
        if self.starved > self.upkeep.patience:
            raise CodebookCollapse(
                f"the codes collapsed: {self._chosen()}, and this quantizer keeps no codebook that could be placed anew; "
                f"lower codebook_size or the learning rate, or check that the data differ"
            )
        self.updates += 1

    def dead(self, batch: int) -> Tensor:
        """Indices of codes to restart after a global batch of `batch` vectors; empty when it is not the time."""
        every = self.upkeep.restart_every
        if every == 0 or self.updates % every != 0:
            return self.idle_K.new_zeros(0)
        return (self.average_K < self.threshold(batch)).nonzero()[:, 0]

    def threshold(self, batch: int) -> float:
        """Choices an update under which a code is dead."""
        return self.upkeep.dead_below * batch / len(self.average_K)

    def placing(self) -> bool:
        """True at the one update after which codes lie where the data is."""
        return int(self.updates) == self.upkeep.place_after

    def placed(self) -> bool:
        """False while vectors pass unquantized."""
        return int(self.updates) > self.upkeep.place_after

    def use(self) -> Tensor:
        """Share of the codes chosen within the last `window` updates."""
        return (self.idle_K < self.upkeep.window).float().mean()

    def oldest_idle(self) -> Tensor:
        """Updates since the code that waits longest was chosen."""
        return self.idle_K.max()

    def dead_age(self) -> Tensor:
        """Mean updates since they were last chosen of the codes not chosen within the window; 0 if there are none."""
        dead_K = self.idle_K >= self.upkeep.window
        return (self.idle_K * dead_K).sum() / dead_K.sum().clamp(min=1)

    def generator(self) -> torch.Generator:
        """Random numbers of this update alone, so that there is no state to save."""
        return torch.Generator().manual_seed(self.upkeep.seed * 1_000_003 + int(self.updates))


class _KeptCodebook(Float32State, ABC):
    """The upkeep of a codebook: when codes are counted, placed in the data, restarted and, after a collapse, placed anew."""

    def __init__(self, size: int, width: int, upkeep: Upkeep) -> None:
        super().__init__()
        self.size, self.width = size, width
        self.statistics = CodeStatistics(size, upkeep)

    @abstractmethod
    def vectors(self) -> Tensor:
        """The codes as float32 [K, D]."""

    @abstractmethod
    def _put(self, index_R: Tensor, to_RD: Tensor, average: float) -> None:
        """Moves codes, each of which counts as chosen `average` times an update."""

    @abstractmethod
    def _learn(self, sum_KD: Tensor) -> None:
        """Follows the sums of the vectors that chose each code, which are counted already."""

    def placed(self) -> bool:
        return self.statistics.placed()

    @torch.no_grad()
    def update(self, z_ND: Tensor, codes_N: Tensor) -> None:
        statistics = self.statistics
        if statistics.placed():
            sums = _choices(z_ND, codes_N, self.size)
            if sums is not None:
                count_K, sum_KD = sums
                statistics.count(count_K)
                self._learn(sum_KD)
                if statistics.needs_remedy():
                    self._place(gather_over_ranks(z_ND, POOL))
                else:
                    self._restart(int(count_K.sum()), z_ND)
        elif statistics.placing():
            pool = gather_over_ranks(z_ND, POOL)
            if not torch.isfinite(pool).all():
                return  # on every rank; the next batch places the codes
            self._place(pool)
        statistics.updates += 1

    def _place(self, pool: Tensor) -> None:
        centres_KD = from_first_rank(kmeans(pool, self.size, rounds=10, generator=self.statistics.generator()))
        # Each starts with the weight that even use would give it, so that one batch does not carry it away.
        self._put(torch.arange(self.size, device=pool.device), centres_KD, max(1.0, len(pool) / self.size))

    def _restart(self, batch: int, z_ND: Tensor) -> None:
        dead_R = self.statistics.dead(batch)
        if len(dead_R) == 0:
            return
        pool = gather_over_ranks(z_ND, POOL)
        draw = RESTARTS[self.statistics.upkeep.restart_at]
        drawn_RD = from_first_rank(draw(pool, self.vectors(), len(dead_R), self.statistics.generator()))
        # Twice the threshold: at the threshold itself an unlucky code would expire at the next look.
        self._put(dead_R, drawn_RD, 2 * self.statistics.threshold(batch))


class EmaCodebook(_KeptCodebook):
    """Codes are moving averages of the vectors that chose them (arXiv:1711.00937, appendix A.1), with Laplace smoothing, no zero-debias.

    embedding = total / size', size' = (average + eps) / (n + K eps) * n, n = sum of averages.
    """

    embedding_KD: Tensor
    total_KD: Tensor

    def __init__(self, size: int, width: int, upkeep: Upkeep, generator: torch.Generator) -> None:
        super().__init__(size, width, upkeep)
        self.register_buffer("embedding_KD", _uniform(size, width, generator))
        self.register_buffer("total_KD", self.embedding_KD.clone())

    def vectors(self) -> Tensor:
        return self.embedding_KD

    def loss(self, z_ND: Tensor, chosen_ND: Tensor) -> Tensor:
        return z_ND.new_zeros(())

    def _learn(self, sum_KD: Tensor) -> None:
        average_K = self.statistics.average_K
        self.total_KD.lerp_(sum_KD, 1 - self.statistics.upkeep.decay)
        n = average_K.sum()
        smooth_K = (average_K + EPSILON) / (n + self.size * EPSILON) * n
        torch.div(self.total_KD, smooth_K[:, None], out=self.embedding_KD)

    def _put(self, index_R: Tensor, to_RD: Tensor, average: float) -> None:
        """Embedding, size and sum together: any of them left behind would pull the others back."""
        self.embedding_KD[index_R] = to_RD
        self.statistics.average_K[index_R] = average
        self.total_KD[index_R] = to_RD * average


class GradientCodebook(_KeptCodebook):
    """Codes are parameters plus a shift: e = weight + shift, `|sg(z) - e|^2` moves the weight (arXiv:1711.00937, equation 3).

    Restarts move the shift, because an optimizer that keeps its own copy of the parameters would undo a change of the weight.
    """

    shift_KD: Tensor

    def __init__(self, size: int, width: int, upkeep: Upkeep, generator: torch.Generator) -> None:
        super().__init__(size, width, upkeep)
        self.weight_KD = nn.Parameter(_uniform(size, width, generator))
        self.register_buffer("shift_KD", torch.zeros(size, width))

    def vectors(self) -> Tensor:
        return self.weight_KD.float() + self.shift_KD

    def loss(self, z_ND: Tensor, chosen_ND: Tensor) -> Tensor:
        return (chosen_ND - z_ND).square().mean()

    def _learn(self, sum_KD: Tensor) -> None:
        """Nothing: the optimizer moves the weight."""

    def _put(self, index_R: Tensor, to_RD: Tensor, average: float) -> None:
        self.shift_KD[index_R] = to_RD - self.weight_KD[index_R].float()
        self.statistics.average_K[index_R] = average


def perplexity(count_K: Tensor) -> Tensor:
    """exp of the entropy of the choices: K if all codes are chosen alike, 1 if one takes everything."""
    share_K = count_K.double() / count_K.sum().clamp(min=1)
    return (-(share_K * (share_K + 1e-10).log()).sum()).exp()


def health(quantizer: nn.Module) -> dict[str, Tensor]:
    """What shows how a quantizer's codes are doing, by name; of several levels the worst (the mean perplexity), then each."""
    levels = [module for module in quantizer.modules() if isinstance(module, CodeStatistics)]
    use = torch.stack([statistics.use() for statistics in levels])
    perplexities = torch.stack([perplexity(statistics.average_K) for statistics in levels])
    found = {
        "codebook_use": use.min(),
        "perplexity": perplexities.mean(),
        "oldest_idle_code": torch.stack([statistics.oldest_idle() for statistics in levels]).max(),
        "dead_code_age": torch.stack([statistics.dead_age() for statistics in levels]).max(),
    }
    if len(levels) > 1:
        found |= {f"codebook_use_{level}": value for level, value in enumerate(use)}
        found |= {f"perplexity_{level}": value for level, value in enumerate(perplexities)}
    return found


def _uniform(size: int, width: int, generator: torch.Generator) -> Tensor:
    """U(-1/K, 1/K), as taming-transformers starts."""
    return (torch.rand((size, width), generator=generator) * 2 - 1) / size


def _choices(z_ND: Tensor, codes_N: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
    """Choices of each code [K] and sums of its vectors [K, D] over all ranks; None, on every rank, where a vector is not finite."""
    sums = z_ND.new_zeros((size, z_ND.shape[1] + 1), dtype=torch.float32)
    sums[:, 1:].index_add_(0, codes_N, z_ND.float())
    sums[:, 0] = torch.bincount(codes_N, minlength=size)
    sum_over_ranks(sums)
    # One pass, where isfinite takes four: what is not finite stays so in a sum.
    return (sums[:, 0], sums[:, 1:]) if torch.isfinite(sums.sum()) else None
