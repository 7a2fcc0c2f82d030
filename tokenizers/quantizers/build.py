"""A quantizer from its settings."""

import torch

from worldloom.tokenizers.quantizers.codebooks import EmaCodebook, GradientCodebook, Upkeep
from worldloom.tokenizers.quantizers.fsq_quantizer import FsqQuantizer
from worldloom.tokenizers.quantizers.quantized import Quantizer
from worldloom.tokenizers.quantizers.settings import MOST_STEPS_BEFORE_PLACING, Ema, Fsq, Gradient, LearntCodebook, QuantizerSettings
from worldloom.tokenizers.quantizers.vector_quantizer import VectorQuantizer


def build_quantizer(settings: Ema | Gradient | Fsq, codebook_size: int, seed: int, generator: torch.Generator) -> Quantizer:
    """Untrained; `generator` draws its first codes, `seed` decides every later draw."""
    upkeep = upkeep_of(settings, seed)
    if isinstance(settings, Fsq):
        return FsqQuantizer(settings.levels, upkeep)
    codebook = EmaCodebook if isinstance(settings, Ema) else GradientCodebook
    return VectorQuantizer(codebook(codebook_size, settings.code_width, upkeep, generator), settings.commitment)


def upkeep_of(settings: QuantizerSettings, seed: int) -> Upkeep:
    """How a codebook is kept; without codes of its own it only counts."""
    if not isinstance(settings, LearntCodebook):
        return Upkeep(place_after=-1, restart_every=0, least_use=settings.least_use, patience=settings.patience, seed=seed)
    return Upkeep(
        place_after=MOST_STEPS_BEFORE_PLACING if settings.place_after is None else settings.place_after,
        restart_every=settings.restart_every,
        dead_below=settings.dead_below,
        decay=settings.decay,
        least_use=settings.least_use,
        patience=settings.patience,
        seed=seed,
    )
