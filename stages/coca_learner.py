"""CoCa (arXiv:2205.01917), its second phase: pictures contrasted with captions, and captions written, in one forward pass.

The first phase, classification, is a training of its own before it (pretrain_encoder.py). Texts go through the pipeline's own text
tokenizer, which is kept with the model.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from worldloom.stages.augment import View
from worldloom.stages.dataset import Dataset, Ragged
from worldloom.stages.encoder_learner import EncoderLearner, Recipe
from worldloom.stages.encoder_settings import Coca
from worldloom.stages.learner import Turn
from worldloom.stages.open_encoder import TOKENIZER, captions_of
from worldloom.stages.picture_batches import Pictures
from worldloom.tokenizers.text import PAD, TextTokenizer
from worldloom.world_model.encoders.build import Network, NetworkSettings, build_coca
from worldloom.world_model.encoders.joined import save_coca

READ_AT_ONCE = 1_024  # captions


class CocaLearner(EncoderLearner):
    """Contrastive and captioning loss together."""

    def __init__(self, encoder: Network, about: Coca, tokenizer: TextTokenizer, captions: Ragged, side: int, recipe: Recipe) -> None:
        """`captions` has a row for every sample of the training split."""
        self.encoder, self.about, self.recipe, self.tokenizer, self.captions = encoder, about, recipe, tokenizer, captions
        generator = torch.Generator().manual_seed(recipe.seed + 1)
        self.module = self.coca = build_coca(encoder, about.text, tokenizer.codebook_size, generator)
        # Mirrored, what a caption says of left and right would be wrong; so flips are a choice, and none is the default.
        self.view = View(side, (about.crop_from, 1.0), about.flip)
        self.players = (recipe.player(self.module),)

    def turns(self, batch: Pictures, step: int) -> Iterator[Turn]:
        self.module.train()
        (x,) = self.recipe.views(batch, (self.view,), self.device)
        ids = torch.from_numpy(rows_of(self.captions, batch.sample)).to(x.device)
        with self.recipe.autocast(x):
            losses = self.coca(x, ids, ids != PAD)
        weighted = {"contrastive": self.about.contrastive * losses.contrastive, "caption": self.about.caption * losses.caption}
        metrics = {"scale": self.coca.contrastive.scale.detach()}
        yield Turn("encoder", weighted, metrics, {"pictures": len(x), "text_tokens": int((ids != PAD).sum())})

    def save(self, out: Path, about: NetworkSettings) -> None:
        super().save(out, about)
        save_coca(out, self.coca, self.about.text)
        self.tokenizer.save_pretrained(out / TOKENIZER)


def read_captions(dataset: Dataset, stream: str, tokenizer: TextTokenizer, length: int) -> Ragged:
    """Every caption of the training split, begin and end included; ValueError where one is missing, or longer than `length`."""
    ids_of, lengths = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    for start in range(0, dataset.samples("train"), READ_AT_ONCE):
        numbers = range(start, min(start + READ_AT_ONCE, dataset.samples("train")))
        texts = [dataset.value("train", stream, i) for i in numbers]
        if None in texts:
            raise ValueError(f"captions: sample {start + texts.index(None)} lacks the stream {stream!r}; every picture needs a caption")
        ids, present = captions_of(tokenizer, texts, length)
        ids_of.append(ids[present].numpy().astype(np.int32))  # row by row, without the padding behind each
        lengths.append(present.sum(1).numpy())
    return Ragged(np.concatenate(ids_of), np.cumsum(np.concatenate(lengths)))


def rows_of(captions: Ragged, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [b, T]: the captions of `samples`, filled up with PAD to the longest of them."""
    starts, ends = captions.offsets[samples], captions.offsets[samples + 1]
    rows = np.full((len(samples), int((ends - starts).max())), PAD, np.int64)
    for row, start, end in zip(rows, starts.tolist(), ends.tolist(), strict=True):
        row[: end - start] = captions.values[start:end]
    return rows
