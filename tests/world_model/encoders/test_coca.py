"""CoCa's losses against closed forms and transformers' CLIP, and causality by exact zeros."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.captioning import write_captions
from worldloom.world_model.encoders.coca import CoCa
from worldloom.world_model.encoders.contrastive import Contrastive
from worldloom.world_model.encoders.settings import VitSettings
from worldloom.world_model.encoders.text_decoder import TextDecoder

V, LENGTH, WIDTH = 11, 8, 24
BEGIN, END = 1, 2


def some(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coca(cascade: bool = True, seed: int = 0, std: float | None = 0.3) -> CoCa:
    generator = torch.Generator().manual_seed(seed)
    about = VitSettings(width=16, depth=1, heads=2, patch=2, grid=(2, 3), class_token=False, pooling="mean")
    text = TextDecoder(V, LENGTH, WIDTH, 4, 3, WIDTH, generator)
    made = CoCa(build_encoder(about, generator), text, WIDTH, 3, queries=5, cascade=cascade, generator=generator)
    for name, parameter in made.named_parameters() if std is not None else ():
        if "log_scale" not in name:
            nn.init.normal_(parameter, 0, std or 0, generator=generator)
    return made.eval()


def captions() -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[1, 5, 6, 2, 0, 0], [1, 7, 3, 9, 4, 2], [1, 8, 2, 0, 0, 0]])
    return ids, torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()


def test_of_orthonormal_pairs_the_contrastive_loss_is_known() -> None:
    loss = Contrastive()
    with torch.no_grad():
        loss.log_scale.fill_(math.log(2.0))
    x = torch.linalg.qr(some(0, 6, 6).double())[0][:5].float()
    assert float(loss(x, 4 * x).detach()) == pytest.approx(math.log(math.e**2 + 4) - 2, rel=1e-6, abs=0)
    assert float(Contrastive().log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        loss.log_scale.fill_(9.0)
    assert float(loss.scale.detach()) == 100
    with pytest.raises(ValueError, match="needs two pairs at least, the global batch has 1"):
        loss(x[:1], x[:1])


def test_clip_gives_the_same_contrastive_loss() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    loss, pictures, texts = Contrastive(), some(0, 5, 6), some(1, 5, 6)
    logits = F.normalize(texts) @ F.normalize(pictures).T * loss.scale
    torch.testing.assert_close(loss(pictures, texts), image_text_contrastive_loss(logits), rtol=1e-6, atol=0)


def test_under_autocast_the_contrastive_loss_is_that_of_float32() -> None:
    loss, pictures, texts = Contrastive(), some(0, 5, 60), some(1, 5, 60)
    with torch.autocast("cpu", torch.bfloat16):
        found, halved = loss(pictures, texts), pictures @ texts.T
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(found, loss(pictures, texts), rtol=1e-6, atol=0)


def test_the_caption_loss_counts_tokens_behind_the_first_and_no_padding() -> None:
    model, x, (ids, present) = coca(), some(3, 3, 3, 4, 6), captions()
    logits = model.text.logits(model.text.read(ids, present), model.encode(x).tokens)
    terms = [-logits[b].double().log_softmax(-1)[t, ids[b, t + 1]] for b in range(3) for t in range(5) if present[b, t + 1]]
    assert len(terms) == 10
    torch.testing.assert_close(model(x, ids, present).caption.double(), torch.stack(terms).mean(), rtol=1e-6, atol=0)


def test_no_token_sees_a_later_one_and_the_class_token_sees_no_padding() -> None:
    model, (ids, present) = coca(), captions()
    picture = model.encode(some(3, 3, 3, 4, 6)).tokens.detach()
    for place in range(5):
        changed = ids.clone()
        changed[:, place + 1 :] = 10
        before = model.text.logits(model.text.read(ids, present), picture)[:, : place + 1]
        after = model.text.logits(model.text.read(changed, present), picture)[:, : place + 1]
        assert torch.equal(before, after)
    padded, longer = ids.clone(), torch.cat([ids, torch.full((3, 2), 9)], 1)
    padded[~present] = 10
    pooled = model.text.read(ids, present).pooled
    assert torch.equal(model.text.read(padded, present).pooled, pooled)
    torch.testing.assert_close(model.text.read(longer, F.pad(present, (0, 2))).pooled, pooled, rtol=0, atol=1e-5)


def test_captions_depend_on_the_picture_and_text_alone_does_not() -> None:
    model, (ids, present) = coca(), captions()
    x = some(3, 3, 3, 4, 6)
    text = model.text.read(ids, present)
    one, other = (model.text.logits(text, model.encode(pixels).tokens) for pixels in (x, x.flip(0)))
    assert not torch.allclose(one, other, atol=1e-3)
    grad = torch.autograd.grad(model.text.read(ids, present).pooled.sum(), list(model.encoder.parameters()), allow_unused=True)  # type: ignore[attr-defined]
    assert all(each is None for each in grad)


@pytest.mark.parametrize("cascade", [True, False], ids=["cascaded", "side by side"])
def test_the_contrastive_query_reads_what_the_captioning_queries_found_or_the_encoder(cascade: bool) -> None:
    model = coca(cascade)
    encodings = model.encode(some(3, 2, 3, 4, 6))
    assert encodings.tokens.shape == (2, 5, WIDTH) and encodings.pooled.shape == (2, WIDTH)
    found = torch.autograd.grad(encodings.pooled.sum(), [model.caption_pool.queries], allow_unused=True)[0]
    assert (found is not None) is cascade


def test_captions_too_long_and_shapes_that_do_not_fit_are_refused() -> None:
    model = coca()
    long = torch.ones(1, LENGTH + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="captions of 9 tokens, the text decoder has positions for 8; cut them"):
        model.text.read(long, long.bool())
    with pytest.raises(ValueError, match="an even depth and a width that heads divide, got 3"):
        TextDecoder(V, LENGTH, WIDTH, 3, 3, WIDTH)


def test_a_toy_set_is_told_apart() -> None:
    model = coca(std=None).train()
    x = some(3, 16, 3, 4, 6)
    generator = torch.Generator().manual_seed(5)
    ids = torch.cat([torch.full((16, 1), BEGIN), torch.randint(3, V, (16, 4), generator=generator), torch.full((16, 1), END)], 1)
    present = torch.ones_like(ids).bool()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(140):
        losses = model(x, ids, present)
        optimizer.zero_grad()
        (losses.contrastive + 2 * losses.caption).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        scores = F.normalize(model.encode(x).pooled) @ F.normalize(model.text.read(ids, present).pooled).T
    assert torch.equal(scores.argmax(1), torch.arange(16)) and torch.equal(scores.argmax(0), torch.arange(16))
    assert torch.equal(write_captions(model, x, BEGIN, END, LENGTH).ids[:, :6], ids)
