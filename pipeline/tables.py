"""What commands print for people: lines in columns, with rich's markup."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from worldloom.pipeline.reporter import duration, number, said

if TYPE_CHECKING:
    from worldloom.pipeline.doctor import Finding
    from worldloom.pipeline.locate import Located
    from worldloom.pipeline.overview import StageView
    from worldloom.pipeline.plan import Plan, Planned

COLOURS = {
    "done": "green",
    "running": "cyan",
    "will run": "yellow",
    "will resume": "yellow",
    "stopped": "yellow",
    "ok": "green",
    "warning": "yellow",
    "problem": "bold red",
}


def plan_lines(plan: "Plan", overrides: Sequence[str]) -> Iterator[str]:
    """Every stage with its state and the reason."""
    yield f"[bold]{escape(plan.name)}[/] in {escape(str(plan.root))}" + (f", with {escape(' '.join(overrides))}" if overrides else "")
    yield from columns([(one.stage.name, one.stage.kind.name, one.state, one.reason, _estimate(one)) for one in plan.stages], state=2)
    work = plan.work()
    yield f"{len(work)} of {len(plan.stages)} stages to run" if work else "nothing to run"
    needed, free = sum(one.estimate.bytes or 0 for one in work), free_bytes(plan.root)
    if needed > free:
        yield f"[yellow]about {amount(needed)} will be written, {amount(free)} are free[/]"


def status_lines(located: "Located", views: Sequence["StageView"]) -> Iterator[str]:
    """Every stage with its state and how far it is."""
    yield f"[bold]{escape(str(located.root))}[/]"
    yield from columns([(view.name, view.state, _progress(view)) for view in views], state=1)


def show_lines(located: "Located", views: Sequence["StageView"]) -> Iterator[str]:
    """Every stage's figures, and where to look further."""
    for view in views:
        yield f"[bold]{escape(view.name)}[/]  [{COLOURS.get(view.state, 'dim')}]{view.state}[/]  [dim]{escape(str(view.folder))}[/]"
        yield from columns([("  " + name, number(value)) for name, value in view.figures.items()])
    report = located.run / "report.html" if located.run else None
    if report is not None and report.is_file():
        yield f"report: [bold]{escape(str(report))}[/]"


def doctor_lines(findings: Sequence["Finding"]) -> Iterator[str]:
    """Every finding."""
    yield from columns([(finding.what, finding.verdict, finding.detail) for finding in findings], state=1)


def columns(rows: Sequence[Sequence[str]], state: int | None = None) -> Iterator[str]:
    """Rows with their columns aligned; the one numbered `state` is coloured by what it says."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [escape(cell.ljust(width)) for cell, width in zip(row, widths, strict=True)]
        if state is not None:
            cells[state] = f"[{COLOURS.get(row[state], 'dim')}]{cells[state]}[/]"
        yield "  ".join(cells).rstrip()


def amount(size: int) -> str:
    """Bytes as people read them: `1.5 MB`."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def free_bytes(folder: Path) -> int:
    """Room on the disk that holds `folder`, or would hold it."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def _estimate(planned: "Planned") -> str:
    estimate, about = planned.estimate, "" if planned.done else "about "
    parts = [f"{estimate.samples:,} samples"] if estimate.samples is not None else []
    parts += [f"{estimate.codes:,} codes" + (" a sample" if estimate.samples is None else "")] if estimate.codes else []
    parts += [about + amount(estimate.bytes)] if estimate.bytes else []
    parts += [f"{duration(planned.seconds)} last time"] if planned.seconds else []
    return ", ".join(parts)


def _progress(view: "StageView") -> str:
    if view.progress is None:
        return ""
    done, total, unit, notes = view.progress
    share = f" ({100 * done // total} %)" if total else ""
    return ", ".join([f"{done} of {total} {unit}{share}", *said(notes)])
