"""A run on a terminal: one bar for every stage at work, with its rate and the time left, lines for what is over."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from worldloom.pipeline.reporter import ENDINGS, duration, said

SHOWN_NOTES = 3  # numbers beside a bar


class TerminalReporter:
    """Bars while something runs; they are gone when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _Rate(),
            _Left(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[notes]}"),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bars: dict[str, TaskID] = {}

    def started(self, stage: str, reason: str) -> None:
        self._progress.start()
        self._bars[stage] = self._progress.add_task(escape(stage), total=None, unit="", notes=escape(reason))

    def progress(self, stage: str, done: int, total: int, unit: str, notes: Mapping[str, float]) -> None:
        if stage in self._bars:
            shown = " ".join(said(notes)[:SHOWN_NOTES])
            self._progress.update(self._bars[stage], completed=done, total=total or None, unit=unit, notes=escape(shown))

    def finished(self, stage: str, seconds: float) -> None:
        self._over(stage, f"[green]done[/]     in {duration(seconds)}")

    def skipped(self, stage: str) -> None:
        self._over(stage, "[dim]done before[/]")

    def failed(self, stage: str, message: str) -> None:
        self._over(stage, f"[bold red]failed[/]   {escape(message)}")

    def message(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True, highlight=False)

    def ended(self, exit_code: int, report: Path | None) -> None:
        self._progress.stop()
        colour = {0: "green", 3: "yellow"}.get(exit_code, "red")
        where = f"\nreport: [bold]{escape(str(report))}[/]" if report else ""
        self._console.print(f"[{colour}]{ENDINGS[exit_code]}[/]{where}", soft_wrap=True, highlight=False)

    def _over(self, stage: str, what: str) -> None:
        bar = self._bars.pop(stage, None)
        if bar is not None:
            self._progress.remove_task(bar)
        self._console.print(f"[bold]{escape(stage)}[/]  {what}", soft_wrap=True, highlight=False)


class _Rate(ProgressColumn):
    """Units a second, over the last half minute."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{task.speed:,.0f}/s" if task.speed >= 10 else f"{task.speed:.1f}/s", style="cyan")


class _Left(ProgressColumn):
    """Time left at that rate."""

    def render(self, task: Task) -> Text:
        return Text("" if task.time_remaining is None or task.finished else f"{duration(task.time_remaining)} left", style="cyan")
