"""`worldloom sample`: asks a trained world for samples. A caption gives a picture, a picture a caption, nothing gives everything.

What is given and what is wanted are named by stream; `--caption` and `--image` are short for the first text and the first image stream.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from worldloom.pipeline.found import find_world
from worldloom.stages.evaluate_world_model import ANSWERING, DREAMING

if TYPE_CHECKING:
    from worldloom.stages.open_world import OpenWorld

SUFFIXES = (".png", ".wav", ".json")  # of pictures and clips, sounds, actions
Number = TypeVar("Number", int, float)


class Sample(NamedTuple):
    """One sample as it was written."""

    texts: dict[str, str]  # what the world said, by stream
    files: dict[str, Path]  # what it wrote to disk, by stream
    legal: bool


def sample_command(
    run: Path,
    caption: str | None = None,
    image: Path | None = None,
    want: Sequence[str] | None = None,
    out: Path | None = None,
    seed: int = 0,
    count: int = 1,
    temperature: float | Mapping[str, float] | None = None,
    top_k: int | Mapping[str, int] = 0,
    top_p: float | Mapping[str, float] = 1.0,
    guidance: float = 1.0,
    scale: int = 1,
    stage: str | None = None,
    give: Mapping[str, str] | None = None,
    fill_steps: int | None = None,
    fill_order: Literal["confidence", "random", "raster"] | None = None,
    infill: Mapping[str, Sequence[int]] | None = None,
    see: Path | None = None,
    tokens: str | None = None,
    fill_lengths: Mapping[str, int] | None = None,
) -> list[Sample]:
    """Writes `count` samples of the world in `run` (a pipeline file, its root folder, one of its runs, or an exported world) and says what
    they are.

    What is no text goes to `out`: a file name with the ending of its kind (numbered where there are several), or a folder, which then
    gets the texts, too. `want` names the streams to write, by default those not given; with nothing given, the model itself chooses.
    `give` holds values by stream name: text, or the path of a file. `see` is a picture that a world trained with `sees` is shown ahead of
    its tokens. `temperature`, `top_k` and `top_p` are numbers, or one for each stream named ("order" for the choice of streams), with the
    one of all others under "". `infill`: by stream, the places of codes of what is given that are written anew, in sight of all others;
    these streams are then what is made, by a world that learnt spans. `tokens` as in open_world. `fill_lengths`: with `fill_steps`, by
    stream, how many codes one of varying length gets, which is then written in those steps, too. ValueError or FileNotFoundError say what
    is wrong and what to do.
    """
    asked = caption is not None or image is not None or see is not None or bool(give)
    if temperature is None:
        temperature = {}
    _check(count, temperature, top_k, top_p, guidance, scale, fill_steps or 0)
    if infill and (want is not None or fill_steps or guidance != 1):
        raise ValueError("infill writes codes of what is given anew, token by token as learnt; leave out want, fill-steps and guidance")
    world = find_world(run, stage, tokens)
    if not infill:
        fill_steps = world.fill_steps_of(fill_steps)
    _check_filling(fill_steps or 0, fill_order, fill_lengths)
    from worldloom.stages.open_world import SEEN, Choosing

    given = _given(world, caption, image, give or {})
    wanted = _holed(given, infill) if infill else _wanted(world, given, want)
    if unwritten := [name for name in fill_lengths or {} if name not in (wanted or ())]:
        raise ValueError(
            f"fill-length is given for {unwritten[0]!r}, which is not written; write STREAM=CODES, of {', '.join(wanted or ())}"
        )
    shown = given if see is None else {**given, SEEN: _seen(world, see)}
    if out is None and any(world.streams[name] != "text" for name in wanted or world.streams):
        raise ValueError("say where what is no text goes: --out picture.png (or .wav, .json), or --out folder/")
    choosing = Choosing(
        temperature=_by_stream(world, temperature, ANSWERING if asked else DREAMING, "temperature"),
        top_k=_by_stream(world, top_k, 0, "top-k"),
        top_p=_by_stream(world, top_p, 1.0, "top-p"),
        guidance=guidance,
        fill_steps=fill_steps,
        fill_order=fill_order or "confidence",
        fill_lengths=dict(fill_lengths or {}),
    )
    seeds = [seed + number for number in range(count)]
    if infill:
        made, kept = world.infill([shown] * count, [infill] * count, seeds, choosing), {*given} - {*infill}
    else:
        made, kept = world.sample([shown] * count, wanted, seeds, choosing), {*given}
    return [
        _write(world, {name: value for name, value in one.values.items() if name not in kept}, out, number, count, scale, one.legal)
        for number, one in enumerate(made)
    ]


def sample_lines(samples: Sequence[Sample]) -> list[str]:
    """What a terminal shows of them."""
    lines: list[str] = []
    for sample in samples:
        lines.extend(sample.texts.values() if len(sample.texts) == 1 else (f"{name}: {text}" for name, text in sample.texts.items()))
        lines.extend(f"{name} in {file}" for name, file in sample.files.items() if name not in sample.texts)
    return lines


def _by_stream(world: "OpenWorld", value: Number | Mapping[str, Number], otherwise: Number, option: str) -> dict[str, Number]:
    """A value for every stream, and for their order."""
    if not isinstance(value, Mapping):
        value = {"": value}
    names: list[str] = [*world.streams, "order"]
    if unknown := sorted(set(value) - {*names, ""}):
        raise ValueError(f"{option} is given for {unknown[0]!r}; this world has {', '.join(names)}")
    return {name: value.get(name, value.get("", otherwise)) for name in names}


def _each(value: Number | Mapping[str, Number]) -> Iterable[Number]:
    return value.values() if isinstance(value, Mapping) else (value,)


def _check(
    count: int,
    temperature: float | Mapping[str, float],
    top_k: int | Mapping[str, int],
    top_p: float | Mapping[str, float],
    guidance: float,
    scale: int,
    fill_steps: int,
) -> None:
    for name, value, rule, holds in (
        ("count", count, "at least 1", count >= 1),
        *(("temperature", each, "at least 0", each >= 0) for each in _each(temperature)),
        *(("top-k", each, "at least 0 (0 takes all)", each >= 0) for each in _each(top_k)),
        *(("top-p", each, "above 0 and at most 1", 0 < each <= 1) for each in _each(top_p)),
        ("guidance", guidance, "at least 0", guidance >= 0),
        ("scale", scale, "from 1 to 64", 1 <= scale <= 64),
        ("fill-steps", fill_steps, "at least 0 (token by token)", fill_steps >= 0),
    ):
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {value}")


def _check_filling(fill_steps: int, fill_order: str | None, fill_lengths: Mapping[str, int] | None) -> None:
    if fill_order is not None and not fill_steps:
        raise ValueError(f"fill-order ({fill_order}) says which hidden codes are settled first; say in how many steps, with fill-steps")
    if fill_lengths and not fill_steps:
        raise ValueError(
            f"fill-length ({', '.join(fill_lengths)}) says how many hidden codes are settled; say in how many steps, with fill-steps"
        )


def _holed(given: Mapping[str, Any], infill: Mapping[str, Sequence[int]]) -> list[str]:
    """The streams that get other codes."""
    if missing := [name for name in infill if name not in given]:
        raise ValueError(f"infill changes {missing[0]}, which is not given; give its value, or leave it to be written whole")
    return list(infill)


def _given(world: "OpenWorld", caption: str | None, image: Path | None, give: Mapping[str, str]) -> dict[str, Any]:
    """The values given, decoded, by stream."""
    given: dict[str, Any] = {}
    if caption is not None:
        given[_first(world, "text", "--caption")] = caption
    if image is not None:
        name = _first(world, "image", "--image")
        given[name] = _read_file(world, name, image)
    for name, text in give.items():
        if name not in world.streams:
            raise ValueError(f"this world has no stream {name!r}; it has {', '.join(world.streams)}")
        given[name] = text if world.streams[name] == "text" else _read_file(world, name, Path(text))
    return given


def _seen(world: "OpenWorld", path: Path) -> Any:
    """A picture for the encoder; ValueError where the world has none."""
    from worldloom.stages.preprocess import read_value
    from worldloom.stages.rejects import InputRejected

    if world.sight is None:
        raise ValueError("this world sees nothing ahead of its tokens, so --see is of no use; give --image, or train one with `sees`")
    try:
        return read_value(path, world.dataset.streams[world.sight.samples.features.stream])
    except InputRejected as error:
        raise ValueError(f"{path} cannot be read as a picture: {error.code}: {error.detail}") from None


def _first(world: "OpenWorld", kind: str, option: str) -> str:
    for name, other in world.streams.items():
        if other == kind:
            return name
    raise ValueError(f"{option} needs a stream of kind {kind}, and this world has only {', '.join(world.streams)}")


def _wanted(world: "OpenWorld", given: Mapping[str, Any], want: Sequence[str] | None) -> list[str] | None:
    """The streams to write, in order; None leaves it to the model."""
    if want is None:
        return [name for name in world.streams if name not in given] if given else None
    for name in want:
        if name not in world.streams:
            raise ValueError(f"this world has no stream {name!r} to want; it has {', '.join(world.streams)}")
        if name in given:
            raise ValueError(f"{name} is both given and wanted; leave it out of one of them")
    return list(dict.fromkeys(want))


def _read_file(world: "OpenWorld", name: str, path: Path) -> Any:
    from worldloom.stages.rejects import InputRejected
    from worldloom.stages.streams import kind_of

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there, or not a file; it should hold a value of the stream {name}")
    stream = world.dataset.streams[name]
    try:
        return kind_of(stream.kind).decode(path.read_bytes(), stream)
    except InputRejected as error:
        raise ValueError(f"{path} cannot be read as {name} ({stream.kind}): {error.code}: {error}") from None


def _write(world: "OpenWorld", values: Mapping[str, Any], out: Path | None, number: int, count: int, scale: int, legal: bool) -> Sample:
    from worldloom.stages.present import present

    texts = {name: value for name, value in values.items() if world.streams[name] == "text"}
    written = {name: value for name, value in values.items() if name not in texts}
    if out is None:
        return Sample(texts, {}, legal)
    place, alone = _place(out, number, count), len(written) == 1
    files = {}
    for name, value in (written if _is_file(out) else values).items():
        shown = present(value, world.dataset.streams[name], scale)
        files[name] = place(name, shown.extension, alone and name in written)
        files[name].write_bytes(shown.content)
    return Sample(texts, files, legal)


def _is_file(out: Path) -> bool:
    return out.suffix.lower() in SUFFIXES and not out.is_dir()


def _place(out: Path, number: int, count: int) -> Callable[[str, str, bool], Path]:
    """Where a stream's value of sample `number` goes; `alone` where the sample has one file only."""
    if out.suffix and not out.is_dir() and not _is_file(out):
        raise ValueError(f"{out} does not end in {', '.join(SUFFIXES)}; give such a file, or a folder")
    (out.parent if _is_file(out) else out).mkdir(parents=True, exist_ok=True)
    several = f"-{number:03d}" if count > 1 else ""

    def place(name: str, extension: str, alone: bool) -> Path:
        if _is_file(out):
            if extension != out.suffix.lower()[1:]:
                if alone:
                    raise ValueError(f"{out} should end in .{extension}, as {name} is written; or give a folder")
                return out.with_name(f"{out.stem}{several}.{name}.{extension}")
            return out.with_name(f"{out.stem}{several}{'' if alone else f'.{name}'}{out.suffix}")
        return out / f"sample-{number:03d}.{name}.{extension}"

    return place
