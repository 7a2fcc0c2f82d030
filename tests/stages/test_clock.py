"""Which streams go together on a clock, and how many steps each has."""

from pathlib import Path

import pytest

from worldloom.pipeline.config import parse_pipeline
from worldloom.pipeline.problems import ConfigError
from worldloom.stages.clock import clock_of, steps_of
from worldloom.stages.settings import ActionStream, AudioStream, ImageStream, VideoStream

ROOT = Path(__file__).parents[2]
CLIP = VideoStream(kind="video", size=16, frames=5, frame_rate=8.0, clock="step")
PUSH = ActionStream(kind="action", steps=4, choices=5, clock="step")
SOUND = AudioStream(kind="audio", sample_rate=4000, seconds=0.625, clock="step")


def test_a_step_holds_frames_then_actions_then_what_comes_of_them():
    streams = {
        "end": ActionStream(kind="action", steps=5, clock="step", role="end"),
        "noise": SOUND,
        "gain": ActionStream(kind="action", steps=4, clock="step", role="reward"),
        "arm": PUSH,
        "view": CLIP,
        "still": ImageStream(kind="image", size=16),
        "side": CLIP,
    }
    assert clock_of(streams) == ("step", 5, ("side", "view", "arm", "noise", "gain", "end"), ("arm",))
    assert clock_of({"still": streams["still"]}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": {"clock": "frame"}}, "streams are on the clocks frame, step, and a dataset has one"),
        ({"clip": {"frames": 6}}, "the clock step has 6 steps, or 5 between them, and push has 4"),
        ({"push": {"steps": 6}}, "the clock step has 6 steps, and clip has 5"),
        ({"clip": {"clock": None}, "push": {"clock": None}}, "the clock step has only sounds"),
    ],
)
def test_streams_that_do_not_go_together_are_refused(changes, message):
    streams = {"clip": CLIP, "push": PUSH, "sound": SOUND}
    with pytest.raises(ValueError, match=message):
        clock_of({name: stream.model_copy(update=changes.get(name, {})) for name, stream in streams.items()})


def test_codes_are_divided_over_the_steps_or_the_way_out_is_said():
    clock = clock_of({"clip": CLIP, "push": PUSH, "sound": SOUND})
    assert [steps_of(clock, *each) for each in (("clip", CLIP, 45, 5), ("push", PUSH, 4, 4), ("sound", SOUND, 20, 10))] == [5, 4, 5]
    with pytest.raises(
        ValueError, match="sound is on the clock step of 5 steps, and its tokenizer makes 12 rows of codes; choose its length"
    ):
        steps_of(clock, "sound", SOUND, 24, 12)
    with pytest.raises(ValueError, match="its tokenizer makes 2 of 5 frames; a clip on a clock needs a tokenizer without time_stride"):
        steps_of(clock, "clip", CLIP, 18, 2)


def test_a_pipeline_whose_sound_does_not_divide_is_refused_before_anything_runs():
    text = (ROOT / "examples" / "tiny.yaml").read_text(encoding="utf-8")
    overrides = ["streams.clip.clock=step", "streams.push.clock=step", "streams.sound.clock=step", "sound_codes.tokenizer.downsample=256"]
    assert parse_pipeline(text, overrides=overrides).stages  # 10 frames of two codes, over 5 steps
    with pytest.raises(ConfigError, match=r"tokens: sound is on the clock step of 5 steps, and its tokenizer makes 42 codes"):
        parse_pipeline(text, overrides=[*overrides, "streams.sound.seconds=1.3"])
