"""A quantizer from its settings."""

import torch

from worldloom.tokenizers.quantizers.codebooks import EmaCodebook, GradientCodebook, Upkeep
from worldloom.tokenizers.quantizers.fsq_quantizer import FsqQuantizer
from worldloom.tokenizers.quantizers.lfq_quantizer import LfqQuantizer
from worldloom.tokenizers.quantizers.quantized import Quantizer
from worldloom.tokenizers.quantizers.residual_quantizer import ResidualQuantizer
from worldloom.tokenizers.quantizers.settings import (
    MOST_STEPS_BEFORE_PLACING,
    Ema,
    Fsq,
    Gradient,
    LearntCodebook,
    Lfq,
    QuantizerSettings,
    Residual,
)
from worldloom.tokenizers.quantizers.vector_quantizer import VectorQuantizer

CODEBOOKS: dict[str, type[EmaCodebook] | type[GradientCodebook]] = {"ema": EmaCodebook, "gradient": GradientCodebook}


def build_quantizer(
    settings: Ema | Gradient | Residual | Fsq | Lfq, codebook_size: int, seed: int, generator: torch.Generator
) -> Quantizer:
    """Untrained; `generator` draws its first codes, `seed` decides every later draw."""
    upkeep = upkeep_of(settings, seed)
    if isinstance(settings, Fsq):
        return FsqQuantizer(settings.levels, upkeep)
    if isinstance(settings, Lfq):
        weights = settings.commitment, settings.entropy_weight, settings.diversity, settings.temperature
        return LfqQuantizer(settings.bits, upkeep, *weights)
    if not isinstance(settings, Residual):
        codebook = CODEBOOKS[settings.type](codebook_size, settings.code_width, upkeep, generator)
        entropies = {"entropy_weight": settings.entropy_weight, "entropy_temperature": settings.entropy_temperature}
        return VectorQuantizer(codebook, settings.commitment, cosine=settings.cosine, **entropies)
    # A level sees what is left for it only once those before it are placed; two updates later it is placed, too.
    later = upkeep._replace(place_after=min(upkeep.place_after, 2))
    kept = [(upkeep if level == 0 else later)._replace(seed=seed + level) for level in range(settings.levels)]
    codebooks = [CODEBOOKS[settings.codebook](codebook_size, settings.code_width, each, generator) for each in kept]
    return ResidualQuantizer(codebooks, settings.commitment, settings.dropout)


def upkeep_of(settings: QuantizerSettings, seed: int) -> Upkeep:
    """How a codebook is kept; without codes of its own it only counts."""
    if not isinstance(settings, LearntCodebook):
        return Upkeep(place_after=-1, restart_every=0, least_use=settings.least_use, patience=settings.patience, seed=seed)
    return Upkeep(
        place_after=MOST_STEPS_BEFORE_PLACING if settings.place_after is None else settings.place_after,
        restart_every=settings.restart_every,
        dead_below=settings.dead_below,
        restart_at=settings.restart_at,
        decay=settings.decay,
        least_use=settings.least_use,
        patience=settings.patience,
        seed=seed,
    )
