"""What sample and dream read off the command line, and say; what they do is in test_sample.py and test_dream.py."""

import pytest

from worldloom.pipeline.cli import main
from worldloom.pipeline.sample import Sample


@pytest.fixture
def call(capsys):
    """Calls the command line; gives exit code, stdout and stderr."""

    def called(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return called


def test_what_a_world_says_is_printed_as_it_is(call, monkeypatch):
    said = Sample({"caption": "a [red] circle [/b] at the [bold]top"}, {}, legal=True)
    monkeypatch.setattr("worldloom.pipeline.sample.sample_command", lambda *arguments: [said])
    code, out, _ = call("sample", "anywhere")
    assert (code, out) == (0, said.texts["caption"] + "\n")


def test_numbers_of_streams_are_given_one_by_one(call, monkeypatch):
    seen = []
    monkeypatch.setattr("worldloom.pipeline.sample.sample_command", lambda *arguments: seen.extend(arguments) or [])
    assert call("sample", "x", "--temperature", "0.5", "--temperature", "frame=0.2", "--top-k", "frame=9")[0] == 0
    assert seen[1].temperature == {"": 0.5, "frame": 0.2} and seen[1].top_k == {"frame": 9}
    code, _, error = call("sample", "x", "--top-k", "frame=many")
    assert code == 2 and "--top-k frame=many: write a number, or STREAM=NUMBER" in error


@pytest.mark.parametrize("wrong", ["view", "view=3", "view=3:3", "view=a:5", "=0:2", "view=-1:2"])
def test_places_are_two_numbers_of_a_stream(call, monkeypatch, wrong):
    seen = []
    monkeypatch.setattr("worldloom.pipeline.sample.sample_command", lambda *arguments: seen.extend(arguments) or [])
    assert call("sample", "x", "--infill", "view=0:2", "--infill", "words=4:5", "--infill", "view=7:8")[0] == 0
    assert seen[1].infill == {"view": [0, 1, 7], "words": [4]}
    code, _, error = call("sample", "x", f"--infill={wrong}")
    assert code == 2 and f"--infill {wrong}: write STREAM=FIRST:END, two whole numbers, FIRST below END" in error


def test_a_value_without_its_stream_is_refused(call):
    code, _, error = call("sample", "x", "--give", "red")
    assert code == 2 and "--give red: write STREAM=VALUE" in error


def test_an_unknown_order_is_refused_with_those_that_there_are(call):
    code, _, error = call("sample", "x", "--fill-steps", "3", "--fill-order", "spiral")
    assert code == 2 and "'spiral' is not one of 'confidence', 'random', 'raster'" in error
