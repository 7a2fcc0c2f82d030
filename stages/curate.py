"""Curates a dataset (DINOv2, arXiv:2304.07193, section 3): of pictures that are one it keeps one, and of the rest what is near a reference
and fits its caption.

Features choose what is compared, pixels decide. A duplicate goes where another picture of its group comes before it: those of held_out and
validation first, then those of train, each in the order of their keys; so no picture is measured on that training has seen. The other rules
take from the training split only. The rest is a dataset like any other, and removed/<split>/<shard>.jsonl says of every sample that went
why, and which one stayed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import DatasetRef, FeaturesRef, Settings, StageSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from worldloom.stages.artifact import Artifact
    from worldloom.stages.dataset import Dataset
    from worldloom.stages.duplicates import Chosen, Compared, Search
    from worldloom.stages.features import FeatureSet
    from worldloom.stages.nearest import Rows
    from worldloom.stages.worker import Worker

QUERIES = 256  # pictures of a task
RECALL_OF = 500  # pictures whose neighbours are searched for exactly, too
Cosine = Annotated[float, Field(ge=-1, le=1)]


class NearDuplicates(Settings):
    """Pictures that are one but for a crop, a mirroring, a little colour, or how they were compressed."""

    neighbours: PositiveInt = Field(default=16, description="nearest pictures that each is compared with")
    similarity: Cosine = Field(
        default=0.5,
        description="cosine of the features below which pictures are not compared; with verify: none, where it must be given, "
        "from which on they are one",
    )
    lookalikes: bool = Field(
        default=True,
        description="also compare with pictures that look like a crop when both are small: finds what the encoder does not see as one",
    )
    verify: Literal["pixels", "none"] = Field(
        default="pixels", description="pixels: compared after a search for the crop and the mirroring between them; none: features decide"
    )
    concordance: Annotated[float, Field(gt=0, le=1, description="of the pixels, from which on pictures are one; 1 for equal ones")] = 0.96
    smallest_crop: Annotated[float, Field(gt=0.2, le=1, description="smallest crop that is looked for, as a share of the side")] = 0.7

    @model_validator(mode="after")
    def _knows_when_pictures_are_one(self) -> Self:
        # The default is where comparing begins: of features alone it would take out most of a dataset.
        if self.verify == "none" and "similarity" not in self.model_fields_set:
            raise ValueError("verify is none, so similarity decides, and it is not given; set it to the cosine of pictures that are one")
        return self


class Near(Settings):
    """What is near a reference set: a picture stays where one of the two rules that are given keeps it."""

    features: FeaturesRef = Field(description="name of a stage that embeds the reference pictures, by the same encoder")
    neighbours: PositiveInt | None = Field(
        default=4, description="nearest pictures of each reference picture that stay; null: none for that reason"
    )
    similarity: Cosine | None = Field(default=None, description="cosine with a reference picture from which on a picture stays; null: none")

    @model_validator(mode="after")
    def _keeps_something(self) -> Self:
        if self.neighbours is None and self.similarity is None:
            raise ValueError("reference keeps nothing without neighbours and similarity; set one of them")
        return self


class Captions(Settings):
    """Pairs of picture and caption that go together, as a CoCa says; the features must be joint ones, compared with captions."""

    similarity: Cosine | None = Field(default=None, description="cosine of picture and caption from which on a pair stays; null: no bar")
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of the pairs that stays, the best; null: all"
    )

    @model_validator(mode="after")
    def _judges(self) -> Self:
        if self.similarity is None and self.share is None:
            raise ValueError("captions judges nothing without similarity and share; set one of them")
        return self


class ExactSearch(Settings):
    """Every picture against every other."""

    type: Literal["exact"] = "exact"


class CellSearch(Settings):
    """Cells around centres, of which the nearest are looked into (inverted file): for a million pictures and more."""

    type: Literal["cells"] = "cells"
    cells: Annotated[int, Field(ge=2, description="about the root of the number of pictures, or some times that")]
    probes: PositiveInt = Field(default=16, description="cells that are looked into")


class Curate(StageSettings):
    """One curation; what it judges by lies in the features."""

    run: Literal["curate"]
    data: DatasetRef
    features: FeaturesRef = Field(description="name of a stage that embeds this dataset")
    near: NearDuplicates | None = Field(NearDuplicates(), description="near duplicates; null: pictures of equal pixels only")
    reference: Near | None = Field(None, description="what training pictures must be near to; null: all may stay")
    captions: Captions | None = Field(None, description="which training pairs of picture and caption stay; null: all may")
    search: Annotated[ExactSearch | CellSearch, Field(discriminator="type")] = Field(
        ExactSearch(), description="how neighbours are found: exact, or cells"
    )
    shown: PositiveInt = Field(24, description="pairs of pictures on the card, of each reason")


def run(settings: Curate, inputs: Mapping[str, "Artifact"], out: Path, worker: "Worker") -> None:
    """Compares this worker's pictures with their neighbours: each task leaves the links that it found."""
    import numpy as np

    from worldloom.stages.commit import Commits
    from worldloom.stages.deterministic import deterministic
    from worldloom.stages.duplicates import Small, candidates, compare, lookalikes, together
    from worldloom.stages.seen import Seen

    if settings.near is None:
        return
    data, features, rows = opened(settings, inputs)
    commits, near = Commits.of(out), settings.near
    search, tasks, seen = searching(settings, rows, out), plan(rows), Seen(features, data)
    small = searching(settings, Small(features, rows.numbers), out, "small") if near.lookalikes and near.verify == "pixels" else None
    with deterministic(threads=1):
        for done, task in enumerate(worker.share(tasks)):
            worker.check()
            if commits.find(task) is None:
                start = int(task.rpartition("/")[2])
                stop = min(start + QUERIES, len(rows))
                links = candidates(rows, search, start, stop, near.neighbours, near.similarity)
                if near.verify == "pixels":
                    if small is not None:
                        links = together(links, lookalikes(rows, small, seen, start, stop, near.neighbours, near.smallest_crop))
                    links = compare(links, seen, near.concordance, near.smallest_crop)
                with commits.attempt(task) as attempt:
                    np.lib.format.write_array(attempt.create(f"{task}.npy"), links, version=(1, 0), allow_pickle=False)
                    attempt.commit((), (), {"links": len(links)})
            worker.report(min((done + 1) * QUERIES, len(rows)), len(rows), "pictures", {})


def finish(settings: Curate, inputs: Mapping[str, "Artifact"], out: Path) -> dict[str, Any]:
    """Decides, writes what stays, the ledger of what went, and the card."""
    from worldloom.stages.commit import Commits
    from worldloom.stages.curation_card import report_curation
    from worldloom.stages.dataset_writer import write_dataset_json
    from worldloom.stages.deterministic import deterministic
    from worldloom.stages.removal import reference_of, remove, write_kept
    from worldloom.stages.seen import Seen

    data, features, rows = opened(settings, inputs)
    seen, reference = Seen(features, data), reference_of(settings, inputs)
    with deterministic(threads=1):
        compared = read_links(settings, rows, Commits.of(out))
        removal = remove(settings, features, compared.links, reference)
        shards = write_kept(seen, removal, compared.links, reference, out)
        totals = Commits.of(out).finish(shards)
        left = {shard: totals.shards[shard].n_out for shard in shards}
        splits = {split: [(name, left[f"{split}/{name}"]) for name in data.shards(split)] for split in data.splits}
        if not sum(count for _, count in splits.get("train", [])):
            raise ValueError(f"nothing of the {data.samples('train')} training samples stays; loosen near, reference or captions")
        write_dataset_json(out, data.streams, splits, oracle=data.oracle)
        report_curation(settings, seen, reference, removal, compared, _recall(settings, rows, out), out)
    return {"samples": totals.n_out, **removal.counts}


def opened(settings: Curate, inputs: Mapping[str, "Artifact"]) -> tuple["Dataset", "FeatureSet", "Chosen"]:
    """The dataset, its features numbered in the order in which pictures stay, and the first picture of all that have equal pixels;
    ValueError, before anything is compared, where the inputs do not fit each other."""
    import numpy as np

    from worldloom.stages.dataset import Dataset
    from worldloom.stages.duplicates import Chosen, firsts
    from worldloom.stages.features import FeatureSet

    data, features = Dataset(inputs["data"]), FeatureSet(inputs["features"], in_order(Dataset(inputs["data"]).splits))
    if features.artifact.inputs["data"]["fingerprint"] != inputs["data"].fingerprint:
        raise ValueError(
            f"features: {settings.features} embeds {features.artifact.inputs['data']['stage']}, not {settings.data}; "
            f"name a stage that embeds {settings.data}"
        )
    pooled(settings.features, features)
    if settings.reference is not None:
        comparable(settings.reference.features, FeatureSet(inputs["reference.features"]), features)
    if settings.captions is not None and not features.scored:
        raise ValueError(f"captions: {settings.features} compared no captions; set its keep to joint and its captions to a stream of text")
    return data, features, Chosen(features, np.unique(firsts(features)))


def pooled(name: str, features: "FeatureSet") -> None:
    """ValueError where pictures cannot be compared by these features."""
    if features.tokens is not None:
        raise ValueError(f"{name} keeps {features.tokens} vectors of a picture, and pictures are compared by one; set its keep to pooled")


def comparable(name: str, reference: "FeatureSet", features: "FeatureSet") -> None:
    """ValueError where the reference is empty, or seen by another encoder."""
    pooled(name, reference)
    if not len(reference):
        raise ValueError(f"reference.features: {name} holds no picture, so nothing is near it; embed some, or leave reference out")
    theirs, ours = (each.artifact.inputs["encoder"] for each in (reference, features))
    if theirs["fingerprint"] != ours["fingerprint"]:
        raise ValueError(
            f"reference.features: {name} is seen by {theirs['stage']}, the dataset by {ours['stage']}; embed both by one encoder"
        )


def in_order(splits: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are measured on, then train: who comes first stays."""
    return tuple(sorted(splits, key=lambda split: (split == "train", split)))


def plan(rows: "Chosen") -> list[str]:
    """Tasks, each named by the first of its pictures."""
    return [f"links/{start:012d}" for start in range(0, len(rows), QUERIES)]


def searching(settings: Curate, rows: "Rows", out: Path, name: str = "features") -> "Search":
    """The search that the settings ask for."""
    from functools import partial

    from worldloom.stages.nearest import InvertedFile, exact, make_inverted_file, set_threads

    set_threads(1)
    if isinstance(settings.search, ExactSearch):
        return partial(exact, rows)
    folder = out / "staging" / f"cells-{name}"
    make_inverted_file(folder, rows, settings.search.cells)
    return InvertedFile(folder, settings.search.probes)


def read_links(settings: Curate, rows: "Chosen", commits: Any) -> "Compared":
    """What all tasks found."""
    import numpy as np

    from worldloom.stages.duplicates import gather

    def of_tasks() -> "Iterator[NDArray[np.void]]":
        for task in plan(rows) if settings.near is not None else ():
            commit = commits.find(task)
            if commit is None:
                raise ValueError(f"{task} was never committed; run again, it goes on where it stopped")
            yield np.load(commits.objects / commit.files[f"{task}.npy"].sha256, allow_pickle=False)

    return gather(of_tasks(), settings.near.concordance if settings.near is not None else 1.0, settings.shown)


def _recall(settings: Curate, rows: "Chosen", out: Path) -> float | None:
    """Share of the true neighbours of some pictures that the search finds; None where nobody searched."""
    import numpy as np

    from worldloom.stages.nearest import by_torch, recall
    from worldloom.stages.value_batches import spaced

    if settings.near is None or not len(rows):
        return None
    queries = np.concatenate([rows.rows(int(number), int(number) + 1) for number in spaced(len(rows), RECALL_OF)])
    k = min(settings.near.neighbours + 1, len(rows))
    return recall(searching(settings, rows, out)(queries, k), by_torch(rows, queries, k))


def parallelism(settings: Curate, inputs: Mapping[str, "Artifact"]) -> int:
    return len(plan(opened(settings, inputs)[2])) if settings.near is not None else 1


def estimate(settings: Curate, inputs: Mapping[str, Estimate]) -> Estimate:
    """As many as there are, at most."""
    return inputs["data"]


STAGE = StageKind(
    name="curate",
    settings=Curate,
    run=run,
    finish=finish,
    produces="dataset",
    version=2,
    placement="shards",
    parallelism=parallelism,
    estimate=estimate,
)
