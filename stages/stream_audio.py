"""Sounds on disk: WAV, FLAC, Ogg and MP3 bytes to float32 [channels, samples] of one rate and length, and back to WAV.

Channels are mixed to mono by their mean, mono is doubled to stereo; other rates are resampled; what is too long is cut at its end, what is
too short is filled with silence. What the header claims is judged first, and no more is decoded than the longest sound allowed.
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
RATES = (1_000, 384_000)  # samples a second
BLOCK = 1 << 16  # samples decoded at a time

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
            sound = _read(file, rate, channels)
    except soundfile.LibsndfileError as error:
        raise InputRejected("audio_corrupt", str(error).splitlines()[0][:200]) from None
    if not len(sound):
        raise InputRejected("audio_empty" if frames <= 0 else "audio_truncated", f"the header claims {frames} samples, there are none")
    if not np.isfinite(sound).all():
        raise InputRejected("audio_nonfinite", "some samples are NaN or infinite")
    return _fit(sound, rate, stream)


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


def _read(file: "soundfile.SoundFile", rate: int, channels: int) -> NDArray[np.float32]:  # type: ignore[name-defined] # noqa: F821
    """float32 [samples, channels]; InputRejected as soon as there are more than MAX_SECONDS of them."""
    most, blocks, read = int(MAX_SECONDS * rate), [], 0
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
        read += len(block)
        if read > most:
            raise InputRejected("audio_too_long", f"more than {MAX_SECONDS:g} seconds")
    return np.concatenate(blocks) if blocks else np.zeros((0, channels), np.float32)


def _fit(sound: NDArray[np.float32], rate: int, stream: AudioStream) -> NDArray[np.float32]:
    """[samples, channels] of any rate -> [channels, samples] of the stream's."""
    import soxr

    if stream.channels == 1:
        sound = sound.mean(axis=1, keepdims=True)
    else:
        sound = np.repeat(sound, 2, axis=1) if sound.shape[1] == 1 else sound[:, :2]
    needed = int(np.ceil(stream.samples * rate / stream.sample_rate)) + rate // 10
    sound = sound[:needed]  # before resampling: the rest is cut anyway
    if rate != stream.sample_rate:
        sound = soxr.resample(sound, rate, stream.sample_rate)
    sound = sound[: stream.samples]
    missing = stream.samples - len(sound)
    fitted: NDArray[np.float32] = np.pad(sound, ((0, missing), (0, 0))).T.clip(-1, 1).astype(np.float32)
    return np.ascontiguousarray(fitted)


KIND = StreamKind(
    extensions=("wav", "flac", "ogg", "opus", "mp3"), decode=decode, encode=encode, batch=batch, most_bytes=MAX_BYTES, form=form
)
