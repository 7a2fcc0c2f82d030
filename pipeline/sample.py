"""`worldloom sample`: asks a trained world for samples. A caption gives a picture, a picture a caption, nothing gives everything.

What is given and what is wanted are named by stream; `--caption` and `--image` are short for the first text and the first image stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from worldloom.pipeline.found import find_world
from worldloom.stages.evaluate_world_model import ANSWERING, DREAMING

if TYPE_CHECKING:
    from worldloom.stages.open_world import Choosing, OpenWorld

SUFFIXES = (".png", ".wav", ".json")  # of pictures and clips, sounds, actions
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a world, streams by name; ValueError for a number out of its range, and for wishes that exclude each other.

    `temperature`, `top_k` and `top_p` are one for each stream named ("order" for the choice of streams), with that of all others under "".
    """

    caption: str | None = None  # for the first text stream
    image: Path | None = None  # for the first image stream
    give: Mapping[str, str] = field(default_factory=dict)  # by stream: text, or the path of a file
    see: Path | None = None  # a picture that a world trained with `sees` is shown ahead of its tokens
    want: Sequence[str] | None = None  # streams to write; None: those not given, or, with nothing given, as the model chooses
    # By stream, the places of codes of what is given that are written anew, in sight of all others; these streams are then what is made.
    infill: Mapping[str, Sequence[int]] = field(default_factory=dict)
    out: Path | None = None  # a file with the ending of its kind (numbered where there are several), or a folder, which gets texts, too
    seed: int = 0  # of the first sample; each further one has the next
    count: int = 1
    temperature: Mapping[str, float] = field(default_factory=dict)
    top_k: Mapping[str, int] = field(default_factory=dict)
    top_p: Mapping[str, float] = field(default_factory=dict)
    guidance: float = 1.0
    fill_steps: int | None = None  # writes by hidden codes in so many steps; 0: token by token; None: as the world learnt
    fill_order: Literal["confidence", "random", "raster"] | None = None  # None: confidence
    fill_lengths: Mapping[str, int] = field(default_factory=dict)  # codes of streams of varying length, which are then filled in, too
    scale: int = 1  # by which pictures are enlarged

    def __post_init__(self) -> None:
        for name, value, rule, holds in (
            ("count", self.count, "at least 1", self.count >= 1),
            *(("temperature", each, "at least 0", each >= 0) for each in self.temperature.values()),
            *(("top-k", each, "at least 0 (0 takes all)", each >= 0) for each in self.top_k.values()),
            *(("top-p", each, "above 0 and at most 1", 0 < each <= 1) for each in self.top_p.values()),
            ("guidance", self.guidance, "at least 0", self.guidance >= 0),
            ("scale", self.scale, "from 1 to 64", 1 <= self.scale <= 64),
            ("fill-steps", self.fill_steps, "at least 0 (token by token)", self.fill_steps is None or self.fill_steps >= 0),
        ):
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {value}")
        if self.infill and (self.want is not None or self.fill_steps or self.guidance != 1):
            raise ValueError("infill writes codes of what is given anew, token by token as learnt; leave out want, fill-steps and guidance")

    @property
    def from_nothing(self) -> bool:
        return self.caption is None and self.image is None and self.see is None and not self.give


class Sample(NamedTuple):
    """One sample as it was written."""

    texts: dict[str, str]  # what the world said, by stream
    files: dict[str, Path]  # what it wrote to disk, by stream
    legal: bool


def sample_command(run: Path, asked: Asked, stage: str | None = None, tokens: str | None = None) -> list[Sample]:
    """Writes what is asked of the world in `run` (a pipeline file, its root folder, one of its runs, or an exported world) and says what it
    is; `tokens` as in open_world. ValueError or FileNotFoundError say what is wrong and what to do.
    """
    world = find_world(run, stage, tokens)
    from worldloom.stages.open_world import SEEN

    given = _given(world, asked)
    wanted = _holed(given, asked.infill) if asked.infill else _wanted(world, given, asked.want)
    if asked.out is None and any(world.streams[name] != "text" for name in wanted or world.streams):
        raise ValueError("say where what is no text goes: --out picture.png (or .wav, .json), or --out folder/")
    choosing = _choosing(world, asked, wanted or ())
    shown = [given if asked.see is None else {**given, SEEN: _seen(world, asked.see)}] * asked.count
    seeds = range(asked.seed, asked.seed + asked.count)
    if asked.infill:
        made = world.infill(shown, [asked.infill] * asked.count, seeds, choosing)
    else:
        made = world.sample(shown, wanted, seeds, choosing)
    kept = {*given} - {*asked.infill}
    return [
        _write(world, asked, number, {name: value for name, value in one.values.items() if name not in kept}, one.legal)
        for number, one in enumerate(made)
    ]


def sample_lines(samples: Sequence[Sample]) -> list[str]:
    """What a terminal shows of them."""
    lines: list[str] = []
    for sample in samples:
        lines.extend(sample.texts.values() if len(sample.texts) == 1 else (f"{name}: {text}" for name, text in sample.texts.items()))
        lines.extend(f"{name} in {file}" for name, file in sample.files.items() if name not in sample.texts)
    return lines


def _choosing(world: "OpenWorld", asked: Asked, wanted: Sequence[str]) -> "Choosing":
    from worldloom.stages.open_world import Choosing

    fill_steps = 0 if asked.infill else world.fill_steps_of(asked.fill_steps)
    if asked.fill_order is not None and not fill_steps:
        raise ValueError(
            f"fill-order ({asked.fill_order}) says which hidden codes are settled first; say in how many steps, with fill-steps"
        )
    if asked.fill_lengths and not fill_steps:
        raise ValueError(
            f"fill-length ({', '.join(asked.fill_lengths)}) says how many hidden codes are settled; say in how many steps, with fill-steps"
        )
    if unwritten := [name for name in asked.fill_lengths if name not in wanted]:
        raise ValueError(f"fill-length is given for {unwritten[0]!r}, which is not written; write STREAM=CODES, of {', '.join(wanted)}")
    return Choosing(
        temperature=_by_stream(world, asked.temperature, DREAMING if asked.from_nothing else ANSWERING, "temperature"),
        top_k=_by_stream(world, asked.top_k, 0, "top-k"),
        top_p=_by_stream(world, asked.top_p, 1.0, "top-p"),
        guidance=asked.guidance,
        fill_steps=fill_steps,
        fill_order=asked.fill_order or "confidence",
        fill_lengths=dict(asked.fill_lengths),
    )


def _by_stream(world: "OpenWorld", value: Mapping[str, Number], otherwise: Number, option: str) -> dict[str, Number]:
    """A value for every stream, and for their order."""
    names: list[str] = [*world.streams, "order"]
    if unknown := sorted(set(value) - {*names, ""}):
        raise ValueError(f"{option} is given for {unknown[0]!r}; this world has {', '.join(names)}")
    return {name: value.get(name, value.get("", otherwise)) for name in names}


def _holed(given: Mapping[str, Any], infill: Mapping[str, Sequence[int]]) -> list[str]:
    """The streams that get other codes."""
    if missing := [name for name in infill if name not in given]:
        raise ValueError(f"infill changes {missing[0]}, which is not given; give its value, or leave it to be written whole")
    return list(infill)


def _given(world: "OpenWorld", asked: Asked) -> dict[str, Any]:
    """The values given, decoded, by stream."""
    given: dict[str, Any] = {}
    if asked.caption is not None:
        given[_first(world, "text", "--caption")] = asked.caption
    if asked.image is not None:
        name = _first(world, "image", "--image")
        given[name] = _read_file(world, name, asked.image)
    for name, text in asked.give.items():
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


def _write(world: "OpenWorld", asked: Asked, number: int, values: Mapping[str, Any], legal: bool) -> Sample:
    from worldloom.stages.present import present

    texts = {name: value for name, value in values.items() if world.streams[name] == "text"}
    written = {name: value for name, value in values.items() if name not in texts}
    if asked.out is None:
        return Sample(texts, {}, legal)
    place, alone = _place(asked.out, number, asked.count), len(written) == 1
    files = {}
    for name, value in (written if _is_file(asked.out) else values).items():
        shown = present(value, world.dataset.streams[name], asked.scale)
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
