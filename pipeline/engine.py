"""Runs a plan: stages whose inputs are ready, side by side as resources allow, each one locked, committed and accounted for."""

import queue
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from worldloom.pipeline.events import Events, EventType
from worldloom.pipeline.executor import Executor, Job, Resources
from worldloom.pipeline.interrupts import INTERRUPTED, interruptible
from worldloom.pipeline.plan import Plan, Planned
from worldloom.pipeline.progress import clear_progress, read_progress
from worldloom.pipeline.reporter import Reporter
from worldloom.pipeline.run_folder import Ended, Ending, RunFolder, note_times
from worldloom.pipeline.stage import Stage
from worldloom.pipeline.stop import Stop
from worldloom.pipeline.work import StageFailed, explain, note_failure
from worldloom.stages import artifact
from worldloom.stages.artifact import Artifact
from worldloom.stages.commit import Commits
from worldloom.stages.worker import Interrupted

COMPLETE, FAILED = 0, 1  # exit codes; INTERRUPTED is the third
LOOK_EVERY = 0.5  # seconds between looks at the workers' progress
LOST = "its workers, or what they run on, were ended from outside"
EVENT_OF_CODE: dict[int, EventType] = {COMPLETE: "COMPLETE", FAILED: "FAIL", INTERRUPTED: "ABORT"}
EVENT_OF: dict[Ending, EventType] = {"done": "COMPLETE", "interrupted": "ABORT", "failed": "FAIL"}


def run_pipeline(plan: Plan, executor: Executor, reporter: Reporter) -> int:
    """Runs what the plan says is to be done; 0 complete, 1 a stage failed, 3 stopped by a signal and resumable.

    TooLittle, before anything has started, if a stage could never be placed.
    """
    work = plan.work()
    executor.check([planned.stage for planned in work])
    before = None if work else RunFolder.finished_before(plan)
    if before is not None:
        for planned in plan.stages:
            reporter.skipped(planned.stage.name)
        reporter.ended(COMPLETE, before.report)
        return COMPLETE
    with closing(executor):
        free = executor.start([planned.stage for planned in work]) if work else Resources(0)
        folder = RunFolder.create(plan)
        run = _Run(plan, executor, _Serial(reporter), folder)
        with interruptible(run.stop, run.reporter.message):
            code = run.everything(free)
            report = folder.write_report(run.ended, run.reporter.message)
    reporter.ended(code, report)
    return code


class _Serial:
    """A reporter that several threads, and a signal handler, may speak to: one at a time."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._lock = threading.RLock()  # a signal's handler may come while its own thread is speaking

    def __getattr__(self, name: str) -> Callable[..., None]:
        speak = getattr(self._reporter, name)

        def serial(*arguments: object) -> None:
            with self._lock:
                speak(*arguments)

        return serial


class _Working(NamedTuple):
    """A stage that runs now."""

    stage: Stage
    needs: Resources
    started: float  # seconds since 1970


class _Run:
    """One run of one plan."""

    def __init__(self, plan: Plan, executor: Executor, reporter: _Serial, folder: RunFolder) -> None:
        self.plan = plan
        self.executor = executor
        self.reporter = reporter
        self.folder = folder
        self.stop = Stop(folder.stop)
        self.events = Events(folder.events, folder.name, plan.name)
        self.ended: dict[str, Ended] = {}
        self._working: dict[str, _Working] = {}
        self._arrivals: queue.SimpleQueue[Ended] = queue.SimpleQueue()

    def everything(self, free: Resources) -> int:
        """Runs all that is to be done in what is free; the exit code."""
        work = self.plan.work()
        self._event("START", self.plan.name)
        for planned in self.plan.stages:
            if planned.done:
                self.reporter.skipped(planned.stage.name)
                self._event("OTHER", planned.stage.name, outputs=_output(planned.stage), reason="done before")
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), name="progress", daemon=True)
        watcher.start()
        try:
            self._work(work, free)
        finally:
            over.set()
            watcher.join()
        code = self._code(work)
        self._event(EVENT_OF_CODE[code], self.plan.name)
        return code

    def _code(self, work: list[Planned]) -> int:
        endings = [ended.ending for ended in self.ended.values()]
        if "failed" in endings:
            return FAILED
        return COMPLETE if endings.count("done") == len(work) else INTERRUPTED

    def _work(self, work: list[Planned], free: Resources) -> None:
        """Starts what is ready and fits, waits for an end, and so on. After a failure or a stop nothing new is started."""
        waiting = list(work)
        while waiting or self._working:
            if not self.stop.is_set() and all(ended.ending == "done" for ended in self.ended.values()):
                unfinished = {planned.stage.name for planned in waiting} | self._working.keys()
                for planned in [planned for planned in waiting if unfinished.isdisjoint(planned.stage.inputs.values())]:
                    needs = self.executor.needs(planned.stage, self._inputs(planned.stage))
                    if needs.fits(free) or not self._working:
                        waiting.remove(planned)
                        free = free.minus(needs)
                        self._launch(planned, needs)
            if not self._working:
                return
            for ended in self._next_endings():
                free = free.plus(self._working.pop(ended.name).needs)
                self._account(ended)

    def _next_endings(self) -> list[Ended]:
        """The next stage to end; or all that run, if what they run on has died."""
        while True:
            with suppress(queue.Empty):
                return [self._arrivals.get(timeout=LOOK_EVERY)]
            if not self.executor.is_alive():
                ending: Ending = "interrupted" if self.stop.is_set() else "failed"
                now = time.time()
                return [Ended(name, ending, one.started, now - one.started, LOST) for name, one in self._working.items()]

    def _launch(self, planned: Planned, needs: Resources) -> None:
        stage = planned.stage
        self._working[stage.name] = _Working(stage, needs, time.time())
        self.reporter.started(stage.name, planned.reason)
        inputs = {name: self.plan.stage(name).fingerprint for name in stage.inputs.values()}
        self._event("START", stage.name, inputs=inputs, outputs=_output(stage), reason=planned.reason)
        if self.executor.side_by_side:
            threading.Thread(target=self._do, args=(planned,), name=stage.name, daemon=True).start()
        else:
            self._do(planned)

    def _do(self, planned: Planned) -> None:
        """One stage from its lock to its DONE.json; whatever happens, one `Ended` arrives."""
        stage, started = planned.stage, time.time()
        ending: Ending = "failed"
        message = ""
        try:
            self._make(planned)
            ending = "done"
        except Interrupted as reason:
            ending, message = "interrupted", str(reason)
        except BaseException as error:  # also SystemExit: a thread that ended without a word would be waited for without end
            if self.stop.is_set() and isinstance(error, StageFailed):
                ending = "interrupted"  # what asked this process to stop may have ended workers, too, and not at a safe point
            message = explain(error, stage.folder)
            if not isinstance(error, StageFailed):
                note_failure(error, stage.folder, "the engine")
        self._arrivals.put(Ended(stage.name, ending, started, time.time() - started, message))

    def _make(self, planned: Planned) -> None:
        stage = planned.stage
        inputs = self._inputs(stage)
        with artifact.lock(stage.folder):
            if planned.forced:
                artifact.discard(stage.folder)
            elif (stage.folder / "DONE.json").exists():  # another run was faster
                return
            artifact.begin(stage.folder, stage.kind, stage.name, stage.settings, inputs, stage.fingerprint, stage.outside)
            _forget_dead_workers(stage.folder)
            self.executor.run(Job(stage, inputs, self.stop.path))
            artifact.complete(stage.folder, stage.kind.finish(stage.settings, inputs, stage.folder))
            artifact.clean(stage.folder)

    def _account(self, ended: Ended) -> None:
        self.ended[ended.name] = ended
        stage = self.plan.stage(ended.name)
        self._keep(note_times, stage.folder, ended)
        self._event(EVENT_OF[ended.ending], ended.name, outputs=_output(stage), seconds=round(ended.seconds, 3), message=ended.message)
        if ended.ending == "done":
            self.reporter.finished(ended.name, ended.seconds)
        elif ended.ending == "failed":
            self.reporter.failed(ended.name, ended.message)
        else:
            why = f" ({ended.message})" if ended.message else ""
            self.reporter.message(f"{ended.name} stopped{why}; run the same command again and it goes on from there")

    def _event(self, event: EventType, job: str, **facts: Any) -> None:
        self._keep(self.events.write, event, job, **facts)

    def _keep(self, record: Callable[..., None], *arguments: Any, **facts: Any) -> None:
        """Writes down something about the run. That a full disk forbids it is said; it does not fail what was done."""
        try:
            record(*arguments, **facts)
        except OSError as error:
            self.reporter.message(f"the run's records are incomplete: {error}")

    def _inputs(self, stage: Stage) -> dict[str, Artifact]:
        return {field: Artifact.open(self.plan.stage(name).folder) for field, name in stage.inputs.items()}

    def _watch(self, over: threading.Event) -> None:
        """Passes on what the workers say of their progress, until `over`."""
        while not over.wait(LOOK_EVERY):
            for name, working in list(self._working.items()):
                progress = read_progress(working.stage.folder)
                if progress is not None:
                    self.reporter.progress(name, *progress)


def _output(stage: Stage) -> dict[str, str]:
    return {stage.name: stage.fingerprint}


def _forget_dead_workers(out: Path) -> None:
    """Takes from workers that outlived an earlier run what they write in, and clears away what dead ones left."""
    Commits.of(out).clear_attempts()
    clear_progress(out)
    shutil.rmtree(out / "staging" / "claims", ignore_errors=True)
    (out / "staging" / "stop").unlink(missing_ok=True)
