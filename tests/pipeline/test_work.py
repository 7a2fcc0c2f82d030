import importlib
from pathlib import Path

import pytest

from worldloom.pipeline.executor import Resources
from worldloom.pipeline.machine import cpu_count
from worldloom.pipeline.work import StageFailed, explain, find_kind, module_of, note_failure
from worldloom.stages import make_shapes
from worldloom.stages.commit import NonDeterministicOutput

OUT = Path("somewhere")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (StageFailed("known"), "known"),
        (NonDeterministicOutput("other bytes"), "other bytes"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), "[Errno 2] No such file or directory: 'x.png'"),
        (KeyError("frame"), "KeyError: 'frame'"),
        (RuntimeError(""), "RuntimeError"),
        (ValueError(""), "ValueError"),
        (
            OSError(28, "No space left on device", "a.tar"),
            "the disk is full: a.tar could not be written; free some room and run again, it goes on from here",
        ),
        (
            OSError(28, "No space left on device"),
            "the disk is full: somewhere could not be written; free some room and run again, it goes on from here",
        ),
    ],
)
def test_why_a_stage_failed_is_one_line(error, line):
    assert explain(error, OUT) == line


def test_tracebacks_of_several_workers_are_kept_one_behind_the_other(tmp_path):
    for who in ("worker 0", "worker 1"):
        try:
            raise ZeroDivisionError(who)
        except ZeroDivisionError as error:
            note_failure(error, tmp_path, who)
    text = (tmp_path / "logs" / "errors.txt").read_text()
    assert text.count("Traceback") == 2
    assert text.index("--- worker 0") < text.index("--- worker 1")


def test_a_kind_is_found_again_by_the_module_that_defines_it():
    assert find_kind(module_of(make_shapes.STAGE), "make_shapes") is make_shapes.STAGE


def test_a_kind_that_its_module_does_not_define_is_an_error():
    with pytest.raises(ValueError, match=r"worldloom.stages.make_shapes defines no stage kind 'paint'"):
        find_kind("worldloom.stages.make_shapes", "paint")


def test_every_stage_kind_there_is_can_be_sent_to_a_worker():
    kinds = importlib.import_module("worldloom.pipeline.catalogue").STAGES
    assert all(find_kind(module_of(kind), name) is kind for name, kind in kinds.items())


def test_resources_fit_add_and_are_taken():
    free = Resources(4, 1)
    assert Resources(4, 1).fits(free)
    assert not Resources(5).fits(free)
    assert not Resources(1, 2).fits(free)
    assert free.minus(Resources(3, 1)).plus(Resources(1)) == Resources(2, 0)


def test_this_machine_has_a_cpu_to_run_on():
    assert cpu_count() >= 1
