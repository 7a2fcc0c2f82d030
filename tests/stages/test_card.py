import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from worldloom.stages.card import (
    Bars,
    Card,
    Gallery,
    Item,
    Picture,
    Sound,
    Text,
    write_card,
    write_clip,
    write_figures,
    write_picture,
    write_sound,
)

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def test_a_picture_comes_back_as_it_was_and_in_the_same_bytes(tmp_path: Path) -> None:
    file = write_picture(tmp_path, "a-1", PIXELS)
    assert file == "pictures/a-1.png"
    assert (np.asarray(Image.open(tmp_path / file)) == PIXELS).all()
    before = (tmp_path / file).read_bytes()
    write_picture(tmp_path, "a-1", PIXELS[::1].copy())
    assert (tmp_path / file).read_bytes() == before


def test_a_clip_is_a_picture_that_moves_and_begins_with_its_first_frame(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    file = write_clip(tmp_path, "moving", clip, frame_rate=8.0)
    with Image.open(tmp_path / file) as image:
        assert image.format == "PNG" and getattr(image, "n_frames", 1) == 4 and image.info["duration"] == 125
        for number, frame in enumerate(clip):
            image.seek(number)
            assert (np.asarray(image.convert("RGB")) == frame).all()
    before = (tmp_path / file).read_bytes()
    write_clip(tmp_path, "moving", clip.copy(), frame_rate=8.0)
    assert (tmp_path / file).read_bytes() == before
    still = write_clip(tmp_path, "still", clip[:1], frame_rate=8.0)
    assert (np.asarray(Image.open(tmp_path / still)) == clip[0]).all()


def test_a_sound_is_a_wav_file_of_16_bits_and_its_picture(tmp_path: Path) -> None:
    sound = np.stack([np.sin(np.arange(600) / 5), np.linspace(-1.5, 1.5, 600)]).astype(np.float32)
    block = write_sound(tmp_path, "beep", sound, 8_000, "a beep")
    assert block == Sound(file="sounds/beep.wav", picture="pictures/beep-spectrogram.png", caption="a beep")
    with wave.open(str(tmp_path / block.file)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes(), file.getsampwidth()) == (2, 8_000, 600, 2)
        back = np.frombuffer(file.readframes(600), "<i2").reshape(600, 2).T
    assert np.abs(back / 32767 - sound.clip(-1, 1)).max() < 1 / 32767
    write_card(tmp_path, Card(title="t", blocks=(block,)))
    (tmp_path / block.file).unlink()
    with pytest.raises(ValueError, match=r"shows sounds/beep\.wav, which is not in the artifact"):
        write_card(tmp_path, Card(title="t", blocks=(block,)))


def test_a_card_comes_back_from_its_file(tmp_path: Path) -> None:
    item = Item(file=write_picture(tmp_path, "a", PIXELS), caption="ä < b", verdict="wrong")
    card = Card(title="t", blocks=(Text(text="x"), Gallery(items=(item,)), Bars(values=(1.5, 2), title="n")), headline=("a.b",))
    write_card(tmp_path, card)
    assert Card.model_validate_json((tmp_path / "card.json").read_bytes()) == card


def test_a_card_that_shows_a_missing_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shows pictures/x\.png, which is not in the artifact"):
        write_card(tmp_path, Card(title="t", blocks=(Picture(file="pictures/x.png", caption="c"),)))


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the figure a\.b is nan"):
        write_figures(tmp_path, {"a.b": float("nan")})
    write_figures(tmp_path, {"b": 1, "a": 0.5})
    assert json.loads((tmp_path / "figures.json").read_bytes()) == {"a": 0.5, "b": 1}


def test_a_picture_has_a_plain_name_and_a_verdict_is_right_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.\./x' is no name for a picture"):
        write_picture(tmp_path, "../x", PIXELS)
    with pytest.raises(ValidationError, match="'right' or 'wrong'"):
        Item.model_validate({"file": "a", "caption": "b", "verdict": "maybe"})
