"""Sounds on disk: one canonical sound whatever the file, and a code for every file that is refused."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from worldloom.stages import stream_audio
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import AudioStream
from worldloom.stages.stream_audio import batch, claimed_samples, decode, encode, form

STREAM = AudioStream(kind="audio", sample_rate=8_000, seconds=0.1)
STEREO = AudioStream(kind="audio", sample_rate=8_000, seconds=0.1, channels=2)


def tone(rate: int = 8_000, seconds: float = 0.1, hertz: float = 500.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def file(sound: np.ndarray, rate: int = 8_000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, sound, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def test_a_sound_comes_back_within_half_a_step_of_16_bits_and_always_in_the_same_bytes() -> None:
    value = tone()[None]
    content = encode(value, STREAM)
    assert np.abs(decode(content, STREAM) - value).max() <= 1 / 32767
    assert encode(value.copy(), STREAM) == content
    assert form(STREAM) == ((1, 800), "float32") and form(STEREO).shape == (2, 800)
    assert batch([value, value]).shape == (2, 1, 800)


@pytest.mark.parametrize(
    ("kind", "subtype", "loss"),
    [("WAV", "PCM_24", 1e-6), ("WAV", "FLOAT", 1e-7), ("FLAC", None, 1e-4), ("OGG", None, 0.2), ("MP3", None, 0.5)],
)
def test_all_formats_give_the_same_sound(kind: str, subtype: str | None, loss: float) -> None:
    found = decode(memoryview(file(tone(), kind=kind, subtype=subtype)), STREAM)
    assert found.shape == (1, 800) and found.dtype == np.float32
    assert np.abs(found[0] - tone()).max() < loss


def test_channels_are_mixed_to_one_or_doubled_to_two() -> None:
    both = np.stack([tone(), np.zeros(800, np.float32)], axis=1)
    assert np.allclose(decode(file(both, subtype="FLOAT"), STREAM)[0], tone() / 2, atol=1e-6)
    assert np.allclose(decode(file(both, subtype="FLOAT"), STEREO), both.T, atol=1e-6)
    doubled = decode(file(tone(), subtype="FLOAT"), STEREO)
    assert np.array_equal(doubled[0], doubled[1])


@pytest.mark.parametrize("rate", [4_000, 11_025, 44_100])
def test_another_rate_is_resampled_and_the_pitch_stays(rate: int) -> None:
    found = decode(file(tone(rate, seconds=0.2), rate), STREAM)[0]
    spectrum = np.abs(np.fft.rfft(found * np.hanning(800)))
    assert abs(int(spectrum.argmax()) * 10 - 500) <= 10


def test_a_short_sound_is_filled_with_silence_and_a_long_one_cut_at_its_end() -> None:
    short = decode(file(tone(seconds=0.03), subtype="FLOAT"), STREAM)[0]
    assert np.allclose(short[:240], tone(seconds=0.03)) and not short[240:].any()
    assert np.allclose(decode(file(tone(seconds=0.5), subtype="FLOAT"), STREAM)[0], tone(), atol=1e-6)
    assert decode(file(np.array([0.25], np.float32), subtype="FLOAT"), STREAM)[0, 0] == np.float32(0.25)
    assert np.abs(decode(file(tone() * 4, subtype="FLOAT"), STREAM)).max() == 1.0


def claiming(size: int) -> bytes:
    header = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8_000, 16_000, 2, 16)
    return header + b"data" + struct.pack("<I", size) + bytes(1_000)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_input"),
        (b"<html><body>404</body></html>", "type_mismatch"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "type_mismatch"),
        (b"\x00\x00\x00\x20ftypM4A ....", "format_not_allowed"),
        (b"FORM\x00\x00\x00\x00AIFF", "format_not_allowed"),
        (claiming(0xFFFFFF00), "audio_truncated"),
        (file(tone())[:600], "audio_truncated"),
        (file(tone())[:30], "audio_truncated"),
        (file(np.zeros(0, np.float32)), "audio_empty"),
        (file(np.array([0.0, np.nan], np.float32), subtype="FLOAT"), "audio_nonfinite"),
        (file(np.array([0.0, np.inf], np.float32), subtype="FLOAT"), "audio_nonfinite"),
        (b"fLaC" + bytes(200), "audio_corrupt"),
        (b"OggS" + bytes(200), "audio_corrupt"),
        (file(np.zeros((80, 9), np.float32)), "audio_limits"),
    ],
)
def test_other_files_are_refused_with_their_code(content: bytes, code: str) -> None:
    with pytest.raises(InputRejected) as refused:
        decode(content, STREAM)
    assert refused.value.code == code


def test_a_small_file_of_a_long_sound_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_audio, "MAX_SECONDS", 2.0)
    content = file(np.zeros(8_000 * 30, np.float32), kind="FLAC")
    assert len(content) < 20_000
    with pytest.raises(InputRejected, match="audio_too_long: more than 2 seconds"):
        decode(content, STREAM)
    monkeypatch.setattr(stream_audio, "MAX_BYTES", 100)
    with pytest.raises(InputRejected, match="audio_too_long: more than 100 bytes"):
        decode(content, STREAM)


def silence(seconds: int, rate: int, channels: int) -> bytes:
    """A FLAC file, written second by second."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, channels, format="FLAC") as written:
        for _ in range(seconds):
            written.write(np.zeros((rate, channels), np.float32))
    return stream.getvalue()


def test_of_a_long_sound_no_more_is_kept_than_the_stream_needs() -> None:
    content = silence(120, 96_000, 8)
    assert len(content) < 1 << 20 and claimed_samples(content) == 120 * 96_000 * 8
    tracemalloc.start()
    try:
        assert not decode(content, STREAM).any()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # all of its samples are 352 MiB


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (8_000, 2), (22_050, 3), (48_000, 8)])
@pytest.mark.parametrize("stream", [STREAM, STEREO], ids=["mono", "stereo"])
def test_a_sound_that_is_read_in_blocks_is_that_of_the_whole_to_the_bit(
    rate: int, channels: int, stream: AudioStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, (rate, channels)).astype(np.float32)
    content = file(noise, rate, subtype="FLOAT")
    whole = stream_audio._fit(noise, rate, stream)
    monkeypatch.setattr(stream_audio, "BLOCK", 1_000)
    assert decode(content, stream).tobytes() == whole.tobytes()


def test_too_many_samples_are_refused_by_the_header_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    content = file(np.zeros((600, 2), np.float32), kind="FLAC")
    monkeypatch.setattr(stream_audio, "MAX_SAMPLES", 1_000)
    monkeypatch.setattr(stream_audio, "_read", None)
    with pytest.raises(InputRejected, match="audio_too_long: more than 1000 samples, those of its 2 channels added up"):
        decode(content, STREAM)
    assert claimed_samples(content) == 0


def test_what_is_no_number_is_refused_behind_what_the_stream_needs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_audio, "BLOCK", 1_000)
    noise = np.zeros(8_000, np.float32)
    noise[-1] = np.nan
    with pytest.raises(InputRejected, match="audio_nonfinite"):
        decode(file(noise, subtype="FLOAT"), STREAM)
