"""Clips on disk: arrays and media files, frames by their timestamps, and a code for every file that is refused."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from worldloom.stages import stream_video
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import VideoStream
from worldloom.stages.stream_video import batch, claimed_pixels, decode, encode, form

STREAM = VideoStream(kind="video", size=(16, 24), frames=4, frame_rate=10.0)


def clip(frames: int = 4, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def grey(frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame i is of one grey, 20 i."""
    return np.broadcast_to((20 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, height, width, 3)).copy()


def media(frames: np.ndarray, rate: int = 10, times: list[int] | None = None) -> bytes:
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return content.getvalue()


def npy(value: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, value)
    return content.getvalue()


def shades(content: bytes, stream: VideoStream = STREAM) -> list[int]:
    return (decode(content, stream).mean(axis=(1, 2, 3)) / 20).round().astype(int).tolist()


def test_a_clip_comes_back_as_it_was_and_always_in_the_same_bytes() -> None:
    assert np.array_equal(decode(encode(clip(), STREAM), STREAM), clip())
    assert encode(clip(), STREAM) == encode(clip().copy(), STREAM)
    assert form(STREAM) == ((4, 16, 24, 3), "uint8") and batch([clip(), clip()]).shape == (2, 4, 16, 24, 3)


def test_short_clips_repeat_their_last_frame_long_ones_are_cut_and_others_are_fitted() -> None:
    short = decode(npy(clip(2)), STREAM)
    assert np.array_equal(short[:2], clip(2)) and (short[2:] == clip(2)[1]).all()
    assert np.array_equal(decode(npy(clip(9)), STREAM), clip(9)[:4])
    assert decode(npy(grey(3, 64, 64)), STREAM).shape == (4, 16, 24, 3)


def test_frames_of_a_media_file_are_chosen_by_their_time() -> None:
    assert shades(media(grey(5))) == [0, 1, 2, 3]
    assert shades(media(grey(8), rate=20)) == [0, 2, 4, 6]
    assert shades(media(grey(3), rate=5)) == [0, 0, 1, 1]
    assert shades(media(grey(3), times=[0, 3, 4])) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_input"),
        (b"<html></html>", "type_mismatch"),
        (npy(clip().astype(np.float32)), "type_mismatch"),
        (npy(clip()[0]), "type_mismatch"),
        (npy(clip()[:0]), "video_empty"),
        (npy(clip())[:-5], "video_limits"),
        (media(grey(5))[:200], "video_corrupt"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(60), "video_corrupt"),
    ],
)
def test_other_files_are_refused_with_their_code(content: bytes, code: str) -> None:
    with pytest.raises(InputRejected) as refused:
        decode(content, STREAM)
    assert refused.value.code == code


def test_what_is_too_much_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    content = media(grey(12))
    for name, limit, message in (
        ("MAX_SECONDS", 1.0, "at most 1 s"),
        ("MAX_FRAMES", 5, "and 5"),
        ("MAX_PIXELS", 100, "at most 100 pixels"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(stream_video, name, limit)
            with pytest.raises(InputRejected, match=f"video_limits.*{message}"):
                decode(content, STREAM)
    with pytest.raises(InputRejected, match="claims 1000 frames a second"):
        decode(media(grey(4), rate=1000), STREAM)
    monkeypatch.setattr(stream_video, "MAX_BYTES", 10)
    with pytest.raises(InputRejected, match="video_limits"):
        decode(content, STREAM)


def test_a_sound_without_pictures_is_empty() -> None:
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(InputRejected, match="video_empty"):
        decode(content.getvalue(), STREAM)


def test_a_moving_png_is_a_clip() -> None:
    from worldloom.stages.card import animated_png

    assert np.array_equal(decode(animated_png(clip(), 10.0), STREAM), clip())


def test_a_clip_claims_the_frames_that_are_looked_at_and_no_more_than_it_has() -> None:
    assert claimed_pixels(media(grey(5)), STREAM) == 5 * 32 * 48  # 4 frames at 10 a second, and one to know that the last has ended
    assert claimed_pixels(media(grey(3)), STREAM) == 3 * 32 * 48
    assert claimed_pixels(media(grey(1).repeat(300, axis=0), rate=100), STREAM) == 41 * 32 * 48
    for nothing in (b"", npy(clip()), media(grey(5))[:200], b"\x00\x00\x00\x20ftypisom" + bytes(60)):
        assert claimed_pixels(nothing, STREAM) == 0


def test_of_a_clip_of_many_frames_those_behind_the_stream_are_not_even_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content, looked = media(grey(1).repeat(300, axis=0), rate=100), list[int]()
    monkeypatch.setattr(stream_video.np, "rot90", lambda frame, turns: looked.append(turns) or frame)
    decode(content, STREAM)
    assert len(looked) * 32 * 48 <= claimed_pixels(content, STREAM)
