"""What a trained tokenizer of sounds is worth on sounds it has not heard: distances, bits, use of its codes, how they sound."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from worldloom.stages.card import Bars, Block, Card, Curves, Picture, Table, write_card, write_figures, write_picture, write_sound
from worldloom.stages.code_figures import bits, markdown_table, rate, use_of, write_rates
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
    real, made, plain = torch.from_numpy(some), torch.from_numpy(rebuilt), mu_law_coded(torch.from_numpy(some), PLAIN_BITS)
    seconds = tokenizer.samples / tokenizer.sample_rate
    use = use_of([codes], tokenizer.codebook_size, tokenizer.levels)
    figures = {
        f"{name}.log_mel_l1": float(log_mel_l1(real, made, tokenizer.sample_rate).mean()),
        f"{name}.log_mel_l1_mu_law": float(log_mel_l1(real, plain, tokenizer.sample_rate).mean()),
        f"{name}.si_sdr": float(si_sdr(real, made).mean()),
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
    plain_rate = PLAIN_BITS * tokenizer.sample_rate * tokenizer.channels
    table = Table(
        columns=("coder", "bits a second", "log-mel L1", "SI-SDR (dB)", "codebook use", "perplexity"),
        rows=(
            (settings.tokenizer.type, round(bits(tokenizer) / seconds), *_rounded(figures, name)),
            ("mu-law, 2 bits a sample", plain_rate, *(round(float(x), 3) for x in _plain(real, plain, tokenizer.sample_rate)), None, None),
        ),
        title=f"{len(some):,} sounds of {split}",
    )
    tokenizer.measured = f"On {len(some)} sounds of {split}:\n\n{markdown_table(table.columns, table.rows)}"
    write_card(out, _card(settings, tokenizer, table, use.bars(), some, rebuilt, split, out))


def _rounded(figures: dict[str, float], name: str) -> tuple[float, ...]:
    return tuple(round(figures[f"{name}.{what}"], 3) for what in ("log_mel_l1", "si_sdr", "codebook_use", "perplexity"))


def _framed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(picture, ((2, 2), (2, 2), (0, 0)), constant_values=255)


def _plain(real: torch.Tensor, plain: torch.Tensor, sample_rate: int) -> tuple[torch.Tensor, torch.Tensor]:
    return log_mel_l1(real, plain, sample_rate).mean(), si_sdr(real, plain).mean()


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
        Curves(series=("loss/waveform", "loss/mel", "loss/codebook"), title=f"Losses of {name}"),
        Curves(series=("codebook_use",), title=f"Share of the codes used in the last 100 steps ({name})"),
    )
    return Card(title=f"Tokenizer of {name}", blocks=blocks, headline=(f"{name}.log_mel_l1", f"{name}.codebook_use"))
