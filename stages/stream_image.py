"""Pictures on disk: PNG, JPEG or WebP bytes to one canonical picture and back.

Canonical is: upright (EXIF orientation applied), sRGB, 8 bits (16 are scaled, not clipped), no alpha (composed on white), the
first frame, the largest centred part of the stream's aspect, resized to the stream's size. What the header claims is judged
before anything is allocated for it.
"""

import io
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ImageStream
from worldloom.stages.stream_kind import Form, StreamKind
from worldloom.tokenizers.resampling import RESAMPLING, Resampling

MAX_BYTES = 32 << 20
MAX_PIXELS = 40_000_000
MAX_SIDE = 16_384
MIN_SIDE = 8  # pixels
MAX_METADATA_BYTES = 4 << 20  # all chunks of a PNG or WebP, or one of its texts or profiles, that hold no pixels

_OTHER_FORMATS = (
    *(b"GIF8", b"BM", b"II*\0", b"MM\0*", b"%PDF", b"%!PS", b"8BPS", b"SIMPLE  =", b"\0\0\x01\0", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
    *(b"qoif", b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"\xff\xff", b"\xff\xfe", b"DDS ", b"\xc5\xd0\xd3\xc6"),
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # EXIF tag


class Claim(NamedTuple):
    """What a picture's header says, read without decoding anything."""

    format: str
    width: int
    height: int
    metadata: int  # bytes in chunks without pixels
    complete: bool  # whether the file goes on to its end marker


def decode(content: bytes | memoryview, stream: ImageStream) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]; InputRejected: empty_input, type_mismatch, format_not_allowed, image_too_large, image_too_small,
    image_metadata_too_large, image_truncated, image_corrupt."""
    content = bytes(content)
    claim = read_claim(content)
    _judge(claim, len(content))
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as image:
            _judge(claim._replace(width=image.width, height=image.height), len(content))
            if image.format == "JPEG":
                image.draft(image.mode, (2 * max(stream.height, stream.width),) * 2)  # decodes a large photograph at a fraction of its size
            image.load()
            return np.asarray(fit(_upright(_to_srgb(image)), stream.height, stream.width, stream.resample))
    except InputRejected:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers let anything out: OSError, SyntaxError, ValueError, struct.error, KeyError...
        detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if "MAX_TEXT" in detail or "too large" in detail:
            raise InputRejected("image_metadata_too_large", detail) from error
        raise InputRejected("image_corrupt" if claim.complete else "image_truncated", detail) from error


def encode(value: NDArray[np.uint8], stream: ImageStream) -> bytes:
    """PNG of a uint8 [H, W, 3] picture."""
    content = io.BytesIO()
    Image.fromarray(value).save(content, format="PNG", compress_level=6)
    return content.getvalue()


def batch(values: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """uint8 [B, H, W, 3]."""
    return np.stack(values)


def form(stream: ImageStream) -> Form:
    """uint8 [height, width, 3]."""
    return Form((stream.height, stream.width, 3), "uint8")


def read_claim(content: bytes) -> Claim:
    """The header's claims; InputRejected where there is no header of the three formats."""
    if not content:
        raise InputRejected("empty_input", "the picture has no bytes")
    try:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return _read_png(content)
        if content.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(content)
        if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
            return _read_webp(content)
    except (struct.error, IndexError):
        raise InputRejected("image_truncated", "the file ends inside its header") from None
    if content.startswith(_OTHER_FORMATS) or content[4:8] == b"ftyp":
        raise InputRejected("format_not_allowed", "only PNG, JPEG and WebP are read")
    raise InputRejected("type_mismatch", f"the content is not a picture: it begins with {content[:12]!r}")


def _judge(claim: Claim, size: int) -> None:
    if claim.metadata > MAX_METADATA_BYTES:
        raise InputRejected("image_metadata_too_large", f"{claim.metadata} bytes beside the pixels, at most {MAX_METADATA_BYTES}")
    if size > MAX_BYTES:
        raise InputRejected("image_too_large", f"more than {MAX_BYTES} bytes")
    if claim.width * claim.height > MAX_PIXELS or max(claim.width, claim.height) > MAX_SIDE:
        raise InputRejected("image_too_large", f"{claim.width} x {claim.height}; at most {MAX_PIXELS} pixels and {MAX_SIDE} on a side")
    if min(claim.width, claim.height) < MIN_SIDE:
        raise InputRejected("image_too_small", f"{claim.width} x {claim.height}; at least {MIN_SIDE} on a side")


def _read_png(content: bytes) -> Claim:
    if content[12:16] != b"IHDR":
        raise InputRejected("image_corrupt", "a PNG without its header chunk")
    width, height = struct.unpack_from(">II", content, 16)
    metadata, position, kind = 0, 8, b""
    while position + 8 <= len(content) and kind != b"IEND":
        (length,) = struct.unpack_from(">I", content, position)
        kind = content[position + 4 : position + 8]
        metadata += 0 if kind in (b"IDAT", b"IHDR", b"PLTE", b"fdAT") else length
        position += 12 + length
    return Claim("PNG", width, height, metadata, kind == b"IEND" and position <= len(content))


def _read_jpeg(content: bytes) -> Claim:
    position, metadata = 2, 0
    while True:
        if content[position] != 0xFF:
            raise InputRejected("image_corrupt", "a JPEG with bytes between its segments")
        marker = content[position + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # fill bytes and markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, position + 5)
            return Claim("JPEG", width, height, metadata, content.rfind(b"\xff\xd9") > position)
        if marker in (0xD9, 0xDA):
            raise InputRejected("image_corrupt", "a JPEG whose pixels come before its size")
        metadata += length if 0xE0 <= marker <= 0xEF or marker == 0xFE else 0
        position += 2 + length


def _read_webp(content: bytes) -> Claim:
    (riff,) = struct.unpack_from("<I", content, 4)
    complete = len(content) >= riff + 8
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[at : at + 3], "little") + 1 for at in (24, 27))
        content[29]
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    else:
        raise InputRejected("image_corrupt", "a WebP file without a picture in it")
    metadata, position = 0, 12
    while position + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, position + 4)
        metadata += length if content[position : position + 4] in (b"ICCP", b"EXIF", b"XMP ") else 0
        position += 8 + length + length % 2
    return Claim("WEBP", width, height, metadata, complete)


def _to_srgb(image: Image.Image) -> Image.Image:
    """RGB, with alpha composed on white and an embedded colour profile applied; a profile that does not parse is ignored."""
    profile = image.info.get("icc_profile")
    orientation = _read_orientation(image)
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    elif "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    if profile:
        image = _apply_profile(image, profile)
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.info["orientation"] = orientation
    return image


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    spaces = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != spaces.get(image.mode):
            return image
        if "sRGB" in (source.profile.profile_description or ""):
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return image
    assert converted is not None
    return converted


def _read_orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # a broken EXIF block says nothing of the orientation, and the picture is fine without it
        return None


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(image.info["orientation"])
    return image if turn is None else image.transpose(turn)


def fit(image: Image.Image, height: int, width: int, resample: Resampling) -> Image.Image:
    """The largest centred part of the aspect of `height` and `width`, resized to them.

    Where it is resized its borders may lie between pixels, so that pictures of one scene in several sizes (rgb, depth, mask) are cut alike.
    """
    scale = min(image.width / width, image.height / height)
    if image.size == (width, height):
        return image
    if scale == 1:  # whole pixels: nothing is resampled
        first, above = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((first, above, first + width, above + height))
    across, down = min(width * scale, image.width), min(height * scale, image.height)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    way = Image.Resampling(RESAMPLING[resample])
    return image.resize((width, height), way, box=(left, top, min(left + across, image.width), min(top + down, image.height)))


KIND = StreamKind(extensions=("png", "jpg", "jpeg", "webp"), decode=decode, encode=encode, batch=batch, most_bytes=MAX_BYTES, form=form)
