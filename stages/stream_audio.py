"""Sounds on disk: WAV, FLAC, Ogg and MP3 bytes to float32 [channels, samples] of one rate and length, and back to WAV.

Channels are mixed to mono by their mean, mono is doubled to stereo; other rates are resampled; what is too long is cut at its end, what is
too short is filled with silence. What the header claims is judged first, no more is decoded than the longest sound allowed, and no more
kept than the stream needs.
"""

import io
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.card import wav
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import AudioStream
from worldloom.stages.stream_kind import Form, StreamKind

MAX_BYTES = 256 << 20
MAX_SECONDS = 600.0
MAX_CHANNELS = 8
MAX_SAMPLES = 1 << 28  # channels added up; 600 s of eight channels at 48,000 Hz are a seventh less
RATES = (1_000, 384_000)  # samples a second
BLOCK = 1 << 16  # samples decoded at a time
UNKNOWN = 1 << 62  # what a header that does not say how long the sound is may seem to claim, or more

_MAGIC = (b"RIFF", b"fLaC", b"OggS", b"ID3")


def decode(content: bytes | memoryview, stream: AudioStream) -> NDArray[np.float32]:
    """InputRejected: empty_input, type_mismatch, format_not_allowed, audio_too_long, audio_limits, audio_truncated, audio_empty,
    audio_nonfinite, audio_corrupt."""
    import soundfile

    content = bytes(content)
    _judge(content)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, channels, frames = file.samplerate, file.channels, len(file)
            if not RATES[0] <= rate <= RATES[1] or channels > MAX_CHANNELS:
                raise InputRejected(
                    "audio_limits", f"{channels} channels at {rate} Hz; at most {MAX_CHANNELS}, {RATES[0]} .. {RATES[1]} Hz"
                )
            _judge_length(frames if frames < UNKNOWN else 0, rate, channels)
            sound = _read(file, rate, channels, _needed(rate, stream))
    except soundfile.LibsndfileError as error:
        raise InputRejected("audio_corrupt", str(error).splitlines()[0][:200]) from None
    if not len(sound):
        raise InputRejected("audio_empty" if frames <= 0 else "audio_truncated", f"the header claims {frames} samples, there are none")
    return _fit(sound, rate, stream)


def claimed_samples(content: bytes) -> int:
    """Samples that the header claims, channels added up; 0 where it says nothing, or what `decode` refuses without more work."""
    import soundfile

    try:
        _judge(content)
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            samples = file.frames if file.frames < UNKNOWN else 0
            _judge_length(samples, file.samplerate, file.channels)
            return int(samples * file.channels)
    except (InputRejected, soundfile.LibsndfileError):
        return 0


def encode(value: NDArray[np.float32], stream: AudioStream) -> bytes:
    """A WAV file of 16 bits."""
    return wav(value, stream.sample_rate)


def batch(values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """float32 [B, channels, samples]."""
    return np.stack(values)


def form(stream: AudioStream) -> Form:
    """float32 [channels, samples]."""
    return Form((stream.channels, stream.samples), "float32")


def _judge(content: bytes) -> None:
    if not content:
        raise InputRejected("empty_input", "the sound has no bytes")
    if len(content) > MAX_BYTES:
        raise InputRejected("audio_too_long", f"more than {MAX_BYTES} bytes")
    frame = len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0  # MPEG audio without tags
    if not (content.startswith(_MAGIC) or frame):
        if content[4:8] == b"ftyp" or content.startswith((b"FORM", b"MThd", b".snd", b"\x1aE\xdf\xa3")):
            raise InputRejected("format_not_allowed", "only WAV, FLAC, Ogg and MP3 are read")
        raise InputRejected("type_mismatch", f"the content is not a sound: it begins with {content[:12]!r}")
    if content.startswith(b"RIFF"):
        _judge_wav(content)


def _judge_wav(content: bytes) -> None:
    """A WAV file's data must be there: libsndfile would quietly read what there is."""
    if content[8:12] != b"WAVE":
        raise InputRejected("type_mismatch", "a RIFF file, but no WAVE")
    position = 12
    while position + 8 <= len(content):
        name, (size,) = content[position : position + 4], struct.unpack_from("<I", content, position + 4)
        if name == b"data":
            if size > len(content) - position - 8:
                raise InputRejected("audio_truncated", f"the header claims {size} bytes of samples, {len(content) - position - 8} follow")
            return
        position += 8 + size + size % 2
    raise InputRejected("audio_truncated", "the file ends before its samples")


def _judge_length(samples: int, rate: int, channels: int) -> None:
    if samples > MAX_SECONDS * rate:
        raise InputRejected("audio_too_long", f"more than {MAX_SECONDS:g} seconds")
    if samples * channels > MAX_SAMPLES:
        raise InputRejected("audio_too_long", f"more than {MAX_SAMPLES} samples, those of its {channels} channels added up")


def _read(file: "soundfile.SoundFile", rate: int, channels: int, needed: int) -> NDArray[np.float32]:  # type: ignore[name-defined] # noqa: F821
    """float32 [samples, channels], `needed` of them or some more; all behind them are judged, too, but not kept. InputRejected."""
    blocks, read, finite = [np.zeros((0, channels), np.float32)], 0, True
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        if read < needed:
            blocks.append(block)
        finite = finite and bool(np.isfinite(block).all())
        read += len(block)
        _judge_length(read, rate, channels)
    if not finite:
        raise InputRejected("audio_nonfinite", "some samples are NaN or infinite")
    return np.concatenate(blocks)


def _needed(rate: int, stream: AudioStream) -> int:
    """Samples of that rate of which the stream is made: its own length, and what resampling looks at behind its end."""
    return int(np.ceil(stream.samples * rate / stream.sample_rate)) + rate // 10


def _fit(sound: NDArray[np.float32], rate: int, stream: AudioStream) -> NDArray[np.float32]:
    """[samples, channels] of any rate -> [channels, samples] of the stream's."""
    import soxr

    if stream.channels == 1:
        sound = sound.mean(axis=1, keepdims=True)
    else:
        sound = np.repeat(sound, 2, axis=1) if sound.shape[1] == 1 else sound[:, :2]
    sound = sound[: _needed(rate, stream)]  # before resampling: the rest is cut anyway
    if rate != stream.sample_rate:
        sound = soxr.resample(sound, rate, stream.sample_rate)
    sound = sound[: stream.samples]
    missing = stream.samples - len(sound)
    fitted: NDArray[np.float32] = np.pad(sound, ((0, missing), (0, 0))).T.clip(-1, 1).astype(np.float32)
    return np.ascontiguousarray(fitted)


KIND = StreamKind(
    extensions=("wav", "flac", "ogg", "opus", "mp3"), decode=decode, encode=encode, batch=batch, most_bytes=MAX_BYTES, form=form
)
