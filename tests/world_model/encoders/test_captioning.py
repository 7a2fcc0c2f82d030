"""Captions that a cache does not change, beams against all captions there are, and draws."""

import pytest
import torch
from torch import Tensor, nn

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.captioning import TopP, beam_search, write_captions
from worldloom.world_model.encoders.coca import CoCa
from worldloom.world_model.encoders.settings import VitSettings
from worldloom.world_model.encoders.text_decoder import TextDecoder

V, LENGTH, WIDTH = 11, 8, 24
BEGIN, END = 1, 2


def some(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coca(seed: int = 0, std: float = 0.3) -> CoCa:
    generator = torch.Generator().manual_seed(seed)
    about = VitSettings(width=16, depth=1, heads=2, patch=2, grid=(2, 3), class_token=False, pooling="mean")
    text = TextDecoder(V, LENGTH, WIDTH, 4, 3, WIDTH, generator)
    made = CoCa(build_encoder(about, generator), text, WIDTH, 3, queries=5, generator=generator)
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0, std, generator=generator)
    return made.eval()


def whole_way(model: CoCa, x: Tensor, length: int) -> Tensor:
    """Greedy captions by reading the whole caption again for every token."""
    picture, rows = model.encode(x).tokens, torch.full((len(x), 1), BEGIN)
    while rows.shape[1] < length and not bool((rows == END).any(1).all()):
        logits = model.text.logits(model.text.read(rows, torch.ones_like(rows, dtype=torch.bool)), picture)
        ids = logits[:, -1].argmax(-1).masked_fill((rows == END).any(1), END)
        rows = torch.cat([rows, ids[:, None]], 1)
    return rows


@torch.inference_mode()
def scores_of(model: CoCa, x: Tensor, ids: Tensor) -> Tensor:
    """Mean log-probability of every token behind the first, up to the first end token."""
    logits = model.text.logits(model.text.read(ids, torch.ones_like(ids).bool()), model.encode(x).tokens)
    logs = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    counted = ((ids[:, :-1] == END).cumsum(1) == 0).float()
    return (logs * counted).sum(1) / counted.sum(1)


def test_captions_with_the_cache_are_those_without_and_the_picture_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    for seed in range(3):
        model, x = coca(seed, std=0.6), some(seed, 5, 3, 4, 6)
        expected = whole_way(model, x, LENGTH)
        original = model.encode
        monkeypatch.setattr(model, "encode", lambda pixels, original=original: calls.append(len(pixels)) or original(pixels))
        found = write_captions(model, x, BEGIN, END, LENGTH)
        assert torch.equal(found.ids, expected)
        torch.testing.assert_close(found.scores, scores_of(model, x, expected), rtol=0, atol=1e-5)
    assert calls == [5, 5] * 3


def test_a_beam_of_one_is_greedy_and_no_beam_scores_below() -> None:
    better = 0
    for seed in range(4):
        model, x = coca(seed), some(seed, 5, 3, 4, 6)
        plain = write_captions(model, x, BEGIN, END, LENGTH)
        assert torch.equal(beam_search(model, x, BEGIN, END, LENGTH, beams=1).ids, plain.ids)
        for beams in (2, 5):
            found = beam_search(model, x, BEGIN, END, LENGTH, beams)
            assert bool((found.scores >= plain.scores).all())
            torch.testing.assert_close(found.scores, scores_of(model, x, found.ids), rtol=0, atol=1e-5)
            better += int((found.scores > plain.scores + 1e-4).sum())
    assert better > 0


def test_a_wide_beam_finds_the_best_caption_of_all() -> None:
    model, x, length = coca(seed=2), some(0, 2, 3, 4, 6), 3
    found = beam_search(model, x, BEGIN, END, length, beams=V * V).ids
    every = torch.tensor([[BEGIN, a, b] for a in range(V) for b in (range(V) if a != END else [END])])
    for row in range(2):
        scores = scores_of(model, x[row : row + 1].expand(len(every), -1, -1, -1), every)
        assert found[row].tolist() == every[scores.argmax()].tolist()


def test_top_p_draws_among_the_likeliest_only_and_follows_its_generator() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    drawn = TopP(torch.Generator().manual_seed(0), share=0.7)(logits)
    assert set(drawn.tolist()) == {0, 1} and abs((drawn == 0).float().mean() - 0.5 / 0.8) < 0.03
    assert set(TopP(torch.Generator().manual_seed(0), most=1)(logits).tolist()) == {0}
    assert torch.equal(TopP(torch.Generator().manual_seed(0), share=0.7)(logits), drawn)


def test_captions_longer_than_the_decoder_has_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="positions for 8; stop earlier"):
        write_captions(coca(), some(0, 1, 3, 4, 6), BEGIN, -1, LENGTH + 2)
