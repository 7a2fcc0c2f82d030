"""What a trained image tokenizer is worth: PSNR, SSIM and the use of its codebook on pictures it has not seen, and how they look."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from worldloom.stages.card import Bars, Block, Card, Curves, Picture, Table, write_card, write_figures, write_picture
from worldloom.stages.code_figures import CodeUse, bits, loss_curves, markdown_table, rate, use_of, write_rates
from worldloom.stages.dataset import Dataset
from worldloom.stages.deterministic import deterministic
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import Frames, Values, pictures_of, spaced
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import VqGan
from worldloom.tokenizers.measures import frechet_distance, ms_ssim, psnr, ssim
from worldloom.tokenizers.perceptual import PerceptualLoss
from worldloom.tokenizers.pixels import to_signed

AT_ONCE = 64  # pictures
SHOWN = 12
SHOWN_SIDE = 64  # pixels of a shown picture, at least
SPLITS = ("held_out", "validation", "train")  # the first that there is gives the main figures


class Measured(NamedTuple):
    """Figures of one split."""

    pictures: int
    psnr: float  # dB, mean over pictures
    psnr_pooled: float  # dB, of the mean squared error of all pictures
    ssim: float
    ms_ssim: float
    distance: float  # perceptual, of the named network
    frechet: float  # between pictures and reconstructions, of the same network's features
    use: CodeUse


def report_tokenizer(
    settings: TrainTokenizer, tokenizer: ImageTokenizer, dataset: Dataset, out: Path, threads: int, *, judge: PerceptualLoss
) -> None:
    """Measures every split but the training's (that one too, where there is no other) and writes figures.json, pictures and card.json."""
    name = settings.stream
    splits = {split: found for split in SPLITS if len(found := pictures_of(dataset, split, name))}
    unseen = [split for split in splits if split != "train"] or ["train"]
    with deterministic(threads):
        measured = {split: measure(tokenizer, splits[split], settings.measured, judge) for split in unseen}
        some = splits[unseen[0]][spaced(len(splits[unseen[0]]), AT_ONCE)]
        codes = tokenizer.encode(some)
        rates = {
            "encode_pictures_per_second": rate(lambda: tokenizer.encode(some), len(some)),
            "decode_pictures_per_second": rate(lambda: tokenizer.decode(codes), len(some)),
        }
        shown = splits[unseen[0]][spaced(len(splits[unseen[0]]), SHOWN)]
        rebuilt = tokenizer.decode(tokenizer.encode(shown))
    write_rates(out, rates)
    main = measured[unseen[0]]
    figures = {
        f"{name}.psnr": main.psnr,
        f"{name}.psnr_pooled": main.psnr_pooled,
        f"{name}.ssim": main.ssim,
        f"{name}.ms_ssim": main.ms_ssim,
        f"{name}.{judge.name}": main.distance,
        f"{name}.frechet_{judge.name}": main.frechet,
        f"{name}.bits_per_pixel": bits(tokenizer) / (tokenizer.height * tokenizer.width),
        f"{name}.codebook_use": main.use.share,
        f"{name}.perplexity": main.use.perplexity,
    }
    if "validation" in measured:
        figures[f"{name}.psnr_validation"] = measured["validation"].psnr
    write_figures(out, {figure: round(value, 4) for figure, value in figures.items()})
    picture = write_picture(out, "reconstructions", _rows(shown, rebuilt))
    write_card(out, _card(settings, tokenizer, measured, picture, judge.name))


def measure(tokenizer: ImageTokenizer, values: Values | Frames, most: int, judge: PerceptualLoss) -> Measured:
    """Encodes and decodes up to `most` pictures, evenly spaced over the split."""
    index = spaced(len(values), most)
    ratios, similarities, over_scales, errors, distances = [], [], [], [], []
    features: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
    chosen: list[NDArray[np.int64]] = []
    for part in np.array_split(index, -(-len(index) // AT_ONCE)):
        real = values[part]
        codes = tokenizer.encode(real)
        chosen.append(codes)
        before, after = torch.from_numpy(real), torch.from_numpy(tokenizer.decode(codes))
        ratios.append(psnr(before, after))
        similarities.append(ssim(before, after))
        over_scales.append(ms_ssim(before, after))
        with torch.inference_mode():
            signed = [to_signed(x) for x in (before, after)]
            distances.append(float(judge(*signed)) * len(part))
            for side, x in zip(features, signed, strict=True):
                side.append(judge.pooled(x))
        errors.append((before.double() - after.double()).square().mean().item() * len(part))
    error = sum(errors) / len(index)
    return Measured(
        pictures=len(index),
        psnr=torch.cat(ratios).mean().item(),
        psnr_pooled=min(100.0, float(10 * np.log10(255.0**2 / error))) if error else 100.0,
        ssim=torch.cat(similarities).mean().item(),
        ms_ssim=torch.cat(over_scales).mean().item(),
        distance=sum(distances) / len(index),
        frechet=frechet_distance(*(torch.cat(side) for side in features)),
        use=use_of(chosen, tokenizer.codebook_size, tokenizer.levels),
    )


def _card(settings: TrainTokenizer, tokenizer: ImageTokenizer, measured: dict[str, Measured], picture: str, judge: str) -> Card:
    name, (split, main) = settings.stream, next(iter(measured.items()))
    height, width = tokenizer.shape[:2]
    distance = ""
    if settings.perceptual is not None:
        distance = f" Pictures are compared by the encoder {settings.perceptual}."
    elif isinstance(settings.tokenizer, VqGan) and settings.tokenizer.perceptual_weight and settings.tokenizer.perceptual_weights is None:
        distance = " The perceptual network is random with a fixed seed."
    rows = tuple(
        (
            *(each, found.pictures, round(found.psnr, 2), round(found.ssim, 4), round(found.ms_ssim, 4), round(found.distance, 4)),
            *(round(found.frechet, 4), round(found.use.share, 4), round(found.use.perplexity, 1)),
        )
        for each, found in measured.items()
    )
    table = Table(
        columns=("split", "pictures", "PSNR (dB)", "SSIM", "MS-SSIM", judge, f"Frechet ({judge})", "codebook use", "perplexity"), rows=rows
    )
    tokenizer.measured = markdown_table(table.columns, table.rows)
    blocks: tuple[Block, ...] = (
        Picture(file=picture, caption=f"{split}: pictures above, what is left of them after {height} x {width} codes below.{distance}"),
        table,
        Bars(values=main.use.bars(), title=f"Choices of the codes of {name}, from the most to the least chosen ({split})"),
        *loss_curves(name, tokenizer.settings, *((judge,) if settings.perceptual is not None else ())),
        Curves(series=("psnr",), title=f"PSNR of the training batch ({name})", unit="dB"),
        Curves(series=("codebook_use",), title=f"Share of the codes used in the last 100 steps ({name})"),
        Curves(series=("perplexity",), title=f"Perplexity of the codes, {tokenizer.codebook_size:,} if all are used alike ({name})"),
        Curves(series=("oldest_idle_code", "dead_code_age"), title=f"Updates since idle and dead codes were chosen ({name})"),
    )
    return Card(title=f"Tokenizer of {name}", blocks=blocks, headline=(f"{name}.psnr", f"{name}.codebook_use", f"{name}.perplexity"))


def _rows(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two rows of pictures with white between them, enlarged by whole pixels."""
    scale = max(1, SHOWN_SIDE // before.shape[1])
    gap = max(2, before.shape[1] * scale // 16)
    lines = []
    for pictures in (before, after):
        large = pictures.repeat(scale, axis=1).repeat(scale, axis=2)
        padded = np.pad(large, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(padded), axis=1))
    both = np.concatenate(lines, axis=0)
    return np.pad(both, ((0, gap), (0, gap), (0, 0)), constant_values=255)
