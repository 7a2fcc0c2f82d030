"""Files through a tokenizer and back, by the command line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldloom.pipeline.cli import main
from worldloom.tokenizers.load import load_tokenizer


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    files = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for file in files:
        Image.fromarray(generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(file)
    return files


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_codes_are_the_tokenizers_and_decode_gives_its_picture(tiny_root: Path, tmp_path: Path, pictures: list[Path]) -> None:
    folder = tiny_root / "artifacts" / "view_codes" / "0123456789abcdef"
    for number, name in enumerate((folder, folder / "tokenizer", f"{tiny_root}:view_codes")):
        assert run("encode", name, *pictures, "--out", tmp_path / str(number)) == 0
    files = sorted((tmp_path / "0").iterdir())
    assert [file.name for file in files] == ["one.codes.npy", "two.codes.npy"]
    assert all(
        (tmp_path / "1" / file.name).read_bytes() == file.read_bytes() == (tmp_path / "2" / file.name).read_bytes() for file in files
    )
    codes = np.load(files[0])
    assert codes.shape == (2, 2) and codes.dtype == np.uint16
    assert run("decode", folder, *files, "--out", tmp_path / "back") == 0
    expected = load_tokenizer(folder / "tokenizer").decode(codes[None])[0]
    assert (np.asarray(Image.open(tmp_path / "back" / "one.decoded.png")) == expected).all()


def test_texts_come_back_as_they_were(tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("a red circle, at  the left", encoding="utf-8")
    assert run("encode", f"{tiny_root}:words_codes", tmp_path / "words.txt") == 0
    assert run("decode", f"{tiny_root}:words_codes", tmp_path / "words.codes.npy") == 0
    assert (tmp_path / "words.decoded.txt").read_text(encoding="utf-8") == "a red circle, at  the left\n"
    np.save(tmp_path / "floats.npy", np.load(tmp_path / "words.codes.npy").astype(np.float64))
    assert run("decode", f"{tiny_root}:words_codes", tmp_path / "floats.npy") == 1
    assert "codes_invalid: a text's codes are one row of integers, got float64" in capsys.readouterr().err


def test_a_bad_file_is_named_and_the_others_go_on(
    tiny_root: Path, tmp_path: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:60])
    (tmp_path / "song.mid").write_bytes(b"MThd")
    bad = [tmp_path / "broken.png", tmp_path / "song.mid", tmp_path / "absent.png"]
    assert run("encode", f"{tiny_root}:view_codes", *bad, *pictures, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "broken.png: image_truncated" in said.err and "song.mid: format_not_allowed: files of kind image end in png, jpg" in said.err
    assert "absent.png is not there" in said.err
    assert said.out.count("2 x 2 codes of 17, 16 bits") == 2 and len(list((tmp_path / "out").iterdir())) == 2
    np.save(tmp_path / "wild.npy", np.full((2, 2), 99))
    np.save(tmp_path / "odd.npy", np.zeros((3, 2), np.int64))
    (tmp_path / "text.npy").write_bytes(b"no array")
    np.savez(tmp_path / "several.npz", codes=np.zeros((2, 2), np.int64))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "halves.npy", np.full((2, 2), 0.5))
    np.save(tmp_path / "great.npy", np.zeros((2, 2), np.uint64))
    claim = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1073741824, 2), }\n"
    (tmp_path / "liar.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(claim).to_bytes(2, "little") + claim)
    names = ("wild", "odd", "text", "several", "halves", "liar", "gone")
    assert run("decode", f"{tiny_root}:view_codes", *(tmp_path / f"{name}.npy" for name in (*names, "great"))) == 1
    said = capsys.readouterr()
    assert said.err.count("codes_invalid") == 4 and "codes must lie in 0 .. 16" in said.err and "gone.npy is not there" in said.err
    assert "codes are integers, got float64; hand over what encode gave" in said.err
    assert said.err.count("type_mismatch: not an .npy file") == 2 and "the header claims 17179869184 bytes, at most" in said.err
    assert (tmp_path / "great.decoded.png").exists()


def test_what_is_no_tokenizer_and_two_files_of_one_name_are_refused(
    tiny_root: Path, tmp_path: Path, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("encode", tmp_path, pictures[0]) == 2
    assert "is no folder of a tokenizer" in capsys.readouterr().err
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.png").write_bytes(pictures[0].read_bytes())
    assert run("encode", f"{tiny_root}:view_codes", pictures[0], tmp_path / "sub" / "one.png", "--out", tmp_path / "out") == 2
    assert "would both be written to" in capsys.readouterr().err
