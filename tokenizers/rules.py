"""Rules between the settings of a tokenizer that several kinds share."""

from worldloom.tokenizers.quantizers.settings import QuantizerSettings


def check_halvings(patch: int, downsample: int, **others: int) -> None:
    """ValueError unless all are powers of two, and patches no larger than what a code stands for."""
    for name, value in {"patch": patch, "downsample": downsample, **others}.items():
        if value & (value - 1):
            raise ValueError(f"{name} must be a power of two (2, 4, 8 ...), got {value}")
    if patch > downsample:
        raise ValueError(f"patch ({patch}) must not be above downsample ({downsample}): a code stands for whole patches")


def check_codebook(quantizer: QuantizerSettings, codebook_size: int) -> None:
    """ValueError where the quantizer makes another number of codes."""
    codes = quantizer.codes()
    if codes is not None and codes != codebook_size:
        raise ValueError(f"the quantizer makes {codes} codes, codebook_size is {codebook_size}; make them equal")
