"""What a tokenizer of clips is worth on clips it has not seen: frames, what changes between them, use of its codes; how they look."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from worldloom.stages.card import (
    Bars,
    Block,
    Card,
    Curves,
    Gallery,
    Item,
    Picture,
    Table,
    write_card,
    write_clip,
    write_figures,
    write_picture,
)
from worldloom.stages.code_figures import bits, loss_curves, markdown_table, rate, use_of, write_rates
from worldloom.stages.dataset import Dataset
from worldloom.stages.deterministic import deterministic
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.value_batches import Values, spaced
from worldloom.tokenizers.measures import psnr, ssim
from worldloom.tokenizers.video import VideoTokenizer

SPLITS = ("held_out", "validation", "train")
MOST = 256  # clips, at most, however many are to be measured: frames are many
SHOWN, MOVING, SIDE = 2, 4, 48  # strips, moving pictures, pixels of a shown frame at least


def report_video(settings: TrainTokenizer, tokenizer: VideoTokenizer, dataset: Dataset, out: Path, threads: int) -> None:
    """Measures the first split that training has not seen; writes figures.json, pictures and card.json."""
    name = settings.stream
    split, values = next((split, values) for split in SPLITS if len(values := Values(dataset, split, name)))
    some = values[spaced(len(values), min(settings.measured, MOST))]
    with deterministic(threads):
        codes = np.concatenate([tokenizer.encode(part) for part in np.array_split(some, -(-len(some) // tokenizer.batch))])
        rebuilt = tokenizer.decode(codes)
        few, few_codes = some[: tokenizer.batch], codes[: tokenizer.batch]
        frames = len(few) * tokenizer.frames
        speeds = {
            "encode_frames_per_second": rate(lambda: tokenizer.encode(few), frames),
            "decode_frames_per_second": rate(lambda: tokenizer.decode(few_codes), frames),
        }
    write_rates(out, speeds)
    use = use_of([codes], tokenizer.codebook_size, tokenizer.levels)
    before, after = (torch.from_numpy(clips).flatten(0, 1) for clips in (some, rebuilt))
    figures = {
        f"{name}.psnr": float(psnr(before, after).mean()),
        f"{name}.ssim": float(ssim(before, after).mean()),
        f"{name}.temporal_error": temporal_error(some, rebuilt),
        f"{name}.codebook_use": use.share,
        f"{name}.perplexity": use.perplexity,
        f"{name}.bits_per_pixel": bits(tokenizer) / (tokenizer.frames * tokenizer.height * tokenizer.width),
        f"{name}.bits_per_second": bits(tokenizer) / tokenizer.frames * tokenizer.frame_rate,
    }
    write_figures(out, {figure: round(value, 4) for figure, value in figures.items()})
    shown = ("psnr", "ssim", "temporal_error", "bits_per_pixel", "bits_per_second", "codebook_use", "perplexity")
    table = Table(
        columns=("PSNR of frames (dB)", "SSIM", "temporal error", "bits a pixel", "bits a second", "codebook use", "perplexity"),
        rows=(tuple(round(figures[f"{name}.{what}"], 4) for what in shown),),
        title=f"{len(some):,} clips of {split}",
    )
    tokenizer.measured = f"On {len(some)} clips of {split}:\n\n{markdown_table(table.columns, table.rows)}"
    write_card(out, _card(name, tokenizer, table, use.bars(), some, rebuilt, split, out))


def temporal_error(real: NDArray[np.uint8], made: NDArray[np.uint8]) -> float:
    """Mean error of what changes between frames [B, T, H, W, 3], over how much changes in the real ones; 0 of one frame."""
    changes, others = (np.diff(clips.astype(np.float32), axis=1) for clips in (real, made))
    if not changes.size:
        return 0.0
    return float(np.abs(changes - others).mean() / max(float(np.abs(changes).mean()), 1e-3))


def strips(real: NDArray[np.uint8], made: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames side by side, real above, rebuilt below, for each of the clips [B, T, H, W, 3]."""
    scale = max(1, SIDE // real.shape[2])
    lines = []
    for pair in zip(real, made, strict=True):
        for clip in pair:
            large = clip.repeat(scale, axis=1).repeat(scale, axis=2)
            lines.append(np.concatenate([np.pad(frame, ((1, 1), (1, 1), (0, 0)), constant_values=255) for frame in large], axis=1))
        lines.append(np.full((4, lines[-1].shape[1], 3), 255, np.uint8))
    return np.concatenate(lines[:-1], axis=0)


def _card(
    name: str,
    tokenizer: VideoTokenizer,
    table: Table,
    bars: tuple[float, ...],
    real: NDArray[np.uint8],
    made: NDArray[np.uint8],
    split: str,
    out: Path,
) -> Card:
    picture = write_picture(out, "reconstructions", strips(real[:SHOWN], made[:SHOWN]))
    items = tuple(
        Item(
            file=write_clip(out, f"after-{i}", made[i], tokenizer.frame_rate),
            before=write_clip(out, f"before-{i}", real[i], tokenizer.frame_rate),
            caption=f"{split}, clip {i}",
        )
        for i in range(min(MOVING, len(real)))
    )
    codes = " x ".join(map(str, tokenizer.shape))
    blocks: tuple[Block, ...] = (
        Picture(file=picture, caption=f"{split}: frames of clips, what is left of them after {codes} codes below."),
        Gallery(items=items, title="Before and after, moving"),
        table,
        Bars(values=bars, title=f"Choices of the codes of {name}, from the most to the least chosen ({split})"),
        *loss_curves(name, tokenizer.settings),
        Curves(series=("psnr",), title=f"PSNR of the training batch ({name})", unit="dB"),
        Curves(series=("codebook_use",), title=f"Share of the codes used in the last 100 steps ({name})"),
    )
    return Card(title=f"Tokenizer of {name}", blocks=blocks, headline=(f"{name}.psnr", f"{name}.codebook_use"))
