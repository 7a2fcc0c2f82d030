import json
import os
from typing import Literal

import pytest

from worldloom.pipeline.config import Pipeline
from worldloom.pipeline.locate import Located, locate
from worldloom.pipeline.overview import all_figures, as_json, is_held, overview
from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.progress import ProgressFile
from worldloom.pipeline.stage import stages_of
from worldloom.pipeline.tables import show_lines, status_lines
from worldloom.stages.artifact import ArtifactError, begin, execute, lock
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import StageSettings
from worldloom.stages.worker import Worker


class Measure(StageSettings):
    run: Literal["measure"] = "measure"
    figures: dict[str, float]


def write(settings, inputs, out, worker):
    if settings.figures:
        (out / "figures.json").write_text(json.dumps(settings.figures))


KIND = StageKind("measure", Measure, write, lambda *_: {"n": 7}, "scores", 1, "shards")


@pytest.fixture
def located(tmp_path):
    """done (twice), stopped, not begun"""
    figures = {"a": {"frame.psnr": 29.5, "legal": 1.0}, "b": {"legal": 0.5}, "c": {}, "d": {"x": 1.0}}
    stages = {name: Measure(figures=figures[name]) for name in figures}
    made = stages_of(Pipeline(name="test", root=str(tmp_path), stages=stages), {"measure": KIND})
    for stage in made[:2]:
        execute(KIND, stage.name, stage.settings, {}, stage.folder, Worker())
    begin(made[2].folder, KIND, "c", made[2].settings, {}, made[2].fingerprint)
    ProgressFile(made[2].folder, 0)(2, 8, "steps", {"loss": 0.25})
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run.parent / "latest").symlink_to("one")
    (run / "artifacts.json").write_text(json.dumps({stage.name: str(stage.folder.relative_to(tmp_path)) for stage in made}))
    (run / "report.html").write_text("<html>")
    return locate(tmp_path)


def test_a_run_is_found_by_its_root_its_folder_and_the_link_to_it(located, tmp_path):
    assert located == locate(tmp_path / "runs" / "one") == locate(tmp_path / "runs" / "latest")
    assert located.run == tmp_path / "runs" / "one"
    assert list(located.artifacts) == ["a", "b", "c", "d"]


def test_a_pipeline_file_finds_its_artifacts_before_any_run(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("name: x\nroot: nowhere\nstreams: {t: {kind: text}}\nstages: {data: {run: make_shapes}}")
    found = locate(file, [f"root={tmp_path}/there"])
    assert (found.root, found.run) == (tmp_path / "there", None)
    assert found.artifacts["data"].parent == tmp_path / "there" / "artifacts" / "data"
    assert found.artifacts != locate(file, [f"root={tmp_path}/there", "data.seed=1"]).artifacts


def test_where_nothing_ran_it_is_said(tmp_path):
    with pytest.raises(ConfigError, match="holds no run; start one with worldloom run FILE"):
        locate(tmp_path)
    with pytest.raises(ConfigError, match="is not there; give a pipeline file"):
        locate(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"overrides \(a.b=1\) go with a pipeline file"):
        locate(tmp_path, ["a.b=1"])


def test_a_damaged_list_of_artifacts_is_said(located, tmp_path):
    path = located.run / "artifacts.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"artifacts\.json is damaged; run the pipeline again"):
        locate(located.run)


def test_every_stage_is_done_running_stopped_or_not_begun(located):
    states = {view.name: view.state for view in overview(located)}
    assert states == {"a": "done", "b": "done", "c": "stopped", "d": "not begun"}
    with lock(located.artifacts["c"]):
        assert {view.name: view.state for view in overview(located)}["c"] == "running"


def test_a_lock_that_its_holder_left_behind_is_free(located):
    folder = located.artifacts["c"]
    assert not is_held(folder)
    for holder in (f"process {os.getpid()} on {os.uname().nodename}", "process 4194305 on elsewhere", "", "nonsense"):
        (folder / "staging" / "run.lock").write_text(holder)
        assert not is_held(folder)


def test_figures_keep_their_names_and_only_shared_ones_say_whose_they_are(located):
    assert all_figures(overview(located)) == {"frame.psnr": 29.5, "a.legal": 1.0, "b.legal": 0.5}


def test_programs_get_one_object(located):
    told = as_json(located, overview(located))
    assert json.loads(json.dumps(told)) == told
    assert told["figures"]["frame.psnr"] == 29.5
    assert told["complete"] is False
    assert told["report"] == str(located.run / "report.html")
    assert told["stages"]["a"]["counts"] == {"n": 7}
    assert told["stages"]["a"]["artifact"] == str(located.artifacts["a"])
    assert told["stages"]["c"]["progress"] == {"done": 2, "total": 8, "unit": "steps", "notes": {"loss": 0.25}}
    done = Located(located.root, None, {"a": located.artifacts["a"]})
    assert as_json(done, overview(done))["complete"] is True


def test_people_get_lines(located):
    views = overview(located)
    assert "c  [yellow]stopped  [/]  2 of 8 steps (25 %), loss 0.25" in list(status_lines(located, views))
    shown = "\n".join(show_lines(located, views))
    assert "  frame.psnr  29.5\n  legal       1" in shown
    assert str(located.run / "report.html") in shown


def test_a_damaged_artifact_is_said(located):
    (located.artifacts["a"] / "DONE.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"DONE\.json is damaged"):
        overview(located)
