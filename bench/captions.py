"""Captions of pictures: with what the text decoder remembers, beside reading the whole caption again for every token, as open_clip does."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.figure import Figure, at_least, seconds_of
from worldloom.world_model.encoders.build import build_coca, build_encoder
from worldloom.world_model.encoders.captioning import write_captions
from worldloom.world_model.encoders.coca import CoCa
from worldloom.world_model.encoders.settings import TextSideSettings, VitSettings

ROUNDS = 5
PICTURES, SIDE, TOKENS = 64, 64, 32
VOCABULARY, BEGIN, NO_END = 512, 1, -1


def figures() -> Iterator[Figure]:
    """Untrained, and without an end token, so that every caption is of full length."""
    generator = torch.Generator().manual_seed(0)
    picture = VitSettings(patch=8, width=192, depth=6, heads=3, grid=(SIDE // 8, SIDE // 8))
    text = TextSideSettings(width=192, depth=6, heads=3, length=TOKENS, queries=64)
    model = build_coca(build_encoder(picture, generator), text, VOCABULARY, generator).eval()
    x = torch.randn((PICTURES, 3, SIDE, SIDE), generator=generator)
    same = torch.equal(write_captions(model, x, BEGIN, NO_END, TOKENS).ids, _whole(model, x))
    yield at_least("encoders.captions_equal", float(same), "share of captions", "without the cache", 1.0, 1.0)
    ours: Callable[[], object] = lambda: write_captions(model, x, BEGIN, NO_END, TOKENS)  # noqa: E731
    taken = seconds_of({"ours": ours, "whole": lambda: _whole(model, x)}, ROUNDS)
    rate, plain = (PICTURES / taken[name] for name in ("ours", "whole"))
    yield at_least("encoders.captions_cached", rate, "captions/s of 32 tokens", "without the cache", plain, 5.0)


@torch.inference_mode()
def _whole(model: CoCa, x: Tensor) -> Tensor:
    """The picture is encoded once here, too."""
    picture, rows = model.encode(x).tokens, torch.full((len(x), 1), BEGIN)
    while rows.shape[1] < TOKENS:
        logits = model.text.logits(model.text.read(rows, torch.ones_like(rows, dtype=torch.bool)), picture)
        rows = torch.cat([rows, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return rows
