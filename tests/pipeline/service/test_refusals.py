"""Contents that are no good, too much, or lead elsewhere: the stated code and status, at once, and the service as well as before."""

import base64
import io
import json
import struct
import tarfile
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from worldloom.pipeline.service.jobs import Jobs
from worldloom.pipeline.service.limits import Limits
from worldloom.pipeline.service.sources import Sources

GIB = 1 << 30


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, pixels=b"", before=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def picture(kind, size=(16, 16), **options):
    written = io.BytesIO()
    Image.new("RGB", size, "red").save(written, kind, **options)
    return written.getvalue()


def npy(shape, dtype, data=b""):
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": dtype, "fortran_order": False, "shape": shape})
    return written.getvalue() + data


def wav(claimed, data=b"", rate=4000, channels=1, bits=16, kind=1):
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + claimed & 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", claimed)
        + data
    )


WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(8)
BOMBS = {
    "PNG of 25,000 x 25,000": ("view", png(25_000, 25_000, bytes(80_000)), 413, "image_too_large"),
    "PNG of 2 billion on a side": ("view", png((1 << 31) - 1, (1 << 31) - 1), 413, "image_too_large"),
    "PNG of one line of 100,000": ("view", png(100_000, 1), 413, "image_too_large"),
    "PNG with a text of 5 MB": ("view", png(16, 16, before=chunk(b"tEXt", b"a\0" + b"x" * (5 << 20))), 413, "image_metadata_too_large"),
    "PNG with a zipped text of 100 MB": (
        "view",
        png(16, 16, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20)))),
        None,
        None,
    ),
    "PNG with a profile of 100 MB": ("view", png(16, 16, before=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100 << 20)))), None, None),
    "PNG whose pixels are missing": ("view", png(4_000, 4_000), 422, None),
    "PNG whose pixels are too many": ("view", png(16, 16, bytes(50 << 20)), None, None),
    "PNG cut at half": ("view", picture("PNG", (64, 64))[:60], 422, "image_truncated"),
    "JPEG cut at half": ("view", picture("JPEG", (64, 64))[:400], 422, None),
    "JPEG of 60,000 x 60,000": ("view", picture("JPEG").replace(b"\x00\x10\x00\x10", b"\xea\x60\xea\x60", 1), 413, "image_too_large"),
    "WebP of 16,384 on a side": ("view", WEBP, 413, "image_too_large"),
    "picture of 1 x 1": ("view", picture("PNG", (1, 1)), 422, "image_too_small"),
    "GIF": ("view", picture("GIF"), 415, "format_not_allowed"),
    "TIFF": ("view", picture("TIFF"), 415, "format_not_allowed"),
    "PDF": ("view", b"%PDF-1.7" + bytes(100), 415, "format_not_allowed"),
    "PSD": ("view", b"8BPS" + bytes(100), 415, "format_not_allowed"),
    "FITS": ("view", b"SIMPLE  =" + bytes(100), 415, "format_not_allowed"),
    "a page of HTML": ("view", b"<!doctype html><title>404</title>", 415, "type_mismatch"),
    "a pickle": ("view", b"\x80\x04\x95" + bytes(100), 415, "type_mismatch"),
    "no bytes": ("view", b"", 422, "empty_input"),
    "WAV that claims 4 GiB": ("sound", wav(0xFFFFFF00, bytes(1_000)), 422, None),
    "WAV of no samples": ("sound", wav(0), 422, "audio_empty"),
    "WAV of NaN": ("sound", wav(400, np.full(100, np.nan, "<f4").tobytes(), bits=32, kind=3), 422, "audio_nonfinite"),
    "WAV of 200 channels": ("sound", wav(400, bytes(400), channels=200), 422, "audio_limits"),
    "WAV of 100 MHz": ("sound", wav(400, bytes(400), rate=100_000_000), 422, "audio_limits"),
    "sound that is a picture": ("sound", picture("PNG"), 415, None),
    "npy that claims 8 GiB": ("clip", npy((1 << 20, 64, 64, 3), "|u1", bytes(100)), 422, "video_limits"),
    "npy of objects": ("clip", npy((1,), "|O", b"\x80\x04."), 422, "video_limits"),
    "npy whose shape overflows": ("clip", npy((1 << 62, 1 << 62, 4, 3), "|u1"), 422, "video_limits"),
    "npy with a header of code": ("clip", b"\x93NUMPY\x01\x00\x20\x00__import__('os').system('x')    \n", 415, "type_mismatch"),
    "clip of no frames": ("clip", npy((0, 16, 16, 3), "|u1"), 422, "video_empty"),
    "actions of NaN": ("push", npy((4, 1), "<f4", np.full(4, np.nan, "<f4").tobytes()), 422, "action_invalid"),
    "actions of 1e308": ("push", b"[1e308, 0, 0, 0]", 422, "action_invalid"),
    "actions out of range": ("push", b"[9, 0, 0, 0]", 422, "action_invalid"),
    "actions nested deeply": ("push", b"[" * 20_000 + b"]" * 20_000, 422, "action_invalid"),
    "too few actions": ("push", b"[0, 0]", 422, "action_invalid"),
    "text of 2 MB": ("words", b"x" * (2 << 20), 413, None),
    "text that is none": ("words", b"\xff\xfe", 400, "text_not_utf8"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_refused_at_once_with_its_code(tiny, clocked, case):
    tokenizer, content, status, code = BOMBS[case]
    service = tiny if tokenizer == "view" else clocked
    begun = time.process_time()
    answer = service("POST", "/v1/tokenize", data={"tokenizer": tokenizer}, files=[("file", ("x", content))])
    assert time.process_time() - begun < 2
    assert answer.status_code in ((status,) if status else (200, 413, 422)), answer.text
    assert code is None or answer.json()["error"]["code"] == code
    assert status in (None, 200) or answer.json()["error"]["param"] in ("file[0]", "input")
    assert service("POST", "/v1/tokenize", json={"tokenizer": "words", "input": "a"}).status_code == 200


def test_what_one_of_many_values_is_refused_for_names_it(tiny):
    good, bad = (base64.b64encode(content).decode() for content in (picture("PNG"), b"what"))
    answer = tiny("POST", "/v1/tokenize", json={"tokenizer": "view", "input": [good, good, bad, good]})
    assert answer.status_code == 415 and answer.json()["error"]["param"] == "input[2]"


def test_values_that_cost_too_much_together_are_refused_before_they_are_decoded(serve, tiny_root):
    with serve([str(tiny_root)], Limits(pixels=3 * 256)) as service:
        files = [("file", ("x.png", picture("PNG")))] * 4
        answer = service("POST", "/v1/tokenize", data={"tokenizer": "view"}, files=files)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "too_costly"
        assert service("POST", "/v1/tokenize", data={"tokenizer": "view"}, files=files[:3]).status_code == 200


URLS = [
    *("http://169.254.169.254/latest/meta-data/", "https://example.com/a.png", "file:///etc/passwd", "ftp://example.com/a", "gopher://x/"),
    *(
        "http://127.0.0.1:8484/v1/info",
        "http://[::1]/",
        "HTTP://localhost/",
        "s3://bucket/key",
        "gs://bucket/key",
        "data:image/png;base64,AA==",
    ),
    *("pipe:cat /etc/passwd", "jar:http://x!/", "http://2130706433/"),
]
PATHS = [
    *("", "/", ".", "..", "../", "/etc/passwd", "run/../../etc", "run/..", "run/./data", "run//data", "/run/data", "run/data/", "\0"),
    *(
        "run/\0",
        "run/%2e%2e/etc",
        "run/..%2f..",
        "run\\..\\..",
        "~",
        "~root",
        "run/.hidden",
        "run/data\n",
        "run/\u202edata",
        "run/" + "a" * 300,
    ),
    *("run/a/" * 300, "-rf", "$(id)", "run/`id`", "run/data;id", "run/data|id", "//host/share", "run/*"),
]
ABSENT = ["other/data", "RUN/data", "run/nothing", "run/link", "run/link/inside", "run/file.txt"]


@pytest.fixture(scope="module")
def reading(serve, tiny_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    outside = tmp_path_factory.mktemp("outside")
    (outside / "inside").mkdir()
    (root / "data").mkdir()
    (root / "file.txt").write_text("a")
    (root / "link").symlink_to(outside)
    with serve([str(tiny_root)], jobs=Jobs(tmp_path_factory.mktemp("jobs"), Sources({"run": root}), 3)) as service:
        yield service


@pytest.mark.parametrize("source", URLS)
def test_nothing_is_fetched(reading, tiny, source):
    for answer in (
        reading("POST", "/v1/batches", json={"source": source, "tokenizers": {"view": "view"}}),
        tiny("POST", "/v1/tokenize", json={"tokenizer": "view", "input": source}),
    ):
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "url_forbidden", answer.text


@pytest.mark.parametrize("source", PATHS)
def test_a_source_is_a_plain_path_below_a_prefix(reading, source):
    answer = reading("POST", "/v1/batches", json={"source": source, "tokenizers": {"view": "view"}})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "name_invalid", answer.text


@pytest.mark.parametrize("source", ABSENT)
def test_a_source_that_is_not_there_or_leads_out_is_unknown(reading, source):
    answer = reading("POST", "/v1/batches", json={"source": source, "tokenizers": {"view": "view"}})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "source_unknown", answer.text


@pytest.mark.parametrize("path", ["/../pyproject.toml", "/%2e%2e/app.py", "/..%2fservice/app.py", "/x/../../cli.py", "/%00", "/etc/passwd"])
def test_the_page_gives_out_its_own_files_only(tiny, path):
    assert tiny("GET", path).status_code in (400, 404)


def tar(*members, **options):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", **options) as file:
        for name, content in members:
            about = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                about.size = len(content)
                file.addfile(about, io.BytesIO(content))
            else:
                about.type, about.linkname = str(content).encode(), "/etc/passwd"
                file.addfile(about)
    return written.getvalue()


TARS = {
    "a way out": (tar(("../a.png", b"x")), 422, "tar_forbidden_member"),
    "an absolute name": (tar(("/a.png", b"x")), 422, "tar_forbidden_member"),
    "a link": (tar(("a.png", int(tarfile.SYMTYPE))), 422, "tar_forbidden_member"),
    "a hard link": (tar(("a.png", int(tarfile.LNKTYPE))), 422, "tar_forbidden_member"),
    "a device": (tar(("a.png", int(tarfile.CHRTYPE))), 422, "tar_forbidden_member"),
    "a fifo": (tar(("a.png", int(tarfile.FIFOTYPE))), 422, "tar_forbidden_member"),
    "no end": (tar(("a.png", b"x"))[:1024], 422, "shard_truncated"),
    "half a header": (tar(("a.png", b"x"))[:200], 422, "shard_truncated"),
    "a flipped bit": (b"b" + tar(("a.png", b"x"))[1:], 422, "shard_corrupt"),
    "a long pax header": (tar(("a" * 100_000, b"x"), format=tarfile.PAX_FORMAT), 413, "tar_limits"),
    "nothing": (b"", 422, "empty_input"),
    "no tar": (b"what" * 300, 422, "shard_corrupt"),
}


@pytest.mark.parametrize("case", TARS)
def test_a_shard_that_is_no_plain_tar_is_refused_before_there_is_a_job(reading, case):
    content, status, code = TARS[case]
    job = json.dumps({"tokenizers": {"view": "view"}})
    answer = reading("POST", "/v1/batches", data={"job": job}, files=[("shard", ("a.tar", content))])
    assert answer.status_code == status and answer.json()["error"]["code"] == code, answer.text
    assert answer.json()["error"]["param"] == "shard[0]" and reading("GET", "/v1/batches").json()["data"] == []
