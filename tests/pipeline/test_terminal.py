import io
import re
from pathlib import Path

from rich.console import Console

from worldloom.pipeline.terminal import TerminalReporter


def console():
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def plain(text):
    return re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", text)


def test_what_is_over_stays_on_the_screen_as_a_line():
    screen = console()
    reporter = TerminalReporter(screen)
    reporter.skipped("data")
    reporter.started("world", "[never] run")
    reporter.progress("world", 2, 5, "steps", {"loss": 1.5, "frame": 2.5})
    reporter.message("look [here]")
    reporter.finished("world", 3.21)
    reporter.started("scores", "")
    reporter.failed("scores", "no [world]")
    reporter.ended(1, Path("/runs/[x]/report.html"))
    lines = [line.rstrip() for line in plain(screen.file.getvalue()).replace("\r", "\n").splitlines()]
    for expected in (
        "data  done before",
        "look [here]",
        "world  done     in 3.2 s",
        "scores  failed   no [world]",
        "report: /runs/[x]/report.html",
    ):
        assert expected in lines


def test_a_bar_shows_how_far_a_stage_is_and_its_numbers():
    screen = console()
    reporter = TerminalReporter(screen)
    reporter.started("world", "never run")
    reporter.progress("world", 2, 5, "steps", {"loss": 1.5})
    reporter._progress.refresh()
    shown = plain(screen.file.getvalue())
    reporter.ended(0, None)
    assert "2/5" in shown and "steps" in shown and "loss 1.5" in shown and "never run" in shown


def test_progress_of_a_stage_that_has_ended_is_passed_over():
    reporter = TerminalReporter(console())
    reporter.started("world", "")
    reporter.finished("world", 1.0)
    reporter.progress("world", 5, 5, "steps", {})
    reporter.ended(0, None)
