"""Datasets that a stage makes up by itself: how many samples there are follows from the settings, and number i of a split from its seed.

Shards are written one by one, each once: whoever is stopped goes on behind the last one, and any number of workers leaves the same bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from worldloom.stages.settings import AudioStream, ImageStream, Stream, TextStream, VideoStream
from worldloom.stages.worker import Worker

if TYPE_CHECKING:
    from worldloom.stages.commit import Totals


class Shard(NamedTuple):
    """Samples `start` .. `stop` of a split."""

    split: str
    name: str
    start: int
    stop: int

    def key(self, i: int) -> str:
        """Of sample i of the split."""
        return f"{self.split}-{i:09d}"


Values = Callable[[Shard], Iterator[Mapping[str, Any]]]  # of a shard's samples in order, by stream, without those that a sample lacks


def plan_shards(counts: Mapping[str, int], shard_size: int) -> tuple[Shard, ...]:
    """All shards of splits of so many samples, in order."""
    return tuple(
        Shard(split, f"shard-{start // shard_size:06d}", start, min(start + shard_size, count))
        for split, count in counts.items()
        for start in range(0, count, shard_size)
    )


def write_shards(shards: Sequence[Shard], streams: Mapping[str, Stream], values: Values, out: Path, worker: Worker) -> None:
    """Writes this worker's shards that are not there yet."""
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset_writer import RawShard
    from worldloom.stages.streams import kind_of

    commits = Commits.of(out)
    for number, shard in enumerate(worker.share(shards)):
        worker.check()
        name = f"{shard.split}/{shard.name}"
        if commits.find(name) is None:
            with commits.attempt(name) as attempt:
                with RawShard(attempt, shard.split, shard.name, streams) as raw:
                    for i, found in enumerate(values(shard), start=shard.start):
                        raw.add(
                            shard.key(i), {name: kind_of(streams[name].kind).encode(value, streams[name]) for name, value in found.items()}
                        )
                attempt.commit(raw.keys, (), raw.counts)
        worker.report(number + 1, len(shards), "shards", {})


def finish_shards(shards: Sequence[Shard], streams: Mapping[str, Stream], out: Path, oracle: str | None) -> "Totals":
    """Gives the shards their names and describes the dataset."""
    from worldloom.stages.commit import Commits
    from worldloom.stages.dataset_writer import write_dataset_json

    totals = Commits.of(out).finish([f"{shard.split}/{shard.name}" for shard in shards])
    splits = {shard.split: [(other.name, other.stop - other.start) for other in shards if other.split == shard.split] for shard in shards}
    write_dataset_json(out, streams, splits, oracle)
    return totals


def content_bytes(stream: Stream, words: int) -> int:
    """Bytes of one content, roughly; `words` are a text's. Drawn pictures compress to about a quarter of a byte a pixel."""
    if isinstance(stream, TextStream):
        return words
    if isinstance(stream, ImageStream):
        return 150 + stream.height * stream.width // 4
    if isinstance(stream, VideoStream):
        return 128 + stream.frames * stream.height * stream.width * 3
    if isinstance(stream, AudioStream):
        return 44 + 2 * stream.channels * stream.samples
    return 128 + 4 * stream.steps * stream.dimensions
