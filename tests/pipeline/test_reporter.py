import io
import json
from pathlib import Path

import pytest

from worldloom.pipeline import reporter as module
from worldloom.pipeline.reporter import JsonReporter, LineReporter, duration, number, said


def tell(reporter):
    reporter.skipped("data")
    reporter.started("world", "world.steps 3 -> 5")
    reporter.progress("world", 1, 5, "steps", {"loss": 1.23456})
    reporter.message("careful")
    reporter.finished("world", 65.4)
    reporter.failed("scores", "no world")
    reporter.ended(1, Path("/runs/x/report.html"))


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_what_happens(clock):
    out = io.StringIO()
    tell(LineReporter(out))
    assert out.getvalue().splitlines() == [
        "data: done before",
        "world: started (world.steps 3 -> 5)",
        "careful",
        "world: done in 1 min 05 s",
        "scores: failed: no world",
        "failed; report: /runs/x/report.html",
    ]


def test_a_stage_says_its_progress_at_most_every_five_seconds(clock):
    out = io.StringIO()
    reporter = LineReporter(out)
    for stage in ("a", "b"):
        reporter.started(stage, "")
    for step in range(1, 13):
        clock[0] += 1
        reporter.progress("a", step, 12, "steps", {"loss": 0.5})
        if step > 9:
            reporter.progress("b", step, 12, "steps", {})
    assert out.getvalue().splitlines()[2:] == ["a: 5 of 12 steps, loss 0.5", "a: 10 of 12 steps, loss 0.5", "b: 10 of 12 steps"]


def test_programs_get_one_object_a_line_and_everything():
    out = io.StringIO()
    tell(JsonReporter(out))
    told = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in told] == ["skipped", "started", "progress", "message", "finished", "failed", "ended"]
    assert all(line.pop("time") > 1e9 for line in told)
    assert told[2] == {"event": "progress", "stage": "world", "done": 1, "total": 5, "unit": "steps", "notes": {"loss": 1.23456}}
    assert told[6] == {"event": "ended", "exit_code": 1, "report": "/runs/x/report.html"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7620, "2 h 07 min")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.23456, "1.235"), (12345.6, "12,346"), (7, "7"), (7000, "7,000"), (0.00012345, "0.0001234"), (1e20, "1e+20"), (-0.5, "-0.5")],
)
def test_numbers_keep_four_digits_or_all_their_thousands(value, text):
    assert number(value) == text
    assert said({"loss": value}) == [f"loss {text}"]
