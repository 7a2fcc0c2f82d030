"""Encodes a dataset: raw shards in, token shards out, one task per input shard.

A batch never spans two shards, its rows follow from the shard alone, and the last one is filled up to full size, so that a
sample's codes depend neither on the number of workers nor on where a run was stopped (see `deterministic`).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from worldloom.stages.estimate import Estimate, member_bytes
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, Settings, StageSettings, StreamName, TokenizerRef

if TYPE_CHECKING:
    from worldloom.stages.artifact import Artifact
    from worldloom.stages.commit import Commits, Totals
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.rejects import Rejected
    from worldloom.stages.worker import Worker
    from worldloom.tokenizers.tokenizer import Tokenizer


Share = Annotated[float, Field(gt=0, le=1)]


class Crops(Settings):
    """Crops of the training split as samples of their own, behind the whole ones. Streams without crops repeat their codes."""

    streams: tuple[Annotated[str, StreamName(("image", "video"))], ...] = Field(
        min_length=1, description="streams that show the same scene: a sample's crop is the same part of each"
    )
    count: PositiveInt = Field(description="crops of every sample")
    scale: tuple[Share, Share] = Field(default=(0.5, 1.0), description="smallest and largest share of the picture's area")
    flip: bool = Field(default=False, description="half of the crops are turned left to right; captions and actions are not")
    seed: NonNegativeInt = Field(default=0, description="of the boxes, with the sample's key and the number of the crop")

    @model_validator(mode="after")
    def _scale_rises(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale goes from the smallest to the largest share, got {list(self.scale)}; turn it round")
        return self


class EncodeDataset(StageSettings):
    """Samples to codes, for every stream that has a tokenizer here."""

    run: Literal["encode_dataset"]
    data: DatasetRef
    tokenizers: Annotated[
        dict[Annotated[str, StreamName()], TokenizerRef], Field(min_length=1, description="stream -> the stage that trains its tokenizer")
    ]
    crops: Crops | None = Field(default=None, description="encode crops of pictures and clips, too; null: whole ones only")
    batch_size: PositiveInt = Field(16, description="samples per call of a tokenizer; beyond 16 pictures a CPU's cache overflows")
    max_reject_share: Annotated[float, Field(ge=0, le=1, description="share of samples that may be refused before the stage fails")] = 0.01

    @model_validator(mode="after")
    def _crops_what_it_encodes(self) -> Self:
        without = sorted(set(self.crops.streams) - self.tokenizers.keys()) if self.crops else []
        if without:
            raise ValueError(f"crops.streams: {', '.join(without)} has no tokenizer here; name streams of tokenizers")
        return self


class Task(NamedTuple):
    """One token shard to make."""

    shard: str  # its name, "train/shard-000003"
    source: str  # the raw shard
    crop: int | None  # number of the crop that is taken of every sample; None: whole


class Batch(NamedTuple):
    """Consecutive samples of one shard, decoded."""

    shard: str
    keys: list[str]
    values: dict[str, list[Any]]  # stream -> a value per key, None where the sample lacks the stream
    rejects: list["Rejected"]
    last: bool  # of its shard


def run(settings: EncodeDataset, inputs: Mapping[str, "Artifact"], out: Path, worker: "Worker") -> None:
    """Encodes this worker's shards that are not committed yet."""
    from worldloom.stages.ahead import Behind, ahead
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.deterministic import deterministic

    data = Dataset(inputs["data"])
    commits = Commits.of(out)
    tasks = plan(settings, data)
    if all(commits.find(task.shard) is not None for task in tasks):
        return
    tokenizers = load_tokenizers(settings, inputs, data)
    done, total = 0, sum(_samples(data, task.source) for task in tasks)

    def reading() -> Iterator[Callable[[], Batch]]:
        nonlocal done
        for task in worker.share(tasks):  # taken one by one, while the one before is encoded: a fast worker gets more of them
            if commits.find(task.shard) is None:
                yield from _reading(data, task, settings)
            else:
                done += _samples(data, task.source)
                worker.report(done, total, "samples", {})

    with deterministic(threads=1), closing(ahead(reading())) as batches, Behind() as behind:
        for first in batches:
            with ShardInProgress(first.shard, commits, tokenizers) as progress:
                for batch in chain([first], () if first.last else batches):
                    codes = {stream: encode_batch(known, batch.values[stream]) for stream, known in tokenizers.items()}
                    behind.do(partial(progress.add, batch, codes))
                    done += len(batch.keys) + len(batch.rejects)
                    worker.report(done, total, "samples", {})
                    if batch.last:
                        break
                    worker.check()
                behind.do(progress.commit)
            worker.check()


def finish(settings: EncodeDataset, inputs: Mapping[str, "Artifact"], out: Path) -> dict[str, Any]:
    """Names the shards, writes tokens/dataset.json and the card."""
    from worldloom.stages import disk
    from worldloom.stages.card import Card, Table, Text, write_card
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset import Dataset

    data = Dataset(inputs["data"])
    tasks = plan(settings, data)
    samples = sum(_samples(data, task.source) for task in tasks)
    totals = Commits.of(out).finish([task.shard for task in tasks], settings.max_reject_share, planned_samples=samples)
    about = _describe(load_tokenizers(settings, inputs, data), data, tasks, totals, out)
    disk.write_file(out / "tokens" / "dataset.json", disk.canonical_json(about))
    rows = tuple(
        (split, name, shape["samples"], shape["streams"][name]["samples"], shape["streams"][name]["codes"])
        for split, shape in about["splits"].items()
        for name in about["streams"]
    )
    limits = tuple((name, about["codebook_size"], about["max_length"]) for name, about in about["streams"].items())
    note = f"{totals.n_out} of {totals.n_in} samples encoded, {totals.n_rejected} refused."
    blocks = (
        Text(text=note),
        Table(columns=("split", "stream", "samples", "with the stream", "codes"), rows=rows),
        Table(columns=("stream", "codebook", "longest sample"), rows=limits),
    )
    write_card(out, Card(title="Encoding", blocks=blocks))
    return {"samples": totals.n_out, "rejected": totals.n_rejected, **totals.counts}


class ShardInProgress:
    """The token shards made of one raw shard; after an error they are given up."""

    def __init__(self, shard: str, commits: "Commits", tokenizers: Mapping[str, "Tokenizer"]) -> None:
        from worldloom.stages.dataset_writer import TokenShard

        split, name = shard.split("/")
        self._open = ExitStack()
        self._attempt = self._open.enter_context(commits.attempt(shard))
        self._writers = {
            stream: TokenShard(self._attempt, split, stream, name, tokenizer.codebook_size) for stream, tokenizer in tokenizers.items()
        }
        self._keys: list[str] = []
        self._rejects: list[Rejected] = []

    def add(self, batch: Batch, codes: Mapping[str, list[Any]]) -> None:
        """Writes a batch's codes, stream -> those of each key."""
        with self:
            for stream, writer in self._writers.items():
                for key, found in zip(batch.keys, codes[stream], strict=True):
                    writer.add(key, found)
            self._keys += batch.keys
            self._rejects += batch.rejects

    def commit(self) -> None:
        """Ends the shards and makes them count."""
        with self, self._open:
            counts: dict[str, int] = {}
            for stream, writer in self._writers.items():
                writer.close()
                counts |= {f"{stream}.samples": writer.samples, f"{stream}.codes": writer.codes}
            self._attempt.commit(self._keys, self._rejects, counts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            for writer in self._writers.values():
                writer.abandon()
            self._open.__exit__(kind, error, trace)


def encode_batch(tokenizer: "Tokenizer", values: Sequence[Any]) -> list[Any]:
    """The codes of each value, None for None; tokenizers see to it that a value's codes do not depend on the others'."""
    from worldloom.stages.streams import kind_of

    there = [value for value in values if value is not None]
    if not there:
        return [None] * len(values)
    codes = iter(tokenizer.encode(kind_of(tokenizer.kind).batch(there)))
    return [None if value is None else next(codes) for value in values]


def load_tokenizers(settings: EncodeDataset, inputs: Mapping[str, "Artifact"], data: "Dataset") -> dict[str, "Tokenizer"]:
    """Stream -> its tokenizer, in the order of the names; ValueError where one does not serve its stream, or does not fit its clock."""
    from worldloom.stages.open_tokenizer import open_tokenizer
    from worldloom.stages.preprocess import serving

    tokenizers: dict[str, Tokenizer] = {}
    for stream in sorted(settings.tokenizers):
        if stream not in data.streams:
            raise ValueError(f"tokenizers.{stream}: {settings.data} has no stream {stream!r}; it has {', '.join(sorted(data.streams))}")
        loaded = open_tokenizer(inputs[f"tokenizers.{stream}"].folder / "tokenizer")
        tokenizer = serving(loaded, data.streams[stream])
        if tokenizer is None:
            raise ValueError(
                f"tokenizers.{stream}: {settings.tokenizers[stream]} encodes {loaded.kind}, the stream is {data.streams[stream].kind}"
            )
        _check_rate(stream, tokenizer, data.streams[stream])
        tokenizers[stream] = tokenizer
    _clock(tokenizers, data)
    return tokenizers


def _check_rate(stream: str, tokenizer: "Tokenizer", about: Any) -> None:
    """ValueError where sounds or clips are of another rate: their shapes may well be equal."""
    for name, said in (("sample_rate", "hears {} samples a second"), ("frame_rate", "sees {} frames a second")):
        learnt, given = getattr(tokenizer, name, None), getattr(about, name, None)
        if learnt != given:
            raise ValueError(
                f"tokenizers.{stream}: the tokenizer {said.format(f'{learnt:g}')}, the stream has {given:g}; "
                f"set {name} of the stream to {learnt:g}, or choose another tokenizer"
            )


def _clock(tokenizers: Mapping[str, "Tokenizer"], data: "Dataset") -> tuple[dict[str, int], dict[str, Any] | None]:
    """Steps of every stream on the clock, and what dataset.json says of it."""
    from math import prod

    from worldloom.stages.clock import clock_of, steps_of

    clock = clock_of({name: data.streams[name] for name in tokenizers})
    if clock is None:
        return {}, None
    steps = {}
    for name in clock.names:
        shape = tokenizers[name].shape
        assert shape is not None, "values of these kinds have one form"
        if getattr(getattr(tokenizers[name], "settings", None), "time_stride", None) is not None:
            raise ValueError(f"{name} is on the clock {clock.name}, so its frames are coded one by one; leave out time_stride")
        steps[name] = steps_of(clock, name, data.streams[name], prod(shape), shape[0])
    return steps, {"name": clock.name, "streams": list(clock.names), "given": list(clock.given)}


def plan(settings: EncodeDataset, data: "Dataset") -> list[Task]:
    """Every raw shard as it is, under its own name, and behind those of the training split its crops, numbered on."""
    tasks = [Task(f"{split}/{shard}", f"{split}/{shard}", None) for split in data.splits for shard in data.shards(split)]
    if settings.crops is None or not data.samples("train"):
        return tasks
    sources = [f"train/{shard}" for shard in data.shards("train")]
    first = 1 + max(int(shard.rpartition("-")[2]) for shard in sources)
    crops = [(crop, source) for crop in range(settings.crops.count) for source in sources]
    return tasks + [Task(f"train/shard-{first + number:06d}", source, crop) for number, (crop, source) in enumerate(crops)]


def _reading(data: "Dataset", task: Task, settings: EncodeDataset) -> Iterator[Callable[[], Batch]]:
    samples = _samples(data, task.source)
    for first in range(0, max(samples, 1), settings.batch_size):
        rows = range(first, min(first + settings.batch_size, samples))
        yield partial(_read, data, task, rows, settings, first + settings.batch_size >= samples)


def _read(data: "Dataset", task: Task, rows: range, settings: EncodeDataset, last: bool) -> Batch:
    from worldloom.stages.crops import crop_key
    from worldloom.stages.rejects import InputRejected, Rejected
    from worldloom.stages.streams import kind_of

    split, name = task.source.split("/")
    readers = {stream: data.reader(split, name, stream) for stream in sorted(settings.tokenizers)}
    batch = Batch(task.shard, [], {stream: [] for stream in readers}, [], last)
    for row in rows:
        values: dict[str, Any] = {}
        key = next(iter(readers.values())).key(row)
        content = None
        try:
            for stream, reader in readers.items():
                content = reader.content(row)
                about = data.streams[stream]
                values[stream] = None if content is None else kind_of(about.kind).decode(content, about)
            if task.crop is not None:
                key, values = crop_key(key, task.crop), _cropped(key, values, task.crop, settings, data)
        except InputRejected as error:
            batch.rejects.append(Rejected(key, error.code, error.detail, hashlib.sha256(content or b"").hexdigest()))
            continue
        batch.keys.append(key)
        for stream, value in values.items():
            batch.values[stream].append(value)
    return batch


def _cropped(key: str, values: dict[str, Any], number: int, settings: EncodeDataset, data: "Dataset") -> dict[str, Any]:
    from worldloom.stages.crops import cropped, draw_crop
    from worldloom.stages.settings import ImageStream, VideoStream

    about = settings.crops
    assert about is not None
    shown = {name: stream for name in about.streams if isinstance(stream := data.streams[name], ImageStream | VideoStream)}
    return cropped(values, draw_crop(about.seed, key, number, about.scale, about.flip), shown)


def _samples(data: "Dataset", shard: str) -> int:
    split, name = shard.split("/")
    return data.shard_samples(split, name)


def _describe(tokenizers: Mapping[str, "Tokenizer"], data: "Dataset", tasks: Sequence[Task], totals: "Totals", out: Path) -> dict[str, Any]:
    """tokens/dataset.json."""
    import numpy as np

    from worldloom.stages.dataset import FORMAT
    from worldloom.stages.dataset_writer import code_type

    longest = dict.fromkeys(tokenizers, 0)
    splits: dict[str, Any] = {}
    for split in data.splits:
        shards: list[dict[str, Any]] = []
        for name in [task.shard.split("/")[1] for task in tasks if task.shard.startswith(f"{split}/")]:
            commit = totals.shards[f"{split}/{name}"]
            streams: dict[str, Any] = {}
            for stream in tokenizers:
                place = f"tokens/{split}/{stream}/{name}"
                lengths = np.load(out / f"{place}.idx.npy", allow_pickle=False)["length"]
                longest[stream] = max(longest[stream], int(lengths.max(initial=0)))
                tar = commit.files[f"{place}.tar"]
                known = {"samples": commit.counts[f"{stream}.samples"], "codes": commit.counts[f"{stream}.codes"]}
                streams[stream] = {**known, "bytes": tar.bytes, "sha256": tar.sha256}
            shards.append({"name": name, "samples": commit.n_out, "streams": streams})
        together = {
            stream: {what: sum(shard["streams"][stream][what] for shard in shards) for what in ("samples", "codes")}
            for stream in tokenizers
        }
        splits[split] = {"shards": shards, "samples": sum(shard["samples"] for shard in shards), "streams": together}
    steps, clock = _clock(tokenizers, data)
    described = {
        stream: {
            "kind": tokenizer.kind,
            "codebook_size": tokenizer.codebook_size,
            "levels": tokenizer.levels,
            "shape": None if tokenizer.shape is None else list(tokenizer.shape),
            "dtype": code_type(tokenizer.codebook_size),
            "tokenizer": tokenizer.fingerprint,
            "max_length": longest[stream],
            **({"steps": steps[stream]} if stream in steps else {}),
        }
        for stream, tokenizer in tokenizers.items()
    }
    return {"format": FORMAT, "streams": described, "splits": splits, **({} if clock is None else {"clock": clock})}


def parallelism(settings: EncodeDataset, inputs: Mapping[str, "Artifact"]) -> int:
    from worldloom.stages.dataset import Dataset

    return len(plan(settings, Dataset(inputs["data"])))


def estimate(settings: EncodeDataset, inputs: Mapping[str, Estimate]) -> Estimate:
    """The codes of streams whose tokenizer has a fixed number of them; texts come on top. ValueError where they do not fit the clock."""
    from worldloom.stages.clock import clock_of, steps_of

    streams = {name: stream for name, stream in (inputs["data"].streams or {}).items() if name in settings.tokenizers}
    clock = clock_of(streams)
    for name in clock.names if clock is not None else ():
        codes = inputs[f"tokenizers.{name}"].codes
        if clock is not None and codes is not None:
            steps_of(clock, name, streams[name], codes)
    samples = inputs["data"].samples
    each = [inputs[f"tokenizers.{stream}"].codes for stream in settings.tokenizers]
    if samples is None:
        return Estimate()
    samples *= 1 + (settings.crops.count if settings.crops else 0)  # nearly all samples are of the training split
    sizes = [member_bytes(128 + 2 * (codes or 30)) + 64 for codes in each]  # .npy header and codes, and a row of the index
    return Estimate(samples, codes=samples * sum(codes or 0 for codes in each) or None, bytes=samples * sum(sizes))


STAGE = StageKind(
    name="encode_dataset",
    settings=EncodeDataset,
    run=run,
    finish=finish,
    produces="tokens",
    version=2,
    placement="shards",
    parallelism=parallelism,
    estimate=estimate,
)
