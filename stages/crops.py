"""Crops of samples: one box for all streams of a sample that show the same scene, drawn from (seed, key, number of the crop) alone."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worldloom.stages.keys import check_key, fits_ustar
from worldloom.stages.order import uniform
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ImageStream, VideoStream
from worldloom.tokenizers.resampling import RESAMPLING


class Crop(NamedTuple):
    """A part of a picture that has the picture's own aspect; in shares of its width and height, so that it fits any size."""

    left: float
    top: float
    side: float
    flipped: bool  # left to right


def draw_crop(seed: int, key: str, number: int, scale: tuple[float, float], flip: bool) -> Crop:
    """The crop of that number of the sample `key`: its share of the area is uniform in `scale`, its place wherever it fits."""
    of_key = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    area, across, down, turned = uniform(seed, of_key, number, np.arange(4)).tolist()
    side = (scale[0] + (scale[1] - scale[0]) * area) ** 0.5
    return Crop(across * (1 - side), down * (1 - side), side, flip and turned < 0.5)


def apply_crop(value: NDArray[np.uint8], crop: Crop, stream: ImageStream | VideoStream) -> NDArray[np.uint8]:
    """A picture [H, W, 3] or a clip [T, H, W, 3], cut and brought back to its size, the way the stream is resampled."""
    if value.ndim == 4:
        return np.stack([apply_crop(frame, crop, stream) for frame in value])
    height, width = value.shape[:2]
    box = (crop.left * width, crop.top * height, (crop.left + crop.side) * width, (crop.top + crop.side) * height)
    way = Image.Resampling(RESAMPLING[stream.resample if isinstance(stream, ImageStream) else "lanczos"])
    # Sums of shares may end a rounding beyond the border, which Pillow refuses.
    fitted = Image.fromarray(value).resize((width, height), way, box=(box[0], box[1], min(box[2], width), min(box[3], height)))
    found = np.asarray(fitted)
    return np.ascontiguousarray(found[:, ::-1]) if crop.flipped else found


def crop_key(key: str, number: int) -> str:
    """What a crop's sample is called; InputRejected(key_invalid) where that is too long, though the whole sample's key was not.

    A prefix, not a suffix: within a shard keys must rise, and so they still do.
    """
    longer = check_key(f"crop{number}/{key}")
    if not fits_ustar(f"{longer}.npy"):
        raise InputRejected("key_invalid", f"{longer[:80]!r}... is too long for a tar: shorten the names of the folders in it")
    return longer


def cropped(values: dict[str, Any], crop: Crop, streams: dict[str, ImageStream | VideoStream]) -> dict[str, Any]:
    """A sample's values with those of `streams` cropped; the others, and those that are missing, stay."""
    return {
        name: apply_crop(value, crop, streams[name]) if name in streams and value is not None else value for name, value in values.items()
    }
