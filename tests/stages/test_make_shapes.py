from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from pydantic import ValidationError

from worldloom.stages import make_shapes, shapes, shapes_motion
from worldloom.stages.artifact import begin, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.make_shapes import STAGE, MakeShapes, frames_of
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, TextStream, VideoStream
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


CLIP = VideoStream(kind="video", size=24, frames=5, frame_rate=8.0)
PUSH = ActionStream(kind="action", steps=4, choices=5)
SOUND = AudioStream(kind="audio", sample_rate=8_000, seconds=0.625)


def test_what_moves_shows_one_thing_in_all_its_streams(tmp_path: Path) -> None:
    streams = {**SETTINGS.streams, "clip": CLIP, "push": PUSH, "sound": SOUND}
    settings = SETTINGS.model_copy(update={"streams": streams, "samples": 40, "moving": 0.5})
    moving = Dataset(execute(STAGE, "data", settings, {}, tmp_path / "data" / "f0", Worker()))
    there = 0
    for i in range(40):
        frame, clip, push, sound = (moving.value("train", name, i) for name in ("frame", "clip", "push", "sound"))
        assert frame is not None and (clip is None) == (push is None) == (sound is None)
        if clip is not None:
            there += 1
            assert np.array_equal(clip[0], frame)
            assert shapes_motion.read_pushes(clip) == tuple(shapes_motion.PUSHES[int(each)] for each in push[:, 0])
            seen = shapes.read_picture(frame)
            assert seen is not None and shapes_motion.read_sound(sound, 8_000) == (seen.shape,)
    assert 8 <= there <= 30
    assert (moving.artifact.folder / "pictures" / "moving-00.png").is_file() and (
        moving.artifact.folder / "sounds" / "sound-00.wav"
    ).is_file()


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({}, "at least 1 item"),
        ({"clip": VideoStream(kind="video", size=(16, 24), frames=5, frame_rate=8.0)}, "drawn on squares, not on 16 x 24"),
        ({"a": CLIP, "b": CLIP.model_copy(update={"frames": 6})}, "the same frames and frame_rate"),
        ({"clip": CLIP, "push": PUSH.model_copy(update={"steps": 5})}, "between 5 frames are 4 steps of one push, not 5 of 1"),
        ({"push": PUSH.model_copy(update={"choices": None})}, "choices must be at least that, got None"),
        ({"push": PUSH.model_copy(update={"choices": 3})}, "there are 5 pushes"),
        ({"clip": CLIP.model_copy(update={"frames": 1})}, "a motion has 2 frames or more, not 1; set frames higher"),
        (
            {"clip": CLIP, "sound": SOUND.model_copy(update={"seconds": 0.45})},
            r"motion lasts 0\.5 s, the sound 0\.45 s.* seconds to 0\.5 or more",
        ),
        ({"push": PUSH, "sound": SOUND.model_copy(update={"seconds": 0.45})}, r"motion lasts 0\.5 s, the sound 0\.45 s"),
        ({"sound": SOUND.model_copy(update={"seconds": 0.1})}, r"motion lasts 0\.125 s, the sound 0\.1 s"),
        ({"clip": CLIP, "sound": SOUND.model_copy(update={"sample_rate": 2_500})}, "needs a sample_rate of 3000 or more, got 2500"),
    ],
)
def test_streams_that_do_not_fit_together_are_refused(streams: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MakeShapes(run="make_shapes", streams=streams)


def test_a_sound_without_a_clip_holds_the_whole_motion() -> None:
    assert frames_of({"sound": SOUND.model_copy(update={"seconds": 0.875})}) == 8
    assert frames_of({"sound": SOUND, "clip": CLIP}) == 5 and frames_of({"push": PUSH, "sound": SOUND}) == 5 and frames_of({}) == 9
