"""What values cost follows from what their headers claim, whatever the size of their files."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.values import codes_in, cost_of
from worldloom.stages.npy import write_npy
from worldloom.stages.settings import AudioStream, VideoStream

SOUND = AudioStream(kind="audio", sample_rate=4_000, seconds=0.64)
CLIP = VideoStream(kind="video", size=16, frames=5, frame_rate=8.0)


def flac(seconds, rate=8_000, channels=1):
    written = io.BytesIO()
    soundfile.write(written, np.zeros((seconds * rate, channels), np.float32), rate, format="FLAC")
    return written.getvalue()


def mp4(frames, size, rate):
    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = size, size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return written.getvalue()


def test_a_sound_costs_its_samples_and_a_clip_the_pixels_of_the_frames_that_are_looked_at():
    sound, clip = flac(30, channels=2), mp4(40, 64, 16)
    assert len(sound) < 30_000 and cost_of(SOUND, sound) == 30 * 8_000 * 2
    assert len(clip) < 30_000 and cost_of(CLIP, clip) == 11 * 64 * 64
    assert cost_of(SOUND, b"") == cost_of(SOUND, b"fLaC" + bytes(100)) == 2_560 and cost_of(CLIP, b"") == 5 * 16 * 16


@pytest.mark.parametrize(("tokenizer", "content"), [("sound", flac(30)), ("clip", mp4(40, 64, 16))], ids=["sound", "clip"])
def test_a_small_file_that_claims_too_much_is_refused_before_it_is_decoded(serve, clocked_root, tokenizer, content, monkeypatch):
    with serve([str(clocked_root)], Limits(samples=200_000, pixels=40_000)) as service:
        monkeypatch.delattr(service.engine.calls.workers[f"tokenizer:{tokenizer}"].__class__, "_value")
        answer = service("POST", "/v1/tokenize", data={"tokenizer": tokenizer}, files=[("file", ("x", content))])
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_costly"), answer.text


def test_codes_are_counted_in_lists_and_arrays():
    assert [codes_in(codes) for codes in ([1, 2, 3], [[1, 2], [3, 4]], [], write_npy(np.zeros((2, 3, 5), np.uint16)))] == [3, 4, 0, 30]
    assert codes_in(b"what") == 0
