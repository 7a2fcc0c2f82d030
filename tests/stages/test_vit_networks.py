"""Vision transformers around the codes of a tokenizer: built by the stage, and built again by whoever opens it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from worldloom.stages.open_tokenizer import NETWORKS, open_tokenizer
from worldloom.stages.vit_networks import VitDecoder, VitEncoder
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import Dvae, VqGan, VqVae
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.quantizers.settings import Ema
from worldloom.tokenizers.video import VideoTokenizer

BACKBONE = {"type": "vit", "width": 12, "depth": 2, "decoder_depth": 1, "heads": 3}
CODES = {"codebook_size": 11, "downsample": 8, "quantizer": Ema(code_width=3)}
TYPES = {
    "vqgan": VqGan.model_validate({**CODES, "backbone": BACKBONE}),
    "vqvae": VqVae.model_validate({**CODES, "backbone": {**BACKBONE, "positions": "sine"}}),
    "dvae": Dvae.model_validate({"codebook_size": 11, "downsample": 8, "code_width": 5, "backbone": BACKBONE}),
}
FORM = {"height": 16, "width": 24}


def shaken(tokenizer: Any) -> Any:
    """Untrained, but with weights and codes that tell pictures apart."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in tokenizer.autoencoder.state_dict().values():
            if value.is_floating_point():
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return tokenizer


def pictures(count: int, *more: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *more, 16, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", TYPES)
def test_a_saved_tokenizer_gives_the_same_codes_and_pictures(tmp_path: Path, name: str) -> None:
    image = shaken(ImageTokenizer.build(TYPES[name], FORM, 1, NETWORKS))
    codes = image.encode(pictures(5))
    assert codes.shape == (5, 2, 3) and len(np.unique(codes)) > 1
    image.save_pretrained(tmp_path)
    again = open_tokenizer(tmp_path)
    assert np.array_equal(again.encode(pictures(5)), codes) and again.fingerprint == image.fingerprint
    assert np.array_equal(again.decode(codes), image.decode(codes))


def test_codes_do_not_depend_on_the_batch() -> None:
    image = shaken(ImageTokenizer.build(TYPES["vqgan"], FORM, 1, NETWORKS))
    together = image.encode(pictures(18))
    assert np.array_equal(together, np.concatenate([image.encode(one[None]) for one in pictures(18)]))


def test_clips_are_coded_frame_by_frame(tmp_path: Path) -> None:
    clips = shaken(VideoTokenizer.build(TYPES["vqgan"], {**FORM, "frames": 3, "frame_rate": 5.0}, 1, NETWORKS))
    image = shaken(ImageTokenizer.build(TYPES["vqgan"], FORM, 1, NETWORKS))
    image.autoencoder.load_state_dict({name.replace(".inner.", "."): value for name, value in clips.autoencoder.state_dict().items()})
    codes = clips.encode(pictures(2, 3))
    assert np.array_equal(codes, image.encode(pictures(2, 3).reshape(6, 16, 24, 3)).reshape(2, 3, 2, 3))
    clips.save_pretrained(tmp_path)
    assert np.array_equal(open_tokenizer(tmp_path).encode(pictures(2, 3)), codes)


def test_without_the_networks_it_says_what_to_pass(tmp_path: Path) -> None:
    ImageTokenizer.build(TYPES["vqgan"], FORM, 1, NETWORKS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the backbone 'vit' is built outside of tokenizers.* worldloom\.stages\.open_tokenizer"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, NETWORKS).shape == (2, 3)


def test_building_follows_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (ImageTokenizer.build(TYPES["vqgan"], FORM, seed, NETWORKS).autoencoder.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one) and not all(torch.equal(one[name], other[name]) for name in one)


def test_one_code_is_one_token_and_its_cell_of_pixels() -> None:
    image = shaken(ImageTokenizer.build(TYPES["vqgan"], FORM, 1, NETWORKS))
    encoder, decoder = image.autoencoder.encoder, image.autoencoder.decoder
    assert isinstance(encoder, VitEncoder) and isinstance(decoder, VitDecoder)
    z = torch.randn(1, 3, 2, 3)
    made = decoder(z)
    with torch.no_grad():
        decoder.head.weight.zero_()
        decoder.head.bias.copy_(torch.arange(192.0))
    cells = decoder(z).reshape(3, 2, 8, 3, 8)
    assert made.shape == (1, 3, 16, 24) and torch.equal(cells[:, 0, :, 0], torch.arange(192.0).view(3, 8, 8))
    assert torch.equal(cells[:, 1, :, 2], cells[:, 0, :, 0])
    assert decoder.last_weight is decoder.head.weight and len(encoder.vit.trunk.blocks) == 2 and len(decoder.trunk.blocks) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blocks": 2}, r"blocks shapes the conv backbone; with vit leave it out"),
        ({"width": 8, "patch": 4}, r"patch, width shape the conv backbone"),
        ({"time_stride": 2}, r"time_stride \(2\) needs the conv backbone: vit codes frame by frame"),
        ({"backbone": {"type": "vit", "width": 12, "heads": 5}}, r"width \(12\) must be a multiple of heads \(5\)"),
        ({"backbone": {"type": "vit", "width": 14, "heads": 2, "positions": "sine"}}, "positions 'sine' needs a width that 4 divides"),
        ({"backbone": {"type": "conv", "width": 14}}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_a_backbone_would_ignore_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VqGan.model_validate({"backbone": BACKBONE, **wrong})
