import pytest

from worldloom.pipeline import tables
from worldloom.pipeline.config import parse_pipeline
from worldloom.pipeline.plan import make_plan
from worldloom.pipeline.tables import amount, columns, plan_lines
from worldloom.pipeline.templates import template
from worldloom.stages.estimate import member_bytes


def test_columns_are_as_wide_as_their_widest_cell_and_markup_is_text():
    rows = [("a", "done", "[x]"), ("long", "will run", "")]
    assert list(columns(rows, state=1)) == ["a     [green]done    [/]  \\[x]", "long  [yellow]will run[/]"]
    assert list(columns([])) == []


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (130_900_000, "131 MB"), (2_400_000_000, "2.4 GB"), (9e15, "9000 TB")]
)
def test_amounts_read_as_people_say_them(size, text):
    assert amount(size) == text


@pytest.mark.parametrize(("content", "size"), [(0, 512), (1, 1024), (512, 1024), (513, 1536)])
def test_members_of_a_tar_come_in_blocks(content, size):
    assert member_bytes(content) == size


def test_a_disk_that_is_too_small_is_said_before_the_start(tmp_path, monkeypatch):
    plan = make_plan(parse_pipeline(template("shapes", "shapes", "f"), overrides=[f"root={tmp_path / 'new' / 'er'}", "data.samples=64000"]))
    assert not [line for line in plan_lines(plan, ()) if "are free" in line]
    monkeypatch.setattr(tables, "free_bytes", lambda folder: 1_500_000)
    (line,) = [line for line in plan_lines(plan, ()) if "are free" in line]
    assert "MB will be written, 1.5 MB are free" in line


def test_the_demo_is_estimated_before_anything_ran(tmp_path):
    plan = make_plan(parse_pipeline(template("shapes", "shapes", "f"), overrides=[f"root={tmp_path}"]))
    estimates = {planned.stage.name: planned.estimate for planned in plan.stages}
    assert estimates["data"].samples == 64_800
    assert estimates["frame_codes"].codes == 16
    assert estimates["tokens"].codes == 64_800 * 16
