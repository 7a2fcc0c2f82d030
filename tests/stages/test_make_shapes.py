from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from worldloom.stages import make_shapes, shapes
from worldloom.stages.artifact import begin, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.make_shapes import STAGE, MakeShapes
from worldloom.stages.settings import ImageStream, TextStream
from worldloom.stages.worker import Interrupted, Worker

SETTINGS = MakeShapes(
    run="make_shapes",
    streams={"caption": TextStream(kind="text"), "frame": ImageStream(kind="image", size=24)},
    samples=23,
    validation=5,
    held_out=7,
    seed=3,
    shard_size=10,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    yield Dataset(execute(STAGE, "data", SETTINGS, {}, tmp_path_factory.mktemp("artifacts") / "data" / "f0", Worker()))


def test_every_split_holds_what_was_asked(dataset: Dataset) -> None:
    assert [dataset.samples(split) for split in ("train", "validation", "held_out")] == [23, 5, 7]
    assert dataset.oracle == "shapes"


def test_pictures_and_captions_agree_and_combinations_are_those_of_the_split(dataset: Dataset) -> None:
    for split in dataset.splits:
        for i in range(dataset.samples(split)):
            seen = shapes.read_picture(dataset.value(split, "frame", i))
            assert seen is not None and seen == shapes.read_caption(dataset.value(split, "caption", i))
            assert shapes.is_held_out(seen) == (split == "held_out")


def test_captions_outside_training_are_in_wordings_that_training_never_sees(dataset: Dataset) -> None:
    for split in dataset.splits:
        wordings = shapes.KNOWN_WORDINGS if split == "train" else shapes.NEW_WORDINGS
        for caption in dataset.values(split, "caption"):
            said = shapes.read_caption(caption)
            assert said is not None
            assert caption in {wording.format(size=size, **said._asdict()) for wording in wordings for size in shapes.SIZES}


# webdataset leaves its file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_shards(dataset: Dataset) -> None:
    shard = dataset.artifact.path("data/train/shard-000002.tar")
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"train-{i:09d}" for i in (20, 21, 22)]
    assert {"caption.txt", "frame.png"} <= set(samples[0])


def test_the_same_bytes_come_from_any_number_of_workers_and_after_any_stop(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "data" / "f0"
    begin(out, STAGE, "data", SETTINGS, {}, "f0")
    for rank in (2, 0, 1):
        make_shapes.run(SETTINGS, {}, out, Worker(rank, 3))
    again = execute(STAGE, "data", SETTINGS, {}, out, Worker())
    assert again.manifest == dataset.artifact.manifest

    stopped = tmp_path / "data" / "f1"
    begin(stopped, STAGE, "data", SETTINGS, {}, "f1")
    asked: list[None] = []
    with pytest.raises(Interrupted):
        make_shapes.run(SETTINGS, {}, stopped, Worker(stopping=lambda: asked.append(None) or len(asked) > 2))
    assert not (stopped / "DONE.json").exists()
    assert execute(STAGE, "data", SETTINGS, {}, stopped, Worker()).manifest == dataset.artifact.manifest


def test_another_seed_draws_other_things(dataset: Dataset, tmp_path: Path) -> None:
    other = Dataset(execute(STAGE, "data", SETTINGS.model_copy(update={"seed": 4}), {}, tmp_path / "data" / "f2", Worker()))
    captions = [[made.value("train", "caption", i) for i in range(23)] for made in (dataset, other)]
    assert captions[0] != captions[1]
