"""The tokenizer of clips: shapes, streaming, per-frame codes, the same in any batch and from its folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import Dvae, VqGan, VqVae
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.quantizers.settings import Ema, Fsq, Residual
from worldloom.tokenizers.video import VideoTokenizer, fold_frames

SMALL = {"downsample": 8, "width": 4, "blocks": 1}
EMA = Ema(code_width=3)
SETTINGS = [
    VqGan(codebook_size=11, quantizer=EMA, time_stride=4, **SMALL),
    VqVae(codebook_size=11, quantizer=Residual(levels=2, code_width=3), time_stride=2, **SMALL),
    VqVae(codebook_size=15, quantizer=Fsq(levels=(5, 3)), **SMALL),
    Dvae(codebook_size=11, code_width=5, time_stride=4, **SMALL),
]
FRAMES, HEIGHT, WIDTH = 6, 16, 24
FORM = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "frame_rate": 8.0}


def shaken(made: VideoTokenizer | ImageTokenizer) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in made.autoencoder.state_dict().values():
            if value.is_floating_point():
                value.add_(0.2 * torch.randn(value.shape, generator=generator))


def tokenizer(settings: VqGan | VqVae | Dvae = SETTINGS[0], **form: int) -> VideoTokenizer:
    made = VideoTokenizer.build(settings, {**FORM, **form}, seed=3)
    shaken(made)
    return made


def clips(count: int, frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(("settings", "shape"), list(zip(SETTINGS, [(3, 2, 3), (4, 2, 3, 2), (6, 2, 3), (3, 2, 3)], strict=True)))
def test_codes_and_clips_have_the_shapes_that_are_promised(settings: VqGan | VqVae | Dvae, shape: tuple[int, ...], tmp_path: Path) -> None:
    video = tokenizer(settings)
    codes = video.encode(clips(3))
    assert video.shape == shape and codes.shape == (3, *shape) and len(np.unique(codes)) > 2
    back = video.decode(codes)
    assert back.shape == (3, FRAMES, HEIGHT, WIDTH, 3) and back.dtype == np.uint8
    video.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == video.fingerprint and np.array_equal(again.encode(clips(3)), codes)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: f"{settings.type}-{settings.time_stride}")
def test_codes_do_not_depend_on_the_batch(settings: VqGan | VqVae | Dvae) -> None:
    video = tokenizer(settings)
    together = video.encode(clips(7))
    for i in range(7):
        assert np.array_equal(video.encode(clips(7)[i : i + 1])[0], together[i])


@pytest.mark.parametrize("parts", [(1, 4, 4), (5, 4), (1, 8)])
def test_codes_of_parts_are_exactly_those_of_the_whole(parts: tuple[int, ...]) -> None:
    video = tokenizer(frames=9)
    x = clips(4, 9)
    streamed = np.concatenate(list(video.encode_stream(np.split(x, np.cumsum(parts)[:-1], axis=1))), axis=1)
    assert np.array_equal(streamed, video.encode(x))


def test_on_one_frame_it_equals_itself_on_a_picture() -> None:
    video, picture = tokenizer(frames=9), tokenizer(frames=1)
    picture.autoencoder.load_state_dict(video.autoencoder.state_dict())
    x = clips(4, 9)
    alone = picture.encode(x[:, :1])
    assert np.array_equal(alone[:, 0], video.encode(x)[:, 0]) and alone.shape == (4, 1, 2, 3)
    assert np.array_equal(next(iter(video.encode_stream([x[:, :1]]))), alone)


def test_frames_by_themselves_have_the_codes_of_pictures() -> None:
    settings = VqVae(codebook_size=11, quantizer=EMA, **SMALL)
    video = tokenizer(settings)
    image = ImageTokenizer.build(settings, {"height": HEIGHT, "width": WIDTH}, seed=0)
    image.autoencoder.load_state_dict({name.replace(".inner.", "."): value for name, value in video.autoencoder.state_dict().items()})
    x = clips(2)
    codes = video.encode(x)
    assert np.array_equal(codes.reshape(12, 2, 3), image.encode(x.reshape(12, HEIGHT, WIDTH, 3)))
    assert np.array_equal(video.decode(codes).reshape(12, HEIGHT, WIDTH, 3), image.decode(codes.reshape(12, 2, 3)))


def test_a_clip_that_does_not_come_out_even_is_filled_with_its_last_frame() -> None:
    video = tokenizer()  # 6 frames, a first one and steps of 4: three frames are missing
    whole = tokenizer(frames=9)
    whole.autoencoder.load_state_dict(video.autoencoder.state_dict())
    x = clips(4)
    assert np.array_equal(video.encode(x), whole.encode(np.concatenate([x, np.repeat(x[:, -1:], 3, axis=1)], axis=1)))


def test_frames_fold_into_the_batch_and_pictures_stay() -> None:
    x = torch.arange(2 * 3 * 5 * 4 * 4).view(2, 3, 5, 4, 4)
    assert torch.equal(fold_frames(x)[7], x[1, :, 2]) and fold_frames(x[:, :, 0]).shape == (2, 3, 4, 4)


def test_frames_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ValueError, match="frames of 16 x 20 pixels cannot be divided into cells of 8"):
        tokenizer(width=20)
