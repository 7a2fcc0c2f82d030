"""What a trained tokenizer of sounds is worth on sounds it has not heard: distances, bits, use of its codes, how they sound."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from worldloom.stages.card import Bars, Block, Card, Curves, Picture, Table, write_card, write_figures, write_picture, write_sound
from worldloom.stages.code_figures import bits, loss_curves, markdown_table, rate, use_of, write_rates
from worldloom.stages.dataset import Dataset
from worldloom.stages.deterministic import deterministic
from worldloom.stages.spectrogram import spectrogram
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import Values, spaced
from worldloom.tokenizers.audio import AudioTokenizer
from worldloom.tokenizers.audio_measures import log_mel_l1, mu_law_coded, si_sdr
from worldloom.tokenizers.mel_picture import MelTokenizer

SPLITS = ("held_out", "validation", "train")
PLAIN_BITS = 2  # a sample, of the mu-law coder that stands beside it
PLAIN = f"mu-law, {PLAIN_BITS} bits a sample"
LEARNED, PHASES = "learned decoder", "the same codes, Griffin-Lim alone"
SHOWN, HEARD = 6, 2
AT_ONCE = 64


def report_audio(settings: TrainTokenizer, tokenizer: AudioTokenizer | MelTokenizer, dataset: Dataset, out: Path, threads: int) -> None:
    """Measures the first split that training has not seen; writes figures.json, pictures, sounds and card.json."""
    name = settings.stream
    split, values = next((split, values) for split in SPLITS if len(values := Values(dataset, split, name)))
    with deterministic(threads):
        some = values[spaced(len(values), settings.measured)]
        codes = np.concatenate([tokenizer.encode(part) for part in np.array_split(some, -(-len(some) // AT_ONCE))])
        rebuilt = tokenizer.decode(codes)
        others = _others(tokenizer, some, codes)
    seconds = tokenizer.samples / tokenizer.sample_rate
    use = use_of([codes], tokenizer.codebook_size, tokenizer.levels)
    main, *compared = (_distances(some, made, tokenizer.sample_rate) for made in (rebuilt, *others.values()))
    plain = compared[list(others).index(PLAIN)]
    figures = {
        f"{name}.log_mel_l1": main.log_mel_l1,
        f"{name}.log_mel_l1_mu_law": plain.log_mel_l1,
        f"{name}.log_mel_l1_of_mu_laws": main.log_mel_l1 / max(plain.log_mel_l1, 1e-6),
        f"{name}.si_sdr": main.si_sdr,
        f"{name}.si_sdr_mu_law": plain.si_sdr,
        f"{name}.codebook_use": use.share,
        f"{name}.perplexity": use.perplexity,
        f"{name}.bits_per_second": bits(tokenizer) / seconds,
    }
    write_figures(out, {figure: round(value, 4) for figure, value in figures.items()})
    few = some[:AT_ONCE]
    few_codes = codes[: len(few)]
    with deterministic(threads):
        speeds = {
            "encode_seconds_per_second": rate(lambda: tokenizer.encode(few), len(few)) * seconds,
            "decode_seconds_per_second": rate(lambda: tokenizer.decode(few_codes), len(few)) * seconds,
        }
    write_rates(out, speeds)
    rates = {PLAIN: PLAIN_BITS * tokenizer.sample_rate * tokenizer.channels, PHASES: round(bits(tokenizer) / seconds)}
    kind = f"{settings.tokenizer.type}, {LEARNED}" if PHASES in others else settings.tokenizer.type
    table = Table(
        columns=("coder", "bits a second", "log-mel L1", "SI-SDR (dB)", "codebook use", "perplexity"),
        rows=(
            (kind, round(bits(tokenizer) / seconds), *main.rounded(), round(use.share, 3), round(use.perplexity, 3)),
            *((what, rates[what], *found.rounded(), None, None) for what, found in zip(others, compared, strict=True)),
        ),
        title=f"{len(some):,} sounds of {split}",
    )
    tokenizer.measured = f"On {len(some)} sounds of {split}:\n\n{markdown_table(table.columns, table.rows)}"
    write_card(out, _card(settings, tokenizer, table, use.bars(), some, rebuilt, split, out))


class _Distances(NamedTuple):
    """Means over sounds."""

    log_mel_l1: float
    si_sdr: float  # dB

    def rounded(self) -> tuple[float, float]:
        return round(self.log_mel_l1, 3), round(self.si_sdr, 3)


def _distances(real: NDArray[np.float32], made: NDArray[np.float32], sample_rate: int) -> _Distances:
    before, after = torch.from_numpy(real), torch.from_numpy(made)
    return _Distances(float(log_mel_l1(before, after, sample_rate).mean()), float(si_sdr(before, after).mean()))


def _others(
    tokenizer: AudioTokenizer | MelTokenizer, sounds: NDArray[np.float32], codes: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """What stands beside the tokenizer, by name: where its decoder is learned, the same codes without it; the plain coder."""
    others = {PHASES: tokenizer.decode_plainly(codes)} if isinstance(tokenizer, MelTokenizer) and tokenizer.vocoder is not None else {}
    return {**others, PLAIN: mu_law_coded(torch.from_numpy(sounds), PLAIN_BITS).numpy()}


def _framed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(picture, ((2, 2), (2, 2), (0, 0)), constant_values=255)


def _card(
    settings: TrainTokenizer,
    tokenizer: AudioTokenizer | MelTokenizer,
    table: Table,
    bars: tuple[float, ...],
    real: NDArray[np.float32],
    made: NDArray[np.float32],
    split: str,
    out: Path,
) -> Card:
    name = settings.stream
    shown = spaced(len(real), SHOWN)
    rows = [np.concatenate([_framed(spectrogram(x[i])) for i in shown], axis=1) for x in (real, made)]
    picture = write_picture(out, "reconstructions", np.concatenate(rows, 0))
    heard = [
        write_sound(out, f"{what}-{i}", sounds[i], tokenizer.sample_rate, f"{split}: {what}, sound {i}")
        for i in shown[:HEARD].tolist()
        for what, sounds in (("before", real), ("after", made))
    ]
    codes = " x ".join(map(str, tokenizer.shape))
    blocks: tuple[Block, ...] = (
        Picture(file=picture, caption=f"{split}: spectrograms of sounds above, of what is left after {codes} codes below."),
        *heard,
        table,
        Bars(values=bars, title=f"Choices of the codes of {name}, from the most to the least chosen, levels together ({split})"),
        *loss_curves(name, tokenizer.settings),
        Curves(series=("codebook_use",), title=f"Share of the codes used in the last 100 steps ({name})"),
    )
    return Card(title=f"Tokenizer of {name}", blocks=blocks, headline=(f"{name}.log_mel_l1", f"{name}.codebook_use"))
