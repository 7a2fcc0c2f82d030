"""Values on a card: large pictures made smaller, clips that move, sounds that can be heard."""

from pathlib import Path

import numpy as np
from PIL import Image

from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, TextStream, VideoStream
from worldloom.stages.show import show

PICTURES = ImageStream(kind="image", size=16)


def test_large_pictures_are_made_smaller_for_the_card_and_small_ones_stay(tmp_path: Path) -> None:
    large, small = np.full((500, 250, 3), 9, np.uint8), np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    sides = {}
    for name, picture in (("a", large), ("b", small)):
        shown = show(tmp_path, name, picture, PICTURES)
        assert shown is not None and shown.sound is None
        sides[name] = np.asarray(Image.open(tmp_path / shown.file)).shape[:2]
    assert sides == {"a": (192, 96), "b": (5, 5)}


def test_clips_move_sounds_have_a_picture_and_words_and_actions_are_not_shown(tmp_path: Path) -> None:
    clip = show(tmp_path, "c", np.zeros((3, 8, 8, 3), np.uint8), VideoStream(kind="video", size=8, frames=3, frame_rate=4.0))
    sound = show(tmp_path, "s", np.zeros((1, 400), np.float32), AudioStream(kind="audio", sample_rate=8_000, seconds=0.05))
    assert clip is not None and sound is not None and sound.sound is not None
    assert (tmp_path / clip.file).is_file() and (tmp_path / sound.file).is_file() and (tmp_path / sound.sound).is_file()
    assert show(tmp_path, "t", "words", TextStream(kind="text")) is None
    assert show(tmp_path, "a", np.zeros((2, 1), np.float32), ActionStream(kind="action", steps=2)) is None
