"""Pictures on disk: one canonical picture whatever the file, and a code for every file that is refused."""

import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ImageStream
from worldloom.stages.stream_image import MAX_BYTES, MAX_METADATA_BYTES, batch, decode, encode, form, read_claim

STREAM = ImageStream(kind="image", size=24)


def corners(size=24):
    """A picture whose four quarters differ: red, green, blue, white from the top left, row by row."""
    picture = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    picture[:half, :half], picture[:half, half:], picture[half:, :half], picture[half:, half:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    return picture


def saved(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, pixels=b"\0"):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refusal(content, stream=STREAM):
    with pytest.raises(InputRejected) as refused:
        decode(content, stream)
    return refused.value.code


def near(one, other, tolerance=4):
    return np.abs(one.astype(int) - other.astype(int)).max() <= tolerance


def test_a_picture_of_the_right_size_comes_back_exactly():
    picture = np.random.default_rng(0).integers(256, size=(24, 24, 3)).astype(np.uint8)
    assert np.array_equal(decode(encode(picture, STREAM), STREAM), picture)


def test_encoding_gives_the_same_bytes_every_time():
    assert encode(corners(), STREAM) == encode(corners().copy(), STREAM)


def test_batches_are_stacked_and_filled_with_black():
    values = batch([corners(), corners()])
    assert values.shape == (2, *form(STREAM).shape) == (2, 24, 24, 3) and values.dtype == form(STREAM).dtype


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("JPEG", {"quality": 95, "subsampling": 0}), ("WEBP", {"lossless": True})])
def test_three_formats_are_read(format, options):
    assert near(decode(saved(Image.fromarray(corners()), format, **options), STREAM), corners(), tolerance=30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_picture(orientation):
    # How a camera held that way stores the upright picture: the inverse of what a viewer must do.
    turns = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(np.ascontiguousarray(turns[orientation](corners()))), exif=exif)
    assert np.array_equal(decode(content, STREAM), corners())


def test_a_broken_exif_block_is_no_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.fromarray(corners()), "WEBP", lossless=True, exif=b"Exif\0\0" + b"\xff" * 9)
    assert np.array_equal(decode(content, STREAM), corners())


def test_sixteen_bits_are_scaled_not_clipped():
    wide = np.linspace(0, 65535, 24 * 24).astype(np.uint16).reshape(24, 24)
    found = decode(saved(Image.fromarray(wide)), STREAM)
    assert near(found[..., 0], wide / 257, tolerance=1)
    assert (found[..., 0] == found[..., 1]).all()


def test_one_bit_and_grey_and_palette_become_rgb():
    drawing = np.zeros((24, 24), bool)
    drawing[5:9, 7:20] = True
    expected = np.repeat(np.where(drawing, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(decode(saved(Image.fromarray(drawing)), STREAM), expected)
    assert np.array_equal(decode(saved(Image.fromarray(expected[..., 0])), STREAM), expected)
    palette = Image.fromarray(corners()).quantize(4)
    assert palette.mode == "P"
    assert np.array_equal(decode(saved(palette), STREAM), corners())


def test_transparency_is_composed_on_white():
    rgba = np.dstack([corners(), np.full((24, 24), 255, np.uint8)])
    rgba[:12, :12, 3] = 0
    expected = corners()
    expected[:12, :12] = 255
    assert np.array_equal(decode(saved(Image.fromarray(rgba)), STREAM), expected)
    assert np.array_equal(decode(saved(Image.fromarray(rgba), "WEBP", lossless=True), STREAM), expected)
    palette = Image.fromarray(corners()).quantize(4)
    red = palette.getpixel((0, 0))
    assert np.array_equal(decode(saved(palette, transparency=red), STREAM), expected)
    grey = np.dstack([np.full((24, 24), 60, np.uint8), np.full((24, 24), 128, np.uint8)])
    assert near(decode(saved(Image.fromarray(grey)), STREAM), np.full((24, 24, 3), 157), tolerance=1)


def test_cmyk_becomes_rgb():
    content = saved(Image.fromarray(corners()).convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert near(decode(content, STREAM), corners(), tolerance=30)


def test_a_colour_profile_is_applied():
    # sRGB with the red and the blue primary changed over: what such a file calls red is blue.
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    icc = icc.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    icc = icc.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    found = decode(saved(Image.fromarray(corners()), icc_profile=icc), STREAM)
    assert near(found, corners()[..., ::-1], tolerance=2)


@pytest.mark.parametrize("space", ["LAB", "sRGB", None])
def test_a_profile_that_is_srgb_or_does_not_fit_or_does_not_parse_changes_nothing(space):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes() if space else b"no profile"
    assert np.array_equal(decode(saved(Image.fromarray(corners()), icc_profile=icc), STREAM), corners())


def test_the_largest_centred_square_is_kept():
    wide = np.full((24, 60, 3), 255, np.uint8)
    wide[:, 18:42] = corners()
    assert np.array_equal(decode(saved(Image.fromarray(wide)), STREAM), corners())
    tall = np.full((60, 24, 3), 255, np.uint8)
    tall[18:42] = corners()
    assert np.array_equal(decode(saved(Image.fromarray(tall)), STREAM), corners())


def test_a_large_photograph_is_read_small():
    flat = Image.fromarray(corners(960))
    found = decode(saved(flat, "JPEG", quality=90), STREAM)
    assert near(found[2:10, 2:10], corners()[2:10, 2:10], tolerance=6)
    assert near(found[14:22, 14:22], corners()[14:22, 14:22], tolerance=6)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_input"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "type_mismatch"),
        (b"just some words", "type_mismatch"),
        (b"GIF89a" + bytes(40), "format_not_allowed"),
        (b"BM" + bytes(60), "format_not_allowed"),
        (b"%PDF-1.7\n", "format_not_allowed"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format_not_allowed"),
        (b"8BPS\0\1" + bytes(40), "format_not_allowed"),
        (b"SIMPLE  =                    T", "format_not_allowed"),
        (b"II*\0" + bytes(40), "format_not_allowed"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "format_not_allowed"),
        (png(25_000, 25_000), "image_too_large"),
        (png(20_000, 9), "image_too_large"),
        (png(1, 1, pixels=bytes(4)), "image_too_small"),
        (png(16_384, 1), "image_too_small"),
        (png(24, 24, chunk(b"tEXt", b"Comment\0" + bytes(MAX_METADATA_BYTES))), "image_metadata_too_large"),
        (png(24, 24, chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(80 << 20)))), "image_metadata_too_large"),
        (png(24, 24, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20)))), "image_metadata_too_large"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR", "image_truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rJUNK" + bytes(30), "image_corrupt"),
        (png(24, 24), "image_corrupt"),
        (b"\xff\xd8\xff\xe0\xff", "image_truncated"),
        (b"\xff\xd8\xff\xd9" + bytes(9), "image_corrupt"),
        (b"RIFF\x10\0\0\0WEBPJUNK" + bytes(20), "image_corrupt"),
    ],
)
def test_what_cannot_be_a_sample_is_refused(content, code):
    assert refusal(content) == code


def test_a_file_beyond_the_limit_is_refused_unread():
    assert refusal(png(24, 24) + bytes(MAX_BYTES)) == "image_too_large"
    long = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 24, 8, 2, 0, 0, 0)) + struct.pack(">I", 100 << 20) + b"tEXt"
    assert refusal(long + bytes(1000)) == "image_metadata_too_large"


def test_a_huge_claim_costs_no_memory():
    content = png(25_000, 25_000, pixels=bytes(1 << 20))
    tracemalloc.start()
    try:
        assert refusal(content) == "image_too_large"
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_a_picture_cut_anywhere_is_truncated(format, options):
    noise = Image.fromarray(np.random.default_rng(1).integers(256, size=(40, 40, 3)).astype(np.uint8))
    content = saved(noise, format, **options)
    for kept in (0.05, 0.3, 0.5, 0.9):
        assert refusal(content[: int(kept * len(content))]) == "image_truncated"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on EXIF blocks that it cannot read
def test_damaged_files_give_pictures_or_refusals_and_nothing_else():
    draw = random.Random(7)
    noise = Image.fromarray(np.random.default_rng(1).integers(256, size=(24, 24, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("PNG", "JPEG", "WEBP"):
        whole = saved(noise, format, exif=exif)
        for _ in range(120):
            content = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                content[draw.randrange(min(len(content), draw.choice((60, 10_000))))] = draw.randrange(256)
            try:
                assert decode(bytes(content), STREAM).shape == (24, 24, 3)
            except InputRejected as refused:
                assert refused.code


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 80}, {"lossless": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}]
)
def test_the_header_of_every_webp_flavour_is_read(options):
    claim = read_claim(saved(Image.new("RGB", (31, 17)), "WEBP", **options))
    assert (claim.format, claim.width, claim.height, claim.complete) == ("WEBP", 31, 17, True)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_the_header_of_every_jpeg_flavour_is_read(options):
    claim = read_claim(saved(Image.new("RGB", (31, 17)), "JPEG", comment=b"hello", **options))
    assert (claim.format, claim.width, claim.height, claim.complete) == ("JPEG", 31, 17, True)


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(corners()), Image.new("RGB", (24, 24)), Image.new("RGB", (24, 24), "white")]
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(decode(saved(frames[0], format, save_all=True, append_images=frames[1:], **options), STREAM), corners())


@pytest.mark.parametrize("size", [(90, 120), (47, 61), (38, 51), (301, 200)])
def test_pictures_of_one_scene_are_cut_alike_whatever_their_size(size: tuple[int, int]) -> None:
    """A disc at one place of the scene is found at one place of the picture, though the borders of the cut lie between pixels."""
    stream = ImageStream(kind="image", size=32)

    def place(height: int, width: int) -> np.ndarray:
        down, across = np.mgrid[:height, :width] + 0.5
        shorter = min(height, width)  # from the centre, in the shorter side: what a centred cut leaves where it is
        far = np.hypot(across - width / 2 - 0.1 * shorter, down - height / 2 + 0.15 * shorter) / shorter
        disc = (np.clip((0.2 - far) * shorter + 0.5, 0, 1) * 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(disc).save(content, format="PNG")
        light = decode(content.getvalue(), stream)[..., 0].astype(float)
        return np.array([light.sum(axis) @ (np.arange(32) + 0.5) for axis in (0, 1)]) / light.sum()

    np.testing.assert_allclose(place(*size), place(640, 960), atol=0.12)  # pixels of 32
