"""Clips on disk: .npy frames always, MP4, WebM, MKV, MOV, AVI and GIF through PyAV, to uint8 [frames, height, width, 3] and back to .npy.

Frames are chosen by their timestamps, turned upright, and fitted to the stream's size as pictures are. What is too short repeats its last
frame, what is too long is cut at its end. What the header claims is judged before a frame is decoded.
"""

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worldloom.stages.npy import read_npy, write_npy
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import VideoStream
from worldloom.stages.stream_image import fit
from worldloom.stages.stream_kind import Form, StreamKind

MAX_BYTES = 512 << 20
MAX_SECONDS = 120.0
MAX_FRAMES = 4_096
MAX_PIXELS = 16_000_000  # of a frame
MAX_RATE = 480.0  # frames a second


def decode(content: bytes | memoryview, stream: VideoStream) -> NDArray[np.uint8]:
    """InputRejected: empty_input, type_mismatch, video_limits, video_empty, video_inconsistent, video_corrupt, video_unsupported."""
    content = bytes(content)
    if not content:
        raise InputRejected("empty_input", "the clip has no bytes")
    if len(content) > MAX_BYTES:
        raise InputRejected("video_limits", f"{len(content)} bytes, at most {MAX_BYTES}")
    frames = _npy_frames(content) if content.startswith(b"\x93NUMPY") else _media_frames(content, stream)
    clip = np.stack([_fitted(frame, stream) for frame, _ in zip(frames, range(stream.frames), strict=False)] or [_no_frame()])
    missing = stream.frames - len(clip)
    return np.concatenate([clip, np.repeat(clip[-1:], missing, axis=0)]) if missing else clip


def claimed_pixels(content: bytes, stream: VideoStream) -> int:
    """Pixels of the frames that `decode` looks at, by what the header of a media file claims; 0 where it claims nothing, or what is refused
    without more work.
    """
    if not _is_media(content):
        return 0
    try:
        import av
    except ImportError:
        return 0
    try:
        with av.open(io.BytesIO(content), metadata_errors="ignore") as container:
            if not container.streams.video:
                return 0
            video = container.streams.video[0]
            _judge(container, video)
            rate = float(video.average_rate or 0)
            claimed = video.frames or math.ceil(float(container.duration or 0) / 1e6 * rate) or 1
            needed = math.ceil(stream.frames / stream.frame_rate * rate) + 1 if rate else MAX_FRAMES  # those behind are cut off undecoded
            return int(min(claimed, needed, MAX_FRAMES) * video.width * video.height)
    except (InputRejected, av.FFmpegError, ValueError, IndexError, OverflowError):
        return 0


def encode(value: NDArray[np.uint8], stream: VideoStream) -> bytes:
    """An .npy file."""
    return write_npy(value)


def batch(values: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """uint8 [B, frames, height, width, 3]."""
    return np.stack(values)


def form(stream: VideoStream) -> Form:
    """uint8 [frames, height, width, 3]."""
    return Form((stream.frames, stream.height, stream.width, 3), "uint8")


def _no_frame() -> NDArray[np.uint8]:
    raise InputRejected("video_empty", "there is no frame in it")


def _fitted(frame: NDArray[np.uint8], stream: VideoStream) -> NDArray[np.uint8]:
    if frame.shape[:2] == (stream.height, stream.width):
        return frame
    return np.asarray(fit(Image.fromarray(frame), stream.height, stream.width, "lanczos"))


def _npy_frames(content: bytes) -> Iterator[NDArray[np.uint8]]:
    """Frames at the stream's own rate: an array has no timestamps."""
    values = read_npy(content, MAX_BYTES, "video_limits")
    if values.dtype != np.uint8 or values.ndim != 4 or values.shape[3] != 3:
        raise InputRejected("type_mismatch", f"a clip is uint8 [frames, height, width, 3], this is {values.dtype} {values.shape}")
    if not values.size:
        raise InputRejected("video_empty", f"the array has shape {values.shape}")
    if len(values) > MAX_FRAMES or values.shape[1] * values.shape[2] > MAX_PIXELS:
        raise InputRejected("video_limits", f"{len(values)} frames of {values.shape[1]} x {values.shape[2]}; at most {MAX_FRAMES}")
    return iter(values)


def _media_frames(content: bytes, stream: VideoStream) -> Iterator[NDArray[np.uint8]]:
    """The frame that is to be seen at 0, 1/rate, 2/rate ... seconds behind the first."""
    if not _is_media(content):
        raise InputRejected("type_mismatch", f"the content is not a clip: it begins with {content[:12]!r}")
    try:
        import av
    except ImportError:
        raise InputRejected("video_unsupported", "only .npy frames are read without PyAV: pip install 'worldloom[video]'") from None
    try:
        with av.open(io.BytesIO(content), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise InputRejected("video_empty", "there is no video in it")
            _judge(container, container.streams.video[0])
            yield from _sampled(container, stream.frame_rate)
    except InputRejected:
        raise
    except (av.FFmpegError, ValueError, IndexError, OverflowError) as error:
        raise InputRejected("video_corrupt", str(error).splitlines()[0][:200] if str(error) else type(error).__name__) from None


def _is_media(content: bytes) -> bool:
    riff = content.startswith(b"RIFF") and content[8:11] == b"AVI"
    return riff or content[4:8] in (b"ftyp", b"moov", b"mdat") or content.startswith((b"\x1aE\xdf\xa3", b"GIF8", b"\x89PNG\r\n\x1a\n"))


def _judge(container: Any, video: Any) -> None:
    if video.width * video.height > MAX_PIXELS:
        raise InputRejected("video_limits", f"frames of {video.width} x {video.height}; at most {MAX_PIXELS} pixels")
    rate = float(video.average_rate or 0)
    if rate > MAX_RATE:
        raise InputRejected("video_limits", f"the header claims {rate:g} frames a second, at most {MAX_RATE:g}")
    seconds = float(container.duration or 0) / 1e6
    if seconds > MAX_SECONDS or video.frames > MAX_FRAMES:
        raise InputRejected("video_limits", f"{seconds:g} s and {video.frames} frames; at most {MAX_SECONDS:g} s and {MAX_FRAMES}")


def _sampled(container: Any, rate: float) -> Iterator[NDArray[np.uint8]]:
    size, begin, shown, wanted = None, 0.0, None, 0
    for number, frame in enumerate(container.decode(video=0)):
        if number >= MAX_FRAMES:
            raise InputRejected("video_limits", f"more than {MAX_FRAMES} frames")
        if size is not None and (frame.width, frame.height) != size:
            raise InputRejected("video_inconsistent", f"frames of {size[0]} x {size[1]} and of {frame.width} x {frame.height}")
        size = (frame.width, frame.height)
        time = frame.time if frame.time is not None else number / rate
        begin = time if shown is None else begin
        while shown is not None and begin + wanted / rate < time - 1e-6:
            yield shown
            wanted += 1
        shown = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    if shown is not None:
        yield shown


KIND = StreamKind(
    extensions=("npy", "mp4", "webm", "mkv", "mov", "avi", "gif", "png"),
    decode=decode,
    encode=encode,
    batch=batch,
    most_bytes=MAX_BYTES,
    form=form,
)
