"""The engine with the inline executor: what it runs, in which order, what it says and what it leaves."""

import importlib
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from worldloom.pipeline.config import parse_pipeline
from worldloom.pipeline.engine import run_pipeline
from worldloom.pipeline.events import read_events
from worldloom.pipeline.executor import Resources
from worldloom.pipeline.inline_executor import InlineExecutor
from worldloom.pipeline.plan import make_plan
from worldloom.pipeline.run_folder import seconds_spent
from worldloom.stages.artifact import lock
from worldloom.stages.worker import Interrupted

TWO = """
  data: {run: count_up, shards: 3}
  sum: {run: add_up, data: data, steps: 2}
"""
ONE = """
  data: {run: count_up, shards: 3}
"""
APART = """
  a: {run: count_up, shards: 1}
  b: {run: count_up, shards: 2}
  c: {run: count_up, shards: 5}
"""


class Heard:
    """A reporter that remembers."""

    def __init__(self):
        self.lines = []

    def __getattr__(self, name):
        return lambda *said: self.lines.append((name, *said))

    def of(self, name):
        return [line[1:] for line in self.lines if line[0] == name]


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("toy_stages")


@pytest.fixture
def quiet(monkeypatch):
    """No report: it is not what these tests are about."""
    monkeypatch.setattr("worldloom.pipeline.report.write_report", lambda folder, stages, name: folder / "report.html")


@pytest.fixture
def run(tmp_path, toys, quiet):
    def run(stages, *overrides, executor=None, **selection):
        pipeline = parse_pipeline(f"name: toy\nroot: {tmp_path}\nstages:{stages}", overrides=overrides, kinds=toys.KINDS)
        heard = Heard()
        plan = make_plan(pipeline, kinds=toys.KINDS, **selection)
        heard.plan = plan
        heard.code = run_pipeline(plan, executor or InlineExecutor(threads=1), heard)
        return heard

    return run


def made(heard, stage):
    """Which shards were made, in order, over all runs."""
    path = heard.plan.stage(stage).folder / "logs" / "made.txt"
    return [line.split()[-1][-1] for line in path.read_text().splitlines()] if path.exists() else []


def test_stages_run_after_their_inputs_and_everything_is_told(run):
    heard = run(TWO)
    assert heard.code == 0
    assert [line[:2] for line in heard.lines if line[0] in ("started", "finished")] == [
        ("started", "data"),
        ("finished", "data"),
        ("started", "sum"),
        ("finished", "sum"),
    ]
    ((code, report),) = heard.of("ended")
    assert (code, report.name) == (0, "report.html")
    assert (heard.plan.stage("sum").folder / "total.txt").read_text() == "2 3"


def test_the_run_folder_says_what_was_run_and_what_became_of_it(run, tmp_path, toys):
    heard = run(TWO)
    folder = tmp_path / "runs" / "latest"
    assert json.loads((folder / "artifacts.json").read_text()) == {
        stage: heard.plan.stage(stage).folder.relative_to(tmp_path).as_posix() for stage in ("data", "sum")
    }
    assert parse_pipeline((folder / "pipeline.yaml").read_text(), kinds=toys.KINDS) == heard.plan.pipeline
    events = list(read_events(folder / "events.jsonl"))
    assert [(event["eventType"], event["job"]["name"]) for event in events] == [
        ("START", "toy"),
        ("START", "data"),
        ("COMPLETE", "data"),
        ("START", "sum"),
        ("COMPLETE", "sum"),
        ("COMPLETE", "toy"),
    ]
    assert events[3]["inputs"] == [{"name": "data", "fingerprint": heard.plan.stage("data").fingerprint}]
    assert events[3]["outputs"] == [{"name": "sum", "fingerprint": heard.plan.stage("sum").fingerprint}]
    assert {event["run"]["runId"] for event in events} == {folder.resolve().name}
    assert seconds_spent(heard.plan.stage("sum").folder) > 0


def test_a_finished_pipeline_computes_nothing_and_starts_nothing(run, tmp_path, monkeypatch):
    run(TWO)
    (tmp_path / "runs" / "latest" / "report.html").touch()
    monkeypatch.setattr(InlineExecutor, "start", lambda self, stages: pytest.fail("nothing is to be run"))
    heard = run(TWO)
    assert heard.code == 0
    assert heard.of("skipped") == [("data",), ("sum",)]
    assert len(list((tmp_path / "runs").iterdir())) == 2  # the first run and `latest`


def test_a_change_runs_only_what_depends_on_it(run):
    run(TWO)
    heard = run(TWO, "sum.steps=3")
    assert heard.of("started") == [("sum", "sum.steps 2 -> 3")]
    assert heard.of("skipped") == [("data",)]
    assert made(heard, "data") == ["0", "1", "2"]


def test_force_makes_a_stage_and_what_follows_again_with_the_same_result(run):
    first = run(TWO)
    before = (first.plan.stage("data").folder / "DONE.json").read_bytes()
    heard = run(TWO, force=["data"])
    assert [stage for stage, _ in heard.of("started")] == ["data", "sum"]
    assert (heard.plan.stage("data").folder / "DONE.json").read_bytes() == before


def test_a_stage_that_raises_is_one_line_with_its_name_and_a_traceback_in_the_logs(run):
    heard = run(TWO, "data.fail=raise")
    assert heard.code == 1
    assert heard.of("failed") == [("data", "there is no train/shard-000000 look elsewhere")]
    assert "Traceback" in (heard.plan.stage("data").folder / "logs" / "errors.txt").read_text()
    assert heard.of("started") == [("data", "never run")]
    assert run(TWO).code == 0


def test_a_bug_is_named_by_its_kind(run):
    assert run(ONE, "data.fail=bug").of("failed") == [("data", "ZeroDivisionError: division by zero")]


def test_a_full_disk_fails_the_stage_names_the_path_and_can_go_on(run):
    heard = run(ONE, "data.fail=disk")
    assert heard.code == 1
    ((stage, message),) = heard.of("failed")
    assert message.startswith(f"the disk is full: {heard.plan.stage(stage).folder / 'data'} could not be written; free some room")
    assert run(ONE).code == 0


def test_a_stage_that_failed_goes_on_where_it_stopped(run):
    first = run(ONE, "data.fail=once")
    assert first.code == 1
    heard = run(ONE)
    assert heard.code == 0
    assert made(heard, "data") == ["0", "0", "1", "2"]


def test_the_first_signal_stops_at_a_safe_point_and_the_same_command_goes_on(run, toys, monkeypatch):
    real = toys.misbehave

    def interrupt(how, out, shard):
        if how == "signal" and shard.endswith("1"):
            os.kill(os.getpid(), signal.SIGTERM)
        real(how, out, shard)

    monkeypatch.setattr(toys, "misbehave", interrupt)
    monkeypatch.setattr("worldloom.pipeline.stop.LOOK_EVERY", 0.0)
    monkeypatch.setattr("worldloom.pipeline.progress.WRITE_EVERY", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    heard = run(TWO, "data.fail=signal")
    assert signal.getsignal(signal.SIGTERM) is before
    assert heard.code == 3
    assert ("SIGTERM: stopping at the next safe point; once more to stop at once",) in heard.of("message")
    assert made(heard, "data") == ["0", "1"]  # the shard in hand was finished, the next not begun
    heard = run(TWO)
    assert heard.code == 0
    assert made(heard, "data") == ["0", "1", "2"]
    assert heard.of("started")[0] == ("data", "stopped at 2 of 3 shards")


def test_the_second_signal_ends_the_process_at_once(run, toys, monkeypatch):
    def twice(how, out, shard):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(toys, "misbehave", twice)
        run(ONE)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_two_runs_of_one_artifact_the_second_is_told_who_works_on_it(run):
    plan = run(ONE, "data.fail=raise").plan
    with lock(plan.stage("data").folder):
        heard = run(ONE)
    assert heard.code == 1
    assert f"is being worked on by process {os.getpid()} on" in heard.of("failed")[0][1]
    assert run(ONE).code == 0


def test_the_report_of_a_run_that_failed_beside_another_is_not_the_last_word(run, tmp_path):
    plan = run(ONE, "data.fail=raise").plan
    with lock(plan.stage("data").folder):
        run(ONE)
    (tmp_path / "runs" / "latest" / "report.html").touch()
    failed = (tmp_path / "runs" / "latest").resolve()
    run(ONE)
    link = tmp_path / "runs" / "latest"
    link.unlink()
    link.symlink_to(failed.name)  # the failed one began last
    (report,) = run(ONE).of("ended")[0][1:]
    assert report.parent != failed


def test_another_run_that_was_faster_is_no_failure(run, toys):
    plan = run(ONE).plan

    class Late(InlineExecutor):
        def run(self, job):
            pytest.fail("it is done")

    stale = make_plan(plan.pipeline, kinds=toys.KINDS)
    (planned,) = stale.stages
    object.__setattr__(planned, "state", "will run")  # planned before the other run finished
    assert run_pipeline(stale, Late(threads=1), Heard()) == 0


def test_a_report_that_fails_is_said_and_fails_nothing(run, monkeypatch):
    def broken(folder, stages, name):
        raise KeyError("card")

    monkeypatch.setattr("worldloom.pipeline.report.write_report", broken)
    heard = run(ONE)
    assert heard.code == 0
    assert heard.of("message") == [("the report could not be written: KeyError: 'card'",)]
    assert heard.of("ended") == [(0, None)]


def test_the_report_is_told_what_every_stage_did(run, monkeypatch):
    seen = []
    monkeypatch.setattr("worldloom.pipeline.report.write_report", lambda folder, stages, name: seen.append((name, stages)))
    run(ONE)
    run(TWO, "sum.fail=raise")
    name, (data, total) = seen[1]
    assert name == "toy"
    assert (data.name, data.kind, data.state, data.inputs, data.note) == ("data", "count_up", "done", (), "from an earlier run")
    assert data.seconds > 0 and data.started is None
    assert (total.name, total.state, total.inputs, total.note) == ("sum", "failed", ("data",), "there is no rank look elsewhere")


def test_a_gang_of_more_than_one_is_refused_inline_before_anything_starts(run, tmp_path):
    with pytest.raises(ValueError, match=r"sum: the inline executor is one process and train.workers is 2; set train.workers to 1 or use"):
        run(TWO, executor=InlineExecutor(train_workers=2))
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "artifacts").exists()


class Staged(InlineExecutor):
    """Side by side, but a stage ends only when the test says so."""

    side_by_side = True

    def __init__(self, cpus, needs):
        super().__init__(threads=1)
        self.cpus, self.cost = cpus, needs
        self.order, self.doors = [], {}
        self.changed = threading.Condition()

    def start(self, stages):
        return Resources(self.cpus)

    def needs(self, stage, inputs):
        return Resources(self.cost[stage.name])

    def run(self, job):
        with self.changed:
            self.order.append(job.stage.name)
            self.doors[job.stage.name] = threading.Event()
            self.changed.notify_all()
        assert self.doors[job.stage.name].wait(20)
        super().run(job)

    def started(self, *names):
        with self.changed:
            return self.changed.wait_for(lambda: sorted(self.order) == sorted(names), 20)


def test_independent_stages_run_side_by_side_as_far_as_they_fit(run, monkeypatch):
    executor = Staged(cpus=3, needs={"a": 2, "b": 2, "c": 1})
    result = []
    thread = threading.Thread(target=lambda: result.append(run(APART, executor=executor)))
    thread.start()
    assert executor.started("a", "c")  # b must wait for a
    executor.doors["a"].set()
    assert executor.started("a", "b", "c")
    executor.doors["b"].set()
    executor.doors["c"].set()
    thread.join(20)
    assert result[0].code == 0


def test_a_stage_that_needs_more_than_there_is_runs_alone(run):
    executor = Staged(cpus=1, needs={"data": 4})
    result = []
    thread = threading.Thread(target=lambda: result.append(run(ONE, executor=executor)))
    thread.start()
    assert executor.started("data")
    executor.doors["data"].set()
    thread.join(20)
    assert result[0].code == 0


def test_after_a_failure_what_runs_is_finished_and_nothing_new_begins(run):
    executor = Staged(cpus=2, needs={"a": 1, "b": 1, "c": 1})
    result = []
    thread = threading.Thread(target=lambda: result.append(run(APART, "a.fail=raise", executor=executor)))
    thread.start()
    assert executor.started("a", "b")
    executor.doors["a"].set()
    executor.doors["b"].set()
    thread.join(20)
    heard = result[0]
    assert heard.code == 1
    assert [stage for stage, _ in heard.of("failed")] == ["a"]
    assert [stage for stage, _ in heard.of("finished")] in (["b"], [])
    assert "c" not in executor.order or executor.order.index("c") < 2


def test_progress_of_the_workers_reaches_the_reporter(run, monkeypatch):
    monkeypatch.setattr("worldloom.pipeline.engine.LOOK_EVERY", 0.02)
    monkeypatch.setattr("worldloom.pipeline.progress.WRITE_EVERY", 0.0)
    heard = run(ONE, "data.seconds=0.2")
    assert ("data", 1, 3, "shards", {}) in heard.of("progress")


def test_a_stage_that_exits_is_a_failed_stage(run, toys, monkeypatch):
    def leave(how, out, shard):
        raise SystemExit(0)

    monkeypatch.setattr(toys, "misbehave", leave)
    heard = run(ONE)
    assert heard.code == 1
    assert heard.of("failed") == [("data", "SystemExit: 0")]


def test_interrupted_is_no_failure(run, toys, monkeypatch):
    def stop(how, out, shard):
        raise Interrupted

    monkeypatch.setattr(toys, "misbehave", stop)
    heard = run(ONE)
    assert heard.code == 3
    assert heard.of("failed") == []
    assert heard.of("message") == [("data stopped; run the same command again and it goes on from there",)]


def test_behind_a_stage_that_was_interrupted_nothing_new_begins_and_its_reason_is_said(run, toys, monkeypatch):
    def stop(how, out, shard):
        raise Interrupted("rank 1 took longer than hang_seconds")

    monkeypatch.setattr(toys, "misbehave", stop)
    heard = run(TWO)
    assert heard.code == 3 and heard.of("failed") == [] and [stage for stage, _ in heard.of("started")] == ["data"]
    said = "data stopped (rank 1 took longer than hang_seconds); run the same command again and it goes on from there"
    assert heard.of("message") == [(said,)]


def test_when_what_runs_the_stages_dies_nothing_is_waited_for(run):
    class Dying(Staged):
        def is_alive(self):
            return not self.order

    executor = Dying(cpus=1, needs={"data": 1})
    heard = run(ONE, executor=executor)
    executor.doors["data"].set()
    assert heard.code == 1
    assert heard.of("failed") == [("data", "its workers, or what they run on, were ended from outside")]
