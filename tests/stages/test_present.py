"""Values as files for people, each read back by a common reader."""

import io
import json

import numpy as np
from PIL import Image

from worldloom.stages.present import present
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, TextStream, VideoStream


def test_a_picture_and_a_clip_are_png_enlarged_by_whole_pixels() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    still = present(clip[0], ImageStream(kind="image", size=(8, 9)), scale=2)
    moving = present(clip, VideoStream(kind="video", size=(8, 9), frames=3, frame_rate=4.0), scale=2)
    assert still.extension == moving.extension == "png"
    picture = np.asarray(Image.open(io.BytesIO(still.content)))
    assert picture.shape == (16, 18, 3) and (picture[::2, ::2] == clip[0]).all() and (picture[1::2, 1::2] == clip[0]).all()
    with Image.open(io.BytesIO(moving.content)) as image:
        image.seek(2)
        assert (np.asarray(image.convert("RGB"))[1::2, ::2] == clip[2]).all()


def test_a_sound_is_wav_a_text_is_text_and_actions_are_lists() -> None:
    sound = present(np.zeros((1, 400), np.float32), AudioStream(kind="audio", sample_rate=8_000, seconds=0.05))
    assert sound.extension == "wav" and sound.content[:4] == b"RIFF"
    assert present("ä b", TextStream(kind="text")) == ("txt", "ä b\n".encode())
    rows = np.array([[0.0, 1.0], [0.1, -2.5]], np.float32)
    actions = present(rows, ActionStream(kind="action", steps=2, dimensions=2))
    assert actions.extension == "json" and actions.content == b"[[0, 1], [0.1, -2.5]]\n"
    assert (np.array(json.loads(actions.content), np.float32) == rows).all()
