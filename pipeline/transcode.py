"""`worldloom encode` and `decode`: files through one tokenizer and back."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from worldloom.tokenizers.tokenizer import Tokenizer

CODES = ".codes.npy"
MOST_BYTES = 64 << 20  # of a file of codes


class Done(NamedTuple):
    """What became of one file."""

    source: Path
    target: Path | None  # None: it was refused
    said: str  # what is in the new file, or why there is none


def encode_files(tokenizer: str, files: Sequence[Path], out: Path | None) -> Iterator[Done]:
    """Writes the codes of each file as NAME.codes.npy, in their own shape and the smallest unsigned type, into `out` or beside the file.

    A file that cannot be read is refused with its code, and the others go on. ValueError where two files would get one name.
    """
    import numpy as np

    from worldloom.stages.preprocess import read_value, stream_of
    from worldloom.stages.streams import kind_of
    from worldloom.tokenizers.tokenizer import smallest_unsigned

    opened = _open(tokenizer)
    stream = stream_of(opened)

    def encode(source: Path, target: Path) -> str:
        value = read_value(source, stream)
        codes = np.asarray(opened.encode(kind_of(stream.kind).batch([value]))[0])
        np.save(target, codes.astype(smallest_unsigned(opened.codebook_size)))
        bits = codes.size * np.log2(opened.codebook_size)
        return f"{' x '.join(map(str, codes.shape))} codes of {opened.codebook_size}, {bits:,.0f} bits"

    yield from each_file(files, out, lambda source: f"{source.stem}{CODES}", encode)


def decode_files(tokenizer: str, files: Sequence[Path], out: Path | None) -> Iterator[Done]:
    """Writes what each file of codes stands for as a file that people open; refusals and errors as in `encode_files`."""
    from worldloom.stages.npy import read_npy
    from worldloom.stages.preprocess import stream_of
    from worldloom.stages.present import present
    from worldloom.stages.rejects import InputRejected

    opened = _open(tokenizer)
    stream = stream_of(opened)
    extension = {"text": "txt", "audio": "wav", "action": "json"}.get(stream.kind, "png")

    def decode(source: Path, target: Path) -> str:
        if not source.is_file():
            raise FileNotFoundError(f"{source} is not there, or not a file")
        try:
            with open(source, "rb") as file:
                codes = read_npy(file.read(2 * MOST_BYTES), MOST_BYTES, "codes_invalid")
            value = opened.decode([codes] if opened.shape is None else codes[None])[0]
        except ValueError as error:
            raise InputRejected("codes_invalid", str(error)) from None
        target.write_bytes(present(value, stream).content)
        return f"a value of kind {stream.kind}"

    yield from each_file(files, out, lambda source: f"{source.name.removesuffix(CODES).removesuffix('.npy')}.decoded.{extension}", decode)


def each_file(files: Sequence[Path], out: Path | None, named: Callable[[Path], str], work: Callable[[Path, Path], str]) -> Iterator[Done]:
    """`work` on every file and the name of its result, in `out` or beside the file; what one refuses does not stop the others."""
    from worldloom.stages.rejects import InputRejected

    targets = {source: (source.parent if out is None else out) / named(source) for source in files}
    taken: dict[Path, Path] = {}
    for source, target in targets.items():
        if target in taken:
            raise ValueError(f"{taken[target]} and {source} would both be written to {target}; give them in two commands with two --out")
        taken[target] = source
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for source, target in targets.items():
        try:
            yield Done(source, target, work(source, target))
        except InputRejected as refused:
            yield Done(source, None, f"{refused.code}: {refused.detail}")
        except FileNotFoundError as missing:
            yield Done(source, None, str(missing))


def _open(tokenizer: str) -> "Tokenizer":
    """A tokenizer by its folder, or as RUN:STAGE by the stage that trained it."""
    from worldloom.pipeline.found import find_artifact
    from worldloom.stages.open_tokenizer import open_tokenizer

    for folder in (Path(tokenizer), Path(tokenizer) / "tokenizer"):
        if (folder / "config.json").is_file():
            return open_tokenizer(folder)
    run, colon, stage = tokenizer.rpartition(":")
    if not colon:
        raise ValueError(
            f"{tokenizer} is no folder of a tokenizer (there is no config.json in it); give one, or RUN:STAGE (runs/shapes:frame_codes)"
        )
    return open_tokenizer(find_artifact(Path(run), "tokenizer", stage).folder / "tokenizer")
