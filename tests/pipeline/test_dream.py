from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from worldloom.pipeline import dream
from worldloom.pipeline.cli import main
from worldloom.pipeline.dream import dream_command
from worldloom.stages import evaluation
from worldloom.stages.settings import ActionStream


def frames_of(path):
    with Image.open(path) as gif:
        found = []
        for number in range(gif.n_frames):
            gif.seek(number)
            found.append(np.asarray(gif.convert("RGB")))
        return found


def test_a_gif_shows_how_it_went_on_beside_the_dream(clocked_root, tmp_path):
    made = dream_command(clocked_root, tmp_path / "new" / "dream.gif", seed=1)
    assert made.frames == 5 and made.truth and made.split == "held_out" and made.sample.startswith("held_out-")
    frames = frames_of(made.file)
    assert frames[0].shape == (192, 2 * 192 + 6, 3) and len(frames) > 1
    left, right = frames[0][:, :192], frames[0][:, 198:]
    assert np.abs(left.astype(int) - right).max() < 40  # it begins with the same frame
    again = dream_command(clocked_root, tmp_path / "again.gif", seed=1)
    assert again.file.read_bytes() == made.file.read_bytes()


def test_a_dream_behind_two_frames_begins_with_both_and_ends_where_the_sample_does(clocked_root, tmp_path):
    made = dream_command(clocked_root, tmp_path / "dream.gif", seed=1, given=2)
    assert made.frames == 5
    frames = frames_of(made.file)
    for frame in frames[:2]:
        assert np.abs(frame[:, :192].astype(int) - frame[:, 198:]).max() < 40
    assert frames_of(dream_command(clocked_root, tmp_path / "one.gif", seed=1).file)[1].tolist() != frames[1].tolist()


def test_an_mp4_has_the_dreams_sound(clocked_root, tmp_path):
    made = dream_command(clocked_root, tmp_path / "dream.mp4", steps=3)
    with av.open(str(made.file)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert sum(1 for _ in container.decode(video=0)) == made.frames == 4


def test_actions_come_as_names_as_numbers_or_from_a_file_and_from_a_policy(clocked_root, tmp_path):
    (tmp_path / "pushes.json").write_text("[1, 1, 3]")
    written = [
        dream_command(clocked_root, tmp_path / f"{number}.gif", actions=actions)
        for number, actions in enumerate(("left, left, up", "1,1,3", str(tmp_path / "pushes.json")))
    ]
    assert len({made.file.read_bytes() for made in written}) == 1 and {made.truth for made in written} == {False}
    assert dream_command(clocked_root, tmp_path / "r.gif", policy="random", steps=8).frames == 9


def test_a_stream_may_have_names_of_its_own_for_its_choices():
    world = SimpleNamespace(dataset=SimpleNamespace(oracle="shapes"))
    stream = ActionStream(kind="action", steps=3, choices=2, names=("hold", "up"))
    assert dream._read_actions(world, "up, hold, 1", stream).tolist() == [[1], [0], [1]]
    with pytest.raises(ValueError, match=r"names \(hold, up\) or numbers"):
        dream._read_actions(world, "left", stream)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "dream.png"}, "does not end in .gif or .mp4"),
        ({"actions": "left", "policy": "random"}, "leave out one of them"),
        ({"steps": 0}, "steps and given at least 1, got 0.25, 0 and 1"),
        ({"steps": 5}, "there are actions for 4 steps, and 5 are asked for; give more, or --policy random"),
        ({"steps": 4, "given": 2}, "there are actions for 3 steps, and 4 are asked for"),
        ({"given": 5}, "behind 5 of its 5 frames nothing of this sample's clip is left; lower --given, or say --steps"),
        ({"given": 6}, r"a rollout begins with 6 frames of clip, and sample \d of 'held_out' has 5; give from 1 to 5"),
        ({"actions": "sideways"}, r"neither a file nor names \(none, left, right, up, down\) or numbers"),
        ({"actions": "left+up"}, "an action here has 1 numbers"),
        ({"actions": "7"}, "every action is one of 0 .. 4"),
        ({"policy": "clever"}, "there is no policy 'clever'"),
    ],
)
def test_what_cannot_be_dreamed_is_said_in_one_line(clocked_root, tmp_path, options, message):
    options = {"out": "dream.gif", **options}
    with pytest.raises(ValueError, match=message):
        dream_command(clocked_root, **{**options, "out": tmp_path / options["out"]})


def test_a_world_without_a_clock_and_an_mp4_without_pyav_are_refused(tiny_root, clocked_root, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="no streams on a clock, so it cannot be rolled out"):
        dream_command(tiny_root, tmp_path / "dream.gif")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match="an MP4 needs PyAV"):
        dream_command(clocked_root, tmp_path / "dream.mp4")
    assert dream._av is not None
    with pytest.raises(SystemExit) as left:
        main(["dream", str(clocked_root), "--out", str(tmp_path / "dream.gif"), "--steps", "2"])
    assert left.value.code == 0 and "3 frames in" in capsys.readouterr().out


def test_a_set_without_clips_cannot_be_dreamed_from(clocked_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "pick_samples", lambda *_: [])
    with pytest.raises(ValueError, match=r"no sample of the dataset has clip, push, .* name one that has them by --tokens"):
        dream_command(clocked_root, tmp_path / "dream.gif")
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        main(["dream", str(clocked_root), "--out", str(tmp_path / "dream.gif"), "--tokens", "others"])
    assert "world did not learn from 'others'" in capsys.readouterr().err
