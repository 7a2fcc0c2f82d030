"""What a curation takes out, why, and how the rest is written."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldloom.stages.artifact import Artifact
from worldloom.stages.commit import Commits
from worldloom.stages.curate import Captions, Curate, Near
from worldloom.stages.dataset import Dataset
from worldloom.stages.dataset_writer import RawShard
from worldloom.stages.disk import canonical_json
from worldloom.stages.duplicates import Chosen, firsts, group
from worldloom.stages.features import FeatureSet
from worldloom.stages.nearest import exact
from worldloom.stages.seen import Seen

ASKED_AT_ONCE = 16_384  # pictures whose nearest is looked for in one pass over the others
REASONS = ("stays", "exact_duplicate", "near_duplicate", "far_from_reference", "caption_does_not_fit")


class Removal(NamedTuple):
    """What becomes of every picture, by its number."""

    reason: NDArray[np.uint8]  # [N]: place in REASONS
    kept: NDArray[np.int64]  # [N]: of a duplicate the picture that stays for it, otherwise its own number
    link: NDArray[np.int64]  # [N]: of a near duplicate the link that holds it best, place in the links given; -1 otherwise
    nearest: NDArray[np.int64]  # [N]: number of the nearest reference picture, -1 where nobody looked
    cosine: NDArray[np.float32]  # [N]: with that picture
    score: NDArray[np.float32]  # [N]: cosine with its own caption, NaN where there is none or nobody looked

    @property
    def counts(self) -> dict[str, int]:
        """Pictures by reason."""
        found = Counter(self.reason.tolist())
        return {name: found[place] for place, name in enumerate(REASONS) if place}


def remove(settings: Curate, features: FeatureSet, links: NDArray[np.void], reference: Seen | None) -> Removal:
    """Decides; `links` are those of pictures that are one."""
    first, N = firsts(features), len(features)
    groups = group(first, links)
    removal = Removal(
        reason=np.zeros(N, np.uint8),
        kept=groups.kept,
        link=groups.linked[first],
        nearest=np.full(N, -1, np.int64),
        cosine=np.zeros(N, np.float32),
        score=np.full(N, np.nan, np.float32),
    )
    gone = groups.kept != np.arange(N)
    equal = first == first[groups.kept]
    removal.reason[gone & equal] = REASONS.index("exact_duplicate")
    removal.reason[gone & ~equal] = REASONS.index("near_duplicate")
    removal.link[~(gone & ~equal)] = -1
    if settings.reference is not None:
        assert reference is not None
        _keep_near(settings.reference, reference.features, features, removal)
    if settings.captions is not None:
        _keep_fitting(settings.captions, features, removal)
    return removal


def _keep_near(about: Near, reference: FeatureSet, features: FeatureSet, removal: Removal) -> None:
    """Takes out, in place, what is far from the reference."""
    asked = Chosen(features, _training(features, removal))
    near = np.zeros(len(asked), bool)
    for start in range(0, len(asked), ASKED_AT_ONCE):
        found = exact(reference, asked.rows(start, min(start + ASKED_AT_ONCE, len(asked))), 1)
        numbers = asked.numbers[start : start + ASKED_AT_ONCE]
        removal.nearest[numbers], removal.cosine[numbers] = found.numbers[:, 0], found.cosines[:, 0]
    if about.similarity is not None:
        near |= removal.cosine[asked.numbers] >= about.similarity
    if about.neighbours is not None:
        for start in range(0, len(reference), ASKED_AT_ONCE):
            chosen = exact(asked, reference.rows(start, min(start + ASKED_AT_ONCE, len(reference))), about.neighbours).numbers
            near[chosen[chosen >= 0]] = True
    removal.reason[asked.numbers[~near]] = REASONS.index("far_from_reference")


def _keep_fitting(about: Captions, features: FeatureSet, removal: Removal) -> None:
    """Takes out, in place, pairs whose caption does not fit. Pictures without a caption stay."""
    removal.score[:] = features.scores(0, len(features))
    numbers = _training(features, removal)
    numbers = numbers[~np.isnan(removal.score[numbers])]
    numbers = numbers[np.argsort(-removal.score[numbers], kind="stable")]
    fits = np.ones(len(numbers), bool)
    if about.share is not None:
        fits &= np.arange(len(numbers)) < about.share * len(numbers)
    if about.similarity is not None:
        fits &= removal.score[numbers] >= about.similarity
    removal.reason[numbers[~fits]] = REASONS.index("caption_does_not_fit")


def _training(features: FeatureSet, removal: Removal) -> NDArray[np.int64]:
    """Numbers of the training pictures that still stay."""
    train = [np.arange(part.first, part.first + part.rows) for part in features.parts if part.split == "train"]
    numbers = np.concatenate([np.zeros(0, np.int64), *train])
    staying: NDArray[np.int64] = numbers[removal.reason[numbers] == 0]
    return staying


def reference_of(settings: Curate, inputs: Mapping[str, Artifact]) -> Seen | None:
    """The reference pictures, where there are any."""
    if settings.reference is None:
        return None
    artifact = inputs["reference.features"]
    return Seen(FeatureSet(artifact), Dataset(artifact.input("data")))


def why(number: int, seen: Seen, removal: Removal, links: NDArray[np.void], reference: Seen | None) -> dict[str, Any]:
    """A line of the ledger: why a picture went, and which one stays for it, or is the nearest of the reference, as split/key."""
    about: dict[str, Any] = {"key": seen.key(number).partition("/")[2], "reason": REASONS[removal.reason[number]]}
    if about["reason"] == "caption_does_not_fit":
        return about | {"cosine": _rounded(removal.score[number])}
    if reference is not None and about["reason"] == "far_from_reference":
        return about | {"nearest": reference.key(int(removal.nearest[number])), "cosine": _rounded(removal.cosine[number])}
    about["kept"] = seen.key(int(removal.kept[number]))
    if (link := int(removal.link[number])) >= 0:
        row = links[link]
        about |= {"pair": [seen.key(int(row[end])) for end in ("a", "b")], "flipped": bool(row["flipped"])}
        about |= {name: _rounded(row[name]) for name in ("cosine", "concordance")} | {"box": [_rounded(edge) for edge in row["box"]]}
    return about


def write_kept(seen: Seen, removal: Removal, links: NDArray[np.void], reference: Seen | None, out: Path) -> list[str]:
    """Commits every shard with what stays of it and the ledger of what went; returns their names, split/shard."""
    commits, data, shards = Commits.of(out), seen.data, list[str]()
    for part in seen.features.parts:
        gone = part.first + np.flatnonzero(removal.reason[part.first : part.first + part.rows])
        samples = seen.features.samples(part.split, part.shard)[gone - part.first]
        shards.append(f"{part.split}/{part.shard}")
        if commits.find(shards[-1]) is not None:
            continue
        with commits.attempt(shards[-1]) as attempt:
            with RawShard(attempt, part.split, part.shard, data.streams) as raw:
                readers = {stream: data.reader(part.split, part.shard, stream) for stream in data.streams}
                for row in np.setdiff1d(np.arange(data.shard_samples(part.split, part.shard)), samples).tolist():
                    contents = {stream: content for stream, reader in readers.items() if (content := reader.content(row)) is not None}
                    raw.add(next(iter(readers.values())).key(row), {stream: bytes(content) for stream, content in contents.items()})
            if len(gone):
                ledger = attempt.create(f"removed/{shards[-1]}.jsonl")
                for number in gone.tolist():
                    ledger.write(canonical_json(why(number, seen, removal, links, reference)) + b"\n")
            attempt.commit(raw.keys, (), {**raw.counts, "removed": len(gone)})
    return shards


def _rounded(value: Any) -> float:
    return round(float(value), 4)
