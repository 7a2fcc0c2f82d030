"""What the datasets and token sets of a run hold, for those who look at them over HTTP: shards, counts, refusals, samples, use of codes."""

import base64
import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.pipeline.service.run_pages import Absent, Runs
from worldloom.pipeline.service.told import Told
from worldloom.stages.artifact import Artifact, ArtifactError
from worldloom.stages.dataset import Dataset, Tokens

MOST_REJECTS = 200  # refusals that are listed; all are counted
MOST_SAMPLES = 24  # of one draw
MOST_COUNTED = 4_000  # samples whose codes are counted
MOST_TEXT = 400  # letters of a text
SHOWN_SIDE = 192  # pixels of a picture that is shown, at most
PRODUCES = ("dataset", "tokens")


class ShardLine(Told):
    """A shard of a split."""

    name: str
    samples: int


class SplitLine(Told):
    """A split."""

    name: str
    samples: int
    shards: tuple[ShardLine, ...]


class StreamLine(Told):
    """A stream of a dataset, or its codes."""

    name: str
    kind: str
    samples: dict[str, int]  # by split: those that have the stream
    codebook_size: int | None = None
    shape: tuple[int, ...] | None = None
    levels: int = 1


class Refusal(Told):
    """A sample that was refused."""

    key: str
    code: str
    detail: str


class StreamKind(Told):
    """A stream in the list."""

    name: str
    kind: str
    tokenizer: str | None  # fingerprint of the one that made its codes


class DatasetLine(Told):
    """A dataset in the list."""

    run: str
    stage: str
    produces: str  # "dataset" or "tokens"
    samples: int
    shards: int
    rejected: int
    bytes: int
    oracle: str | None
    kinds: tuple[StreamKind, ...]


class DatasetPage(DatasetLine):
    """A dataset with what it holds."""

    splits: tuple[SplitLine, ...]
    streams: tuple[StreamLine, ...]
    reasons: dict[str, int]  # code of a refusal -> how many
    refusals: tuple[Refusal, ...]


class SampleValue(Told):
    """A value to look at: a text, numbers, or media as a data: URL."""

    kind: str
    text: str | None = None
    picture: str | None = None
    sound: str | None = None
    rows: tuple[tuple[float, ...], ...] | None = None


class SampleLine(Told):
    """A sample."""

    key: str
    split: str
    number: int
    values: dict[str, SampleValue]


class CodeUse(Told):
    """How often each code was chosen in the first samples of a split."""

    stream: str
    split: str
    samples: int
    counts: tuple[tuple[int, ...], ...]  # [levels][codebook_size]


class Raw(NamedTuple):
    """A value's bytes as they lie in the shard."""

    content: bytes
    kind: str


class Datasets:
    """The datasets of runs, by run and stage."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def lines(self) -> list[DatasetLine]:
        """All that are finished."""
        return [_line(run, artifact) for run in self.runs.names() for artifact in self._artifacts(run)]

    def page(self, run: str, stage: str) -> DatasetPage:
        """One dataset, or one set of tokens."""
        artifact = self._artifact(run, stage)
        opened = _opened(artifact.folder)
        splits = tuple(
            SplitLine(
                name=split,
                samples=opened.samples(split),
                shards=tuple(ShardLine(name=name, samples=opened.shard_samples(split, name)) for name in opened.shards(split)),
            )
            for split in opened.splits
        )
        refusals, reasons = _refusals(artifact)
        return DatasetPage(
            **_line(run, artifact).model_dump(),
            splits=splits,
            streams=tuple(_streams(opened)),
            reasons=dict(reasons.most_common()),
            refusals=tuple(refusals),
        )

    def samples(self, run: str, stage: str, split: str | None, stream: str | None, count: int, seed: int) -> list[SampleLine]:
        """`count` samples drawn from the split, of those that have `stream` if one is named, the same for the same seed; all streams."""
        data = self._dataset(run, stage)
        name = _split(data, split)
        there = np.arange(data.samples(name)) if stream is None else _that_have(data, name, stream)
        drawn = np.random.default_rng(seed).choice(there, min(count, len(there), MOST_SAMPLES), replace=False)
        keys = data.keys(name)
        return [
            SampleLine(
                key=keys[number],
                split=name,
                number=number,
                values={stream: shown for stream in data.streams if (shown := _shown(data, name, stream, number)) is not None},
            )
            for number in drawn.tolist()
        ]

    def draw(self, run: str, stage: str, stream: str, split: str | None, seed: int) -> Raw:
        """One value of a stream, from a sample that has it, as it lies in the shard."""
        data = self._dataset(run, stage)
        name = _split(data, split)
        there = _that_have(data, name, stream)
        if not len(there):
            raise Absent(f"no sample of {name} has {stream}")
        content = data.content(name, stream, int(np.random.default_rng(seed).choice(there)))
        assert content is not None
        return Raw(bytes(content), data.streams[stream].kind)

    def use(self, run: str, stage: str, stream: str, split: str | None) -> CodeUse:
        """How often each code of a stream is chosen."""
        artifact = self._artifact(run, stage)
        if artifact.produces != "tokens":
            raise Absent(f"{stage} holds no codes; the stages that do: {', '.join(self._names(run, 'tokens')) or 'none yet'}")
        return _use(artifact.folder, stream, split)

    def _names(self, run: str, produces: str) -> list[str]:
        return [artifact.name for artifact in self._artifacts(run) if artifact.produces == produces]

    def _artifacts(self, run: str) -> list[Artifact]:
        try:
            folders = self.runs.located(run).artifacts
        except Absent:
            return []  # not begun
        return [artifact for folder in folders.values() if (artifact := _finished(folder)) is not None and artifact.produces in PRODUCES]

    def _artifact(self, run: str, stage: str) -> Artifact:
        self.runs.located(run)  # Absent, where there is no such run
        for artifact in self._artifacts(run):
            if artifact.name == stage:
                return artifact
        raise Absent(f"the run {run} has no dataset {stage!r}; it has {', '.join(a.name for a in self._artifacts(run)) or 'none yet'}")

    def _dataset(self, run: str, stage: str) -> Dataset:
        artifact = self._artifact(run, stage)
        opened = _opened((artifact.input("data") if artifact.produces == "tokens" else artifact).folder)
        assert isinstance(opened, Dataset)
        return opened


def _finished(folder: Path) -> Artifact | None:
    try:
        return Artifact.open(folder) if (folder / "DONE.json").is_file() else None
    except ArtifactError:
        return None  # it is being made anew


@lru_cache(maxsize=16)
def _opened(folder: Path) -> Dataset | Tokens:
    """An artifact never changes once it is finished, so it is opened once."""
    artifact = Artifact.open(folder)
    return Tokens(artifact) if artifact.produces == "tokens" else Dataset(artifact)


def _line(run: str, artifact: Artifact) -> DatasetLine:
    opened = _opened(artifact.folder)
    return DatasetLine(
        run=run,
        stage=artifact.name,
        produces=artifact.produces,
        samples=sum(opened.samples(split) for split in opened.splits),
        shards=sum(len(opened.shards(split)) for split in opened.splits),
        rejected=int(artifact.counts.get("rejected", 0)),
        bytes=artifact.bytes,
        oracle=opened.oracle if isinstance(opened, Dataset) else None,
        kinds=tuple(
            StreamKind(name=name, kind=stream.kind, tokenizer=getattr(stream, "tokenizer", None)) for name, stream in opened.streams.items()
        ),
    )


def _streams(opened: Dataset | Tokens) -> list[StreamLine]:
    told = []
    for name, stream in opened.streams.items():
        have = {split: _having(opened, split, name) for split in opened.splits}
        if isinstance(opened, Tokens):
            about = opened.streams[name]
            told.append(
                StreamLine(
                    name=name, kind=about.kind, samples=have, codebook_size=about.codebook_size, shape=about.shape, levels=about.levels
                )
            )
        else:
            told.append(StreamLine(name=name, kind=stream.kind, samples=have))
    return told


def _that_have(data: Dataset, split: str, stream: str) -> NDArray[np.int64]:
    """Numbers of the samples of a split that have the stream."""
    if stream not in data.streams:
        raise Absent(f"there is no stream {stream!r}; there are {', '.join(data.streams)}")
    parts = [data.reader(split, shard, stream).present for shard in data.shards(split)]
    return np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *parts]))


def _having(opened: Dataset | Tokens, split: str, stream: str) -> int:
    """Samples of the split that have the stream."""
    return sum(int(opened.reader(split, shard, stream).present.sum()) for shard in opened.shards(split))


def _refusals(artifact: Artifact) -> tuple[list[Refusal], Counter[str]]:
    listed: list[Refusal] = []
    reasons: Counter[str] = Counter()
    for name in artifact.files():
        if name.startswith("rejects/"):
            for line in artifact.path(name).read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                reasons[row["code"]] += 1
                if len(listed) < MOST_REJECTS:
                    listed.append(Refusal(key=row["key"], code=row["code"], detail=row["detail"]))
    return listed, reasons


def _split(opened: Dataset | Tokens, wanted: str | None) -> str:
    """The split asked for; without one, samples that training has not seen, where there are any."""
    there = [name for name in ("held_out", "validation", "train", *opened.splits) if name in opened.splits and opened.samples(name)]
    if wanted is None and there:
        return there[0]
    if wanted not in there:
        raise Absent(f"there is no split {wanted!r} with samples; there are {', '.join(dict.fromkeys(there)) or 'none'}")
    return wanted


def _shown(data: Dataset, split: str, stream: str, number: int) -> SampleValue | None:
    value = data.value(split, stream, number)
    return None if value is None else shown_value(value, data.streams[stream])


def shown_value(value: Any, about: Any) -> SampleValue:
    """A value of a stream as a page shows it; large pictures are made small."""
    from worldloom.stages.card import wav
    from worldloom.stages.spectrogram import spectrogram

    if about.kind == "text":
        return SampleValue(kind="text", text=value if len(value) <= MOST_TEXT else value[:MOST_TEXT] + "…")
    if about.kind == "action":
        return SampleValue(kind="action", rows=tuple(tuple(row) for row in np.asarray(value, np.float64).tolist()))
    if about.kind == "audio":
        return SampleValue(
            kind="audio", sound=_url("audio/wav", wav(value, about.sample_rate)), picture=_picture(spectrogram(value), moving=None)
        )
    return SampleValue(kind=about.kind, picture=_picture(value, about.frame_rate if about.kind == "video" else None))


def _picture(pixels: Any, moving: float | None) -> str:
    """uint8 [H, W, 3], or [T, H, W, 3] at `moving` frames a second, as a PNG file."""
    from worldloom.stages.card import animated_png, png

    step = -(-max(pixels.shape[-3:-1]) // SHOWN_SIDE)
    small = pixels[..., ::step, ::step, :]
    return _url("image/png", png(small) if moving is None else animated_png(small, moving))


def _url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


@lru_cache(maxsize=64)
def _use(folder: Path, stream: str, split: str | None) -> CodeUse:
    from worldloom.stages.code_figures import use_of

    tokens = _opened(folder)
    assert isinstance(tokens, Tokens)
    if stream not in tokens.streams:
        raise Absent(f"there are no codes of {stream!r}; there are those of {', '.join(tokens.streams)}")
    name, about = _split(tokens, split), tokens.streams[stream]
    many = min(tokens.samples(name), MOST_COUNTED)
    codes = tokens.gather(name, stream, np.arange(many)).values
    grid = codes.reshape(-1, about.levels) if about.levels > 1 else codes
    counted = use_of([grid], about.codebook_size, about.levels).count_LK
    return CodeUse(stream=stream, split=name, samples=many, counts=tuple(tuple(level) for level in counted.tolist()))
