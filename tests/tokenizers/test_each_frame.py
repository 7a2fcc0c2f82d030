"""A tokenizer of pictures serves clips: each frame's codes are those of the picture."""

from pathlib import Path

import numpy as np
import pytest

from worldloom.stages.preprocess import serving, stream_of
from worldloom.stages.settings import ImageStream, TextStream, VideoStream
from worldloom.tokenizers.each_frame import EachFrame
from worldloom.tokenizers.image import ImageTokenizer
from worldloom.tokenizers.image_settings import VqVae
from worldloom.tokenizers.quantizers.settings import Ema, Residual

CLIP = VideoStream(kind="video", size=16, frames=3, frame_rate=8.0)


def picture(levels: int = 1) -> ImageTokenizer:
    quantizer = Ema(code_width=3) if levels == 1 else Residual(levels=levels, code_width=3)
    return ImageTokenizer.build(VqVae(codebook_size=11, downsample=8, width=4, quantizer=quantizer), {"height": 16, "width": 16}, seed=1)


@pytest.mark.parametrize("levels", [1, 2])
def test_codes_and_frames_are_those_of_the_pictures(levels: int, tmp_path: Path) -> None:
    image = picture(levels)
    clip = serving(image, CLIP)
    assert isinstance(clip, EachFrame) and clip.levels == levels
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    codes = clip.encode(x)
    assert codes.shape == (2, *clip.shape) and clip.shape[0] == 3
    for i in range(2):
        assert np.array_equal(codes[i], image.encode(x[i]))
        assert np.array_equal(clip.decode(codes)[i], image.decode(codes[i]))
    clip.save_pretrained(tmp_path)
    assert np.array_equal(EachFrame.from_pretrained(tmp_path).encode(x[:, :1]), codes[:, :1])
    assert stream_of(clip) == VideoStream(kind="video", size=(16, 16), frames=3, frame_rate=8.0)


def test_its_fingerprint_is_not_that_of_the_pictures_and_follows_the_frames() -> None:
    image = picture()
    assert len({image.fingerprint, EachFrame(image, 3, 8.0).fingerprint, EachFrame(image, 4, 8.0).fingerprint}) == 3


def test_streams_of_its_own_kind_it_serves_as_it_is_and_others_not() -> None:
    image = picture()
    assert serving(image, ImageStream(kind="image", size=16)) is image and serving(image, TextStream(kind="text")) is None


def test_other_clips_and_codes_are_refused() -> None:
    clip = EachFrame(picture(), 3, 8.0)
    with pytest.raises(ValueError, match=r"reads clips of 3 frames .* got \(1, 4, 16, 16, 3\)"):
        clip.encode(np.zeros((1, 4, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match=r"reads codes \[B, 3, 2, 2\], got \(1, 2, 2, 2\)"):
        clip.decode(np.zeros((1, 2, 2, 2), np.int64))
