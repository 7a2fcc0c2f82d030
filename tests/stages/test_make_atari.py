from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from worldloom.stages import make_atari
from worldloom.stages.artifact import begin, execute
from worldloom.stages.dataset import Dataset
from worldloom.stages.make_atari import STAGE, MakeAtari
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, TextStream, VideoStream
from worldloom.stages.worker import Interrupted, Worker

CLIP = VideoStream(kind="video", size=(32, 40), frames=3, frame_rate=15, clock="step")
MOVE = ActionStream(kind="action", steps=2, choices=3, names=("noop", "right", "left"), clock="step")
REWARD = ActionStream(kind="action", steps=3, role="reward", clock="step")
END = ActionStream(kind="action", steps=3, choices=2, role="end", clock="step")
SOUND = AudioStream(kind="audio", sample_rate=7_680, seconds=0.2, clock="step")
STREAMS = {
    "caption": TextStream(kind="text"),
    "first": ImageStream(kind="image", size=(32, 40)),
    "clip": CLIP,
    "move": MOVE,
    "reward": REWARD,
    "end": END,
    "sound": SOUND,
}
SETTINGS = MakeAtari(
    run="make_atari", streams=STREAMS, game="pong", samples=10, validation=3, episode=2, head_start=90, seed=3, shard_size=4
)


def made(folder: Path, settings: MakeAtari = SETTINGS) -> Dataset:
    return Dataset(execute(STAGE, "data", settings, {}, folder, Worker()))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return made(tmp_path_factory.mktemp("artifacts") / "data" / "f0")


def test_every_stream_shows_the_same_play(dataset: Dataset) -> None:
    assert [dataset.samples(split) for split in ("train", "validation")] == [10, 3] and dataset.oracle == "pong"
    for i in range(10):
        value = {name: dataset.value("train", name, i) for name in STREAMS}
        assert np.array_equal(value["clip"][0], value["first"]) and value["clip"].shape == (3, 32, 40, 3)
        assert value["move"].shape == (2, 1) and value["reward"].shape == value["end"].shape == (3, 1)
        assert value["sound"].shape == (1, 3 * 512) and " to " in value["caption"]
    played = [dataset.value("train", "move", i) for i in range(10)]
    assert {0.0, 1.0, 2.0} == {float(move) for moves in played for move in moves.ravel()}
    assert (dataset.artifact.folder / "pictures" / "play-00.png").is_file() and (
        dataset.artifact.folder / "sounds" / "play-00-sound.wav"
    ).is_file()


def test_the_same_bytes_come_from_any_number_of_workers_and_after_any_stop(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "data" / "f0"
    begin(out, STAGE, "data", SETTINGS, {}, "f0")
    for rank in (1, 0):
        make_atari.run(SETTINGS, {}, out, Worker(rank, 2))
    assert made(out).artifact.manifest == dataset.artifact.manifest

    stopped, asked = tmp_path / "data" / "f1", list[None]()
    begin(stopped, STAGE, "data", SETTINGS, {}, "f1")
    with pytest.raises(Interrupted):
        make_atari.run(SETTINGS, {}, stopped, Worker(stopping=lambda: asked.append(None) or len(asked) > 2))
    assert made(stopped).artifact.manifest == dataset.artifact.manifest


def test_episodes_differ_and_another_seed_plays_others(dataset: Dataset, tmp_path: Path) -> None:
    other = made(tmp_path / "data" / "f2", SETTINGS.model_copy(update={"seed": 4, "samples": 4, "validation": 0}))
    lasts = [dataset.value(split, "clip", i).tobytes() for split, i in (("train", 1), ("train", 3), ("train", 5), ("validation", 1))]
    assert len(set(lasts)) == 4 and other.value("train", "clip", 1).tobytes() != lasts[0]


def test_any_game_can_be_played(tmp_path: Path) -> None:
    streams = {"clip": CLIP.model_copy(update={"size": 48}), "act": ActionStream(kind="action", steps=3, choices=6)}
    settings = MakeAtari(
        run="make_atari", streams=streams, game="space_invaders", samples=2, validation=0, episode=1, shard_size=1, merge=2, head_start=9
    )
    played = made(tmp_path / "data" / "f3", settings)
    assert played.oracle is None and played.value("train", "clip", 1).std() > 5


def test_choices_that_are_not_the_games_are_refused(tmp_path: Path) -> None:
    wrong = SETTINGS.model_copy(update={"streams": {"clip": CLIP, "move": MOVE.model_copy(update={"names": None})}})
    with pytest.raises(ValueError, match=r"choices is 3, and pong has 6 actions, noop, fire, .*; set choices to that, or give names"):
        made(tmp_path / "data" / "f4", wrong)


def test_a_crop_that_leaves_the_screen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the screen of pong has 210 x 160 pixels, and 100 x 100 at 150, 0 do not lie in it"):
        made(tmp_path / "data" / "f5", SETTINGS.model_copy(update={"crop": (150, 0, 100, 100)}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"streams": {"move": MOVE}}, "no stream is of kind video"),
        ({"streams": {"a": CLIP, "b": CLIP.model_copy(update={"frames": 2})}}, "streams a, b show the same play"),
        ({"frame_skip": 2}, r"streams\.clip: with a frame_skip of 2 there are 30 frames a second, not 15; set frame_rate to 30"),
        ({"crop": (0, 0, 0, 9)}, "holds no pixel"),
        ({"crop": (0, 0, 30, 160)}, r"32 x 40 pixels are more than the 30 x 160 of the screen's part; set size lower"),
        ({"streams": {"clip": CLIP, "move": MOVE.model_copy(update={"steps": 4})}}, "3 steps of one number, or 2 between them, not 4 of 1"),
        (
            {"streams": {"clip": CLIP, "sound": SOUND.model_copy(update={"seconds": 0.3})}},
            r"3 steps last 0\.2 s, the sound 0\.3; on a clock",
        ),
        ({"streams": {"clip": CLIP, "move": ActionStream(kind="action", steps=2)}}, "actions are choices; set choices"),
        (
            {"streams": {"clip": CLIP, "move": ActionStream(kind="action", steps=2, choices=2, names=("noop", "jump"))}},
            "there is no action called 'jump'; there are noop, fire, up",
        ),
        ({"streams": {"clip": CLIP, "reward": REWARD.model_copy(update={"choices": 3})}}, "rewards are any numbers; leave choices out"),
        ({"game": "tetris"}, r"there are no words for what tetris's memory holds; known are breakout, pong; leave the text stream out"),
        ({"game": "tetris", "streams": {"clip": CLIP}, "policy": {"type": "follow"}}, "where the ball of tetris is, is not known"),
        ({"game": "breakout", "policy": {"type": "follow"}}, "following the ball of breakout takes fire; add it to the actions' names"),
        ({"shard_size": 5}, r"shard_size \(5\) must be a multiple of episode \(2\)"),
        (
            {"streams": {"clip": CLIP, "move": MOVE, "other": MOVE.model_copy(update={"names": ("noop", "up", "down")})}},
            "must have the same names",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MakeAtari.model_validate({"run": "make_atari", "game": "pong", "streams": STREAMS, "episode": 2, "shard_size": 4} | changed)


def test_an_oracle_reads_only_where_the_field_is_shown() -> None:
    assert SETTINGS.oracle == "pong" and SETTINGS.model_copy(update={"crop": (0, 0, 210, 160)}).oracle is None
    assert SETTINGS.model_copy(update={"crop": (34, 0, 160, 160)}).oracle == "pong"
    assert SETTINGS.model_copy(update={"game": "breakout"}).oracle is None
