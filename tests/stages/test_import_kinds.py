"""Folders of all kinds: what belongs to one sample, what is held out, and which files of each kind are refused, while the run goes on."""

import io
import json
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from worldloom.stages import disk
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.commit import TooManyRejects
from worldloom.stages.dataset import Dataset
from worldloom.stages.import_folder import STAGE, ImportFolder
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, Stream, TextStream, VideoStream
from worldloom.stages.worker import Worker
from worldloom.tokenizers.text import train_text

AUDIO = AudioStream(kind="audio", sample_rate=8_000, seconds=0.05)
VIDEO = VideoStream(kind="video", size=16, frames=3, frame_rate=4.0)
ACTION = ActionStream(kind="action", steps=2, dimensions=2)
IMAGE = ImageStream(kind="image", size=16)


def png(seed: int = 0, size: tuple[int, int] = (20, 24)) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(content, format="PNG")
    return content.getvalue()


def wav(sound: np.ndarray | None = None, subtype: str | None = None) -> bytes:
    content = io.BytesIO()
    sound = np.sin(np.arange(400) / 5).astype(np.float32) * 0.5 if sound is None else sound
    soundfile.write(content, sound, 8_000, format="WAV", subtype=subtype)
    return content.getvalue()


def npy(value: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(value))
    return content.getvalue()


def clip(seed: int = 0) -> bytes:
    return npy(np.random.default_rng(seed).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def imported(folder: Path, out: Path, streams: dict[str, Stream], **changes: Any) -> Artifact:
    settings = ImportFolder(run="import_folder", path=str(folder), streams=streams, **{"validation_share": 0.0, **changes})
    out = out / "artifacts" / "data" / "f0"
    return execute(STAGE, "data", settings, {}, out, Worker())


def refused(artifact: Artifact) -> dict[str, str]:
    lines = [line for path in sorted((artifact.folder / "rejects").rglob("*.jsonl")) for line in path.read_bytes().splitlines()]
    return {entry["key"]: entry["code"] for entry in map(json.loads, lines)}


def test_what_lies_beside_a_file_is_of_the_same_sample_by_name_ending_or_folder(tmp_path: Path) -> None:
    streams: dict[str, Stream] = {
        "rgb": IMAGE,
        "depth": IMAGE.model_copy(update={"resample": "nearest"}),
        "sound": AUDIO,
        "push": ACTION,
        "words": TextStream(kind="text"),
    }
    actions = npy(np.ones((2, 2), np.float32))
    folder = fill(
        tmp_path / "in",
        {
            **{"a.rgb.png": png(1), "a.depth.png": png(2), "a.wav": wav(), "a.push.npy": actions},
            **{"b.png": png(3), "b.depth.png": png(4), "b.json": b"[[1, 2], [3, 4]]"},
            **{"set/rgb/c.png": png(5), "set/depth/c.png": png(6), "set/sound/c.wav": wav(), "lost.wav": wav()},
        },
    )
    artifact = imported(folder, tmp_path, streams, caption="file_name")
    data = Dataset(artifact)
    assert len(data.keys("train")) == 3
    there = {key: {name for name in streams if data.content("train", name, row) is not None} for row, key in enumerate(data.keys("train"))}
    a, b, c = (next(names for key, names in there.items() if key.startswith(start)) for start in ("a", "b", "set"))
    assert a == set(streams) and b == {"rgb", "depth", "push", "words"} and c == {"rgb", "depth", "sound", "words"}
    row = next(row for row, key in enumerate(data.keys("train")) if key == "b")
    assert data.value("train", "push", row).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    whole = np.asarray(Image.open(io.BytesIO(png(4))))[:, 2:22]
    nearest = np.asarray(Image.fromarray(whole).resize((16, 16), Image.Resampling.NEAREST))
    assert np.array_equal(data.value("train", "depth", row), nearest)
    ignored = [json.loads(line)["file"] for line in (artifact.folder / "ignored.jsonl").read_bytes().splitlines()]
    assert ignored == ["lost.wav"]


def test_streams_of_one_sample_are_cropped_to_the_same_part_even_if_stored_in_other_sizes(tmp_path: Path) -> None:
    marked = np.zeros((64, 96, 3), np.uint8)
    marked[16:48, 30:62] = 255
    small = marked[::2, ::2]
    contents = []
    for picture in (marked, small):
        content = io.BytesIO()
        Image.fromarray(picture).save(content, format="PNG")
        contents.append(content.getvalue())
    folder = fill(tmp_path / "in", {"a.png": contents[0], "a.mask.png": contents[1]})
    masks = ImageStream(kind="image", size=16, resample="nearest")
    data = Dataset(imported(folder, tmp_path, {"rgb": masks, "mask": masks}))
    assert np.array_equal(data.value("train", "rgb", 0), data.value("train", "mask", 0))


def test_a_change_beside_a_sample_changes_the_digest_of_the_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {"a.png": png(), "a.wav": wav()})
    settings = ImportFolder(run="import_folder", path=str(folder), streams={"view": IMAGE, "sound": AUDIO})
    assert STAGE.outside is not None
    before = STAGE.outside(settings, disk.digest)
    (folder / "a.wav").write_bytes(wav(np.zeros(400, np.float32)))
    assert STAGE.outside(settings, disk.digest) != before


def test_files_that_match_a_pattern_are_held_out(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {f"{digit}_{who}_{n}.wav": wav() for digit in range(3) for who in ("ann", "bob") for n in range(2)})
    data = Dataset(imported(folder, tmp_path, {"word": AUDIO}, held_out="*_bob_*"))
    assert {key.split("_")[1] for key in data.keys("held_out")} == {"bob"} and data.samples("held_out") == 6
    assert {key.split("_")[1] for key in data.keys("train")} == {"ann"}
    with pytest.raises(ValueError, match=r"held_out '\*\.wav' matches 12 of 12 files"):
        imported(folder, tmp_path / "again", {"word": AUDIO}, held_out="*.wav")


def claiming(size: int) -> bytes:
    header = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8_000, 16_000, 2, 16)
    return header + b"data" + struct.pack("<I", size) + bytes(1_000)


def huge_npy() -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 10, 1 << 10, 3)})
    return content.getvalue()


def hours() -> bytes:
    """More seconds than are read, in a few kilobytes."""
    content = io.BytesIO()
    soundfile.write(content, np.zeros(601_000, np.float32), 1_000, format="FLAC")
    return content.getvalue()


def changing_size() -> bytes:
    """A clip whose second frame is of another size than its first."""
    content = io.BytesIO()
    with av.open(content, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuvj420p"
        for number, size in enumerate(((32, 24), (48, 40), (32, 24))):
            picture = io.BytesIO()
            Image.new("RGB", size, (90, 30, 200)).save(picture, format="JPEG")
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 4)
            container.mux(packet)
    return content.getvalue()


HTML = b"<!doctype html><title>404</title>"
# stream, good files, bad file -> code
BAD: dict[str, tuple[Stream, dict[str, bytes], dict[str, tuple[bytes, str]]]] = {
    "image": (
        IMAGE,
        {f"good{i}.png": png(i) for i in range(3)},
        {
            "empty.png": (b"", "empty_input"),
            "page.jpg": (HTML, "type_mismatch"),
            "cut.png": (png()[:400], "image_truncated"),
            "small.png": (png(size=(1, 30)), "image_too_small"),
            "scan.tiff": (b"II*\0", "format_not_allowed"),
            "paper.png": (b"%PDF-1.7", "format_not_allowed"),
        },
    ),
    "audio": (
        AUDIO,
        {f"good{i}.wav": wav() for i in range(3)},
        {
            "empty.wav": (b"", "empty_input"),
            "page.mp3": (HTML, "type_mismatch"),
            "nan.wav": (wav(np.array([0.0, np.nan], np.float32), "FLOAT"), "audio_nonfinite"),
            "claims.wav": (claiming(0xFFFFFF00), "audio_truncated"),
            "silent.wav": (wav(np.zeros(0, np.float32)), "audio_empty"),
            "broken.flac": (b"fLaC" + bytes(90), "audio_corrupt"),
            "hours.flac": (hours(), "audio_too_long"),
        },
    ),
    "video": (
        VIDEO,
        {f"good{i}.npy": clip(i) for i in range(3)},
        {
            "empty.mp4": (b"", "empty_input"),
            "page.mp4": (HTML, "type_mismatch"),
            "none.npy": (npy(np.zeros((0, 16, 16, 3), np.uint8)), "video_empty"),
            "huge.npy": (huge_npy(), "video_limits"),
            "floats.npy": (npy(np.zeros((3, 16, 16, 3))), "type_mismatch"),
            "changes.mkv": (changing_size(), "video_inconsistent"),
            "broken.mp4": (b"\x00\x00\x00\x18ftypmp42" + bytes(80), "video_corrupt"),
        },
    ),
    "action": (
        ACTION,
        {f"good{i}.json": b"[[1, 2], [3, 4]]" for i in range(3)},
        {
            "empty.npy": (b"", "empty_input"),
            "page.csv": (HTML, "action_invalid"),
            "nan.npy": (npy([[1.0, np.nan], [1.0, 1.0]]), "action_invalid"),
            "long.npy": (npy(np.ones((3, 2))), "action_invalid"),
            "wild.npy": (npy(np.full((2, 2), 1e308)), "action_invalid"),
            "picture.npy": (png(), "type_mismatch"),
        },
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_of_every_kind_are_refused_with_their_code_and_the_run_goes_on(kind: str, tmp_path: Path) -> None:
    stream, good, bad = BAD[kind]
    folder = fill(tmp_path / "in", {**good, **{name: content for name, (content, _) in bad.items()}})
    artifact = imported(folder, tmp_path, {"it": stream}, max_reject_share=0.9)
    assert refused(artifact) == {name: code for name, (_, code) in bad.items()}
    data = Dataset(artifact)
    assert data.samples("train") == len(good)
    for row in range(len(good)):
        assert data.value("train", "it", row) is not None


@pytest.mark.parametrize("kind", BAD)
def test_too_many_bad_files_stop_the_run_and_are_listed(kind: str, tmp_path: Path) -> None:
    stream, good, bad = BAD[kind]
    folder = fill(tmp_path / "in", {**good, **{name: content for name, (content, _) in bad.items()}})
    with pytest.raises(TooManyRejects, match=f"{len(bad)} of {len(bad) + 3}"):
        imported(folder, tmp_path, {"it": stream}, max_reject_share=0.2)


def test_a_bad_file_beside_a_good_one_refuses_the_sample_under_its_own_name_and_digest(tmp_path: Path) -> None:
    bad = b"fLaC" + bytes(90)
    folder = fill(
        tmp_path / "in",
        {
            **{"a.png": png(), "a.flac": bad, "b.png": png(1), "b.wav": wav()},
            **{"c.png": png(2), "c.wav": wav(), "c.txt": b"caf\xe9", "d.png": png(3), "d.txt": b" \n", "e.png": b""},
        },
    )
    streams: dict[str, Stream] = {"view": IMAGE, "sound": AUDIO, "words": TextStream(kind="text")}
    artifact = imported(folder, tmp_path, streams, max_reject_share=0.9)
    expected = {"a.flac": "audio_corrupt", "c.txt": "text_not_utf8", "d.txt": "empty_input", "e.png": "empty_input"}
    assert refused(artifact) == expected and Dataset(artifact).samples("train") == 1
    lines = [json.loads(line) for path in (artifact.folder / "rejects").rglob("*.jsonl") for line in path.read_bytes().splitlines()]
    assert {line["key"]: line["sha256"] for line in lines} == {name: disk.digest(folder / name) for name in expected}
    assert next(line["detail"] for line in lines if line["key"] == "a.flac").endswith("so the sample of a.png is refused")


def test_two_names_for_one_sample_are_refused_so_that_none_is_held_out_of_itself(tmp_path: Path) -> None:
    names = ("a.png", "a.rgb.png", "a.depth.png", "b.png", "b.depth.png", "c.rgb.jpg")
    folder = fill(tmp_path / "in", {name: png(number) for number, name in enumerate(names)})
    artifact = imported(folder, tmp_path, {"rgb": IMAGE, "depth": IMAGE}, max_reject_share=0.9, held_out="a.png")
    assert refused(artifact) == {"a.png": "name_ambiguous"}
    assert Dataset(artifact).samples("train") == 3 and Dataset(artifact).samples("held_out") == 0


def test_bad_captions_are_refused_with_their_code_and_odd_ones_come_in(tmp_path: Path) -> None:
    bad = {
        "empty": (b"", "empty_input"),
        "blank": ("\ufeff \n".encode(), "empty_input"),
        "latin": (b"caf\xe9", "text_not_utf8"),
        "surrogate": ("\ud800".encode("utf-8", "surrogatepass"), "text_not_utf8"),
        "long": (b"a" * ((1 << 20) + 1), "text_too_long"),
    }
    good = {"mark": "a\u2581b", "marks": "<image> [MASK] </view>", "turned": "a\u202eb\u200b", "nul": "a\0b"}
    texts = {name: content for name, (content, _) in bad.items()} | {name: text.encode() for name, text in good.items()}
    folder = fill(tmp_path / "in", {f"{name}.txt": content for name, content in texts.items()})
    fill(folder, {f"{name}.png": png(number) for number, name in enumerate(texts)})
    artifact = imported(folder, tmp_path, {"view": IMAGE, "words": TextStream(kind="text")}, max_reject_share=0.9)
    assert refused(artifact) == {f"{name}.txt": code for name, (_, code) in bad.items()}
    data = Dataset(artifact)
    found = {key: data.value("train", "words", row) for row, key in enumerate(data.keys("train"))}
    assert found == good
    tokenizer = train_text(list(good.values()) * 9, vocab_size=300)
    assert tokenizer.decode(tokenizer.encode(list(found.values()))) == list(found.values())
