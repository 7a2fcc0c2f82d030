"""Imports a folder of pictures, sounds, clips or actions with captions beside them; every file that is refused is listed with the reason.

Values are stored as training sees them: decoded once, here, under limits, to the stream's form (stages/stream_image.py and its like).
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from worldloom.stages.folder import Rule
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, ImageStream, StageSettings, Stream, TextStream

if TYPE_CHECKING:
    from worldloom.stages.artifact import Artifact
    from worldloom.stages.card import Item, Table
    from worldloom.stages.commit import Commits
    from worldloom.stages.folder import Inventory, Leader, Picture, Shard
    from worldloom.stages.rejects import InputRejected, Rejected
    from worldloom.stages.worker import Worker

CAPTION = "caption file"  # no name of a stream: it holds a space
REFUSED_IN_A_ROW = 100  # more than chance: the folder is not what it was taken for
SHOWN, LISTED = 12, 50  # pictures and refused files on the card


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


class ImportFolder(StageSettings):
    """Your own files. The first stream that is no text leads: each of its files is a sample, what other streams have for it lies beside it
    (`a.wav` or `a.depth.png` beside `a.png`, or `depth/a.png` beside `rgb/a.png`), and the text stream holds captions."""

    run: Literal["import_folder"]
    # Where the folder lies cannot change the output; what is in it is part of the fingerprint by its digest.
    path: Annotated[str, AfterValidator(_absolute), NOT_IN_OUTPUT, Field(description="folder with the files, below it too")]
    streams: dict[str, Stream] = Field(default={}, description="filled from the pipeline's own streams")
    caption: Rule = Field(
        default="auto",
        description="csv: captions.csv with the columns file and caption; text_file: x.txt beside x.png; parent_folder: the name of a "
        "folder above the picture; file_name; none; auto: the first of csv and text_file that is there, else the topmost folder's name",
    )
    parent: PositiveInt = Field(default=1, description="for parent_folder: 1 is the folder that the picture lies in, 2 the one above it")
    validation_share: Annotated[float, Field(ge=0, lt=1, description="share of the pictures that training never sees")] = 0.05
    held_out: str | None = Field(
        default=None, description="pattern of paths, as in a shell, that make a split of their own: */theo_*.wav for one speaker"
    )
    shard_size: PositiveInt = Field(default=512, description="pictures in a shard")
    max_reject_share: Annotated[float, Field(ge=0, le=1, description="share of pictures that may be refused before the stage fails")] = 0.1

    @model_validator(mode="after")
    def _something_leads_and_at_most_one_text(self) -> Self:
        kinds = [stream.kind for stream in self.streams.values()]
        if kinds.count("text") > 1 or kinds.count("text") == len(kinds):
            raise ValueError(
                f"import_folder fills streams of which one at least is no text and one at most is; streams has {', '.join(kinds) or 'none'}"
            )
        return self


class Source(NamedTuple):
    """Where a sample came from: one line of sources/<split>/<shard>.jsonl."""

    key: str
    file: str
    sha256: str
    caption_file: str | None
    caption_sha256: str | None
    beside: dict[str, tuple[str, str]]  # other stream -> its file and sha256


def run(settings: ImportFolder, inputs: Mapping[str, "Artifact"], out: Path, worker: "Worker") -> None:
    """Imports this worker's shards that are not committed yet."""
    from worldloom.stages.commit import Commits, TooManyRejects

    inventory, shards = _plan(settings)
    commits = Commits.of(out)
    done, total, refused_in_a_row = 0, sum(len(shard.pictures) for shard in shards), 0
    for shard in worker.share(shards):
        if commits.find(shard.task) is None:
            rejects, streak = import_shard(settings, inventory.root, shard, commits)
            refused_in_a_row = refused_in_a_row + streak if streak == len(shard.pictures) else streak
            if refused_in_a_row >= REFUSED_IN_A_ROW and settings.max_reject_share < 1:
                raise TooManyRejects(
                    f"{refused_in_a_row} files in a row were refused, the last is {rejects[-1].key}: {rejects[-1].code} "
                    f"({rejects[-1].detail}); is {settings.path} the right folder?"
                )
        done += len(shard.pictures)
        worker.report(done, total, "samples", {})
        worker.check()


def finish(settings: ImportFolder, inputs: Mapping[str, "Artifact"], out: Path) -> dict[str, Any]:
    """Names the shards and writes dataset.json, ignored.jsonl and the card; InputChanged if what was read is not what was planned."""
    from worldloom.stages import disk
    from worldloom.stages.artifact import InputChanged
    from worldloom.stages.card import Card, write_card
    from worldloom.stages.commit import Commits, TooManyRejects
    from worldloom.stages.dataset_writer import write_dataset_json
    from worldloom.stages.folder import combine

    inventory, shards = _plan(settings)
    planned = [shard.task for shard in shards]
    try:
        totals = Commits.of(out).finish(planned, settings.max_reject_share, planned_samples=len(inventory.pictures))
    except TooManyRejects:
        write_card(out, Card(title="Refused files", blocks=(_refused(shards, out),)))
        raise
    if not totals.n_out:
        raise ValueError(f"none of the {totals.n_in} files in {settings.path} could be read; see {out / 'rejects'}")
    planned_digest = json.loads((out / "stage.json").read_bytes())["outside"].get("folder")
    if planned_digest not in (None, combine(_digests_as_imported(inventory, shards, out))):
        Commits.of(out).forget(planned)  # else they would be found by whoever puts the folder back as it was
        raise InputChanged(f"{settings.path} changed while it was imported; run again, it is imported anew")
    if inventory.ignored:
        disk.write_file(
            out / "ignored.jsonl", b"".join(_line({"file": _shown(entry.file), "why": entry.why}) for entry in inventory.ignored)
        )
    splits = {
        split: [(shard.name, totals.shards[shard.task].n_out) for shard in shards if shard.split == split]
        for split in dict.fromkeys(shard.split for shard in shards)
    }
    write_dataset_json(out, settings.streams, splits)
    _write_card(settings, inventory, shards, out, totals.counts)
    return {"samples": totals.n_out, "rejected": totals.n_rejected, "ignored": len(inventory.ignored), **totals.counts}


def outside(settings: ImportFolder, digest: Callable[[Path], str]) -> dict[str, str]:
    """One digest of everything in the folder that is imported; ValueError if there is no picture in it."""
    from worldloom.stages.folder import combine, inputs_of, take_inventory

    inventory = take_inventory(Path(settings.path), settings.caption, settings.parent, leader_of(settings.streams))
    return {"folder": combine({file: digest(inventory.root / file) for file in inputs_of(inventory)})}


def import_shard(settings: ImportFolder, root: Path, shard: "Shard", commits: "Commits") -> tuple[list["Rejected"], int]:
    """Imports and commits one shard; returns what was refused, and how many of the last files in a row."""
    from worldloom.stages.dataset_writer import RawShard
    from worldloom.stages.rejects import InputRejected

    rejects: list[Rejected] = []
    sources: list[Source] = []
    streak = 0
    with commits.attempt(shard.task) as attempt:
        with RawShard(attempt, shard.split, shard.name, settings.streams) as raw:
            for picture in shard.pictures:
                content, source = _fetch(root, picture, leading(settings.streams)[1])
                sources.append(source)
                try:
                    if picture.refused:
                        raise InputRejected(*picture.refused)
                    raw.add(picture.key, _values(settings, root, picture, content))
                    streak = 0
                except InputRejected as error:
                    rejects.append(_ledgered(error, source))
                    streak += 1
        ledger = attempt.create(f"sources/{shard.task}.jsonl")
        for source in sources:
            ledger.write(_line(source._asdict()))
        attempt.commit(raw.keys, rejects, raw.counts)
    return rejects, streak


def leading(streams: Mapping[str, Stream]) -> tuple[str, Stream]:
    """The stream whose files are the samples: the first that is no text."""
    return next((name, stream) for name, stream in streams.items() if not isinstance(stream, TextStream))


def leader_of(streams: Mapping[str, Stream]) -> "Leader":
    """The same with the endings of files, and the streams that may lie beside."""
    from worldloom.stages.folder import Leader
    from worldloom.stages.streams import kind_of

    def endings(stream: Stream) -> tuple[str, ...]:
        return tuple(f".{extension}" for extension in kind_of(stream.kind).extensions)

    name, stream = leading(streams)
    others = tuple((other, endings(about)) for other, about in streams.items() if other != name and not isinstance(about, TextStream))
    return Leader(name, endings(stream), others, pictures=isinstance(stream, ImageStream))


def _fetch(root: Path, picture: "Picture", stream: Stream) -> tuple[bytes, Source]:
    """The file's bytes, one more than allowed at most, and the digests of all files of the sample as they were read."""
    from worldloom.stages.folder import MISSING, digest_of
    from worldloom.stages.streams import kind_of

    most = kind_of(stream.kind).most_bytes

    if picture.refused and picture.refused[0] == MISSING:  # a name out of captions.csv may lead anywhere: nothing is opened
        return b"", Source(picture.key, _shown(picture.file), "", None, None, {})
    try:
        with open(root / picture.file, "rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        content = b""
    whole = content and len(content) <= most
    sha256 = hashlib.sha256(content).hexdigest() if whole else digest_of(root, picture.file)
    caption = None if picture.caption_file is None else digest_of(root, picture.caption_file)
    beside = {name: (_shown(file), digest_of(root, file)) for name, file in picture.beside}
    named = picture.caption_file and _shown(picture.caption_file)
    return content, Source(picture.key, _shown(picture.file), sha256, named, caption, beside)


def _values(settings: ImportFolder, root: Path, picture: "Picture", content: bytes) -> dict[str, bytes]:
    """Stream -> what is stored; InputRejected if a file or the caption is no good."""
    from worldloom.stages import stream_text
    from worldloom.stages.rejects import InputRejected
    from worldloom.stages.streams import kind_of

    values: dict[str, bytes] = {}
    lead, beside = leading(settings.streams)[0], dict(picture.beside)
    for name, stream in settings.streams.items():
        kind = kind_of(stream.kind)
        if name == lead:
            values[name] = kind.encode(kind.decode(content, stream), stream)
        elif name in beside:
            with open(root / beside[name], "rb") as file, _named(name):
                values[name] = kind.encode(kind.decode(file.read(kind.most_bytes + 1), stream), stream)
        elif isinstance(stream, TextStream) and (picture.caption is not None or picture.caption_file is not None):
            caption = picture.caption
            if picture.caption_file is not None:
                with open(root / picture.caption_file, "rb") as file, _named(CAPTION):
                    caption = stream_text.decode(file.read(stream_text.MAX_BYTES + 1), stream)
            # White space is one space, and an editor's byte order mark is no caption.
            caption = " ".join((caption or "").removeprefix("\ufeff").split())
            if not caption:
                with _named(CAPTION if picture.caption_file is not None else None):
                    raise InputRejected("empty_input", "the caption is empty")
            values[name] = stream_text.encode(caption, stream)
    return values


@contextmanager
def _named(which: str | None) -> Iterator[None]:
    """Says in a refusal which file of the sample is to blame: that of a stream, CAPTION, or None for the leading one."""
    from worldloom.stages.rejects import InputRejected

    try:
        yield
    except InputRejected as error:
        error.which = which
        raise


def _ledgered(error: "InputRejected", source: Source) -> "Rejected":
    """The refusal under the name and digest of the file to blame; the detail says whose sample it takes along."""
    from worldloom.stages.rejects import Rejected

    if error.which is None:
        return Rejected(source.file, error.code, error.detail, source.sha256)
    file, sha256 = (source.caption_file, source.caption_sha256) if error.which == CAPTION else source.beside[error.which]
    assert file is not None and sha256 is not None
    return Rejected(file, error.code, f"{error.detail}; so the sample of {source.file} is refused", sha256)


def _plan(settings: ImportFolder) -> tuple["Inventory", list["Shard"]]:
    from worldloom.stages.folder import share_out, take_inventory

    inventory = take_inventory(Path(settings.path), settings.caption, settings.parent, leader_of(settings.streams))
    return inventory, share_out(inventory.pictures, settings.validation_share, settings.shard_size, settings.held_out)


def _digests_as_imported(inventory: "Inventory", shards: list["Shard"], out: Path) -> dict[str, str]:
    """File -> sha256 of what the shards were made of."""
    from worldloom.stages.folder import CAPTIONS, MISSING, digest_of

    digests = {CAPTIONS: digest_of(inventory.root, CAPTIONS)} if inventory.rule == "csv" else {}
    for shard in shards:
        for picture, line in zip(shard.pictures, _lines(out / f"sources/{shard.task}.jsonl"), strict=True):
            if picture.refused is None or picture.refused[0] != MISSING:
                digests[picture.file] = line["sha256"]
                digests |= {file: line["beside"][name][1] for name, file in picture.beside}
            if picture.caption_file is not None:
                digests[picture.caption_file] = line["caption_sha256"]
    return digests


def _write_card(settings: ImportFolder, inventory: "Inventory", shards: list["Shard"], out: Path, counts: Mapping[str, int]) -> None:
    from worldloom.stages.card import Block, Card, Gallery, Table, Text, write_card

    refused_by_split = Counter(shard.split for shard in shards for _ in _lines(out / f"rejects/{shard.task}.jsonl"))
    planned = Counter({shard.split: 0 for shard in shards})
    for shard in shards:
        planned[shard.split] += len(shard.pictures)
    samples = {split: planned[split] - refused_by_split[split] for split in planned}
    about = f"{sum(samples.values()):,} samples from a folder; captions by the rule {inventory.rule}; "
    about += f"{refused_by_split.total():,} refused, {len(inventory.ignored):,} other files ignored."
    blocks: list[Block] = [Text(text=about)]
    captioned = next((counts.get(f"{name}.samples", 0) for name, stream in settings.streams.items() if stream.kind == "text"), None)
    if captioned is not None and captioned < sum(samples.values()):
        blocks.append(Text(text=f"Samples without a caption: {sum(samples.values()) - captioned}."))
    rows = tuple((split, samples[split], refused_by_split[split]) for split in samples)
    blocks.append(Table(columns=("split", "samples", "refused"), rows=rows, title="Samples"))
    if refused_by_split:
        blocks.append(_refused(shards, out))
    if items := _examples(settings, shards, out):
        blocks.append(Gallery(items=items, title="As imported"))
    write_card(out, Card(title="Imported folder", blocks=tuple(blocks)))


def _refused(shards: list["Shard"], out: Path) -> "Table":
    """The files that were refused, and why."""
    from worldloom.stages.card import Table

    refused = [line for shard in shards for line in _lines(out / f"rejects/{shard.task}.jsonl")]
    listed = tuple((entry["key"], entry["code"], entry["detail"]) for entry in refused[:LISTED])
    title = "Refused" if len(refused) <= LISTED else f"Refused: the first {LISTED} of {len(refused)}, all are in rejects/"
    return Table(columns=("file", "code", "why"), rows=listed, title=title)


def _examples(settings: ImportFolder, shards: list["Shard"], out: Path) -> tuple["Item", ...]:
    """Some samples of the training split, evenly spaced, with their captions; none where nothing of them can be shown."""
    from worldloom.stages.card import Item
    from worldloom.stages.shards import IndexedShard
    from worldloom.stages.show import show
    from worldloom.stages.streams import kind_of

    def value(task: str, name: str, row: int) -> Any:
        content = IndexedShard(out / f"data/{task}.tar", out / f"data/{task}.{name}.idx.npy").content(row)
        return None if content is None else kind_of(settings.streams[name].kind).decode(content, settings.streams[name])

    lead, stream = leading(settings.streams)
    text = next((name for name, about in settings.streams.items() if isinstance(about, TextStream)), None)
    rows = Counter({shard.task: len(shard.pictures) - len(_lines(out / f"rejects/{shard.task}.jsonl")) for shard in shards})
    places = [(shard.task, row) for shard in shards if shard.split == "train" for row in range(rows[shard.task])]
    items: list[Item] = []
    for number, (task, row) in enumerate(places[:: max(1, len(places) // SHOWN)][:SHOWN]):
        shown = show(out, f"imported-{number:02d}", value(task, lead, row), stream)
        if shown is not None:
            caption = (value(task, text, row) or "") if text is not None else ""
            items.append(Item(file=shown.file, sound=shown.sound, caption=caption))
    return tuple(items)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON-lines file, none where there is no such file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _line(entry: dict[str, Any]) -> bytes:
    from worldloom.stages.disk import canonical_json

    return canonical_json(entry) + b"\n"


def _shown(file: str) -> str:
    """A path that JSON can hold; names in a folder need not be UTF-8."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def parallelism(settings: ImportFolder, inputs: Mapping[str, "Artifact"]) -> int:
    return len(_plan(settings)[1])


STAGE = StageKind(
    name="import_folder",
    settings=ImportFolder,
    run=run,
    finish=finish,
    produces="dataset",
    version=2,
    placement="shards",
    parallelism=parallelism,
    outside=outside,
)
