import os
from dataclasses import replace
from typing import Annotated, Literal

import pytest

from worldloom.pipeline.config import Pipeline
from worldloom.pipeline.plan import make_plan
from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.progress import ProgressFile
from worldloom.stages.artifact import Artifact, ArtifactError, begin, execute
from worldloom.stages.estimate import Estimate
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, DatasetRef, Settings, StageSettings
from worldloom.stages.worker import Worker


class Optimizer(Settings):
    name: str = "adam"
    rate: float = 0.5


class Make(StageSettings):
    run: Literal["make"] = "make"
    samples: int = 3
    path: Annotated[str, NOT_IN_OUTPUT] = ""


class Change(StageSettings):
    run: Literal["change", "alter"] = "change"
    data: DatasetRef
    steps: int = 5
    optimizer: Optimizer = Optimizer()
    threads: Annotated[int, NOT_IN_OUTPUT] = 1


def write(settings, inputs, out, worker):
    (out / "made.txt").write_text("made")


def kind(name, settings, version=1, outside=None):
    return StageKind(name, settings, write, lambda *_: {}, "dataset", version, "shards", outside=outside)


KINDS = {"make": kind("make", Make), "change": kind("change", Change), "alter": kind("alter", Change)}


@pytest.fixture
def pipeline(tmp_path):
    """data -> left -> scores, data -> right"""

    def build(data=None, left=None, right=None, scores=None):
        stages = {
            "data": Make(**(data or {})),
            "right": Change(**{"data": "data", **(right or {})}),
            "scores": Change(**{"data": "left", **(scores or {})}),
            "left": Change(**{"data": "data", **(left or {})}),
        }
        return Pipeline(name="test", root=str(tmp_path), stages=stages).checked(KINDS)

    return build


def run(plan, *names):
    """Does what is to be done, or only the stages called so."""
    for planned in plan.work():
        stage = planned.stage
        if not names or stage.name in names:
            inputs = {field: Artifact.open(plan.stage(name).folder) for field, name in stage.inputs.items()}
            execute(stage.kind, stage.name, stage.settings, inputs, stage.folder, Worker())


def states(plan):
    return {planned.stage.name: planned.state for planned in plan.stages}


def reasons(plan):
    return {planned.stage.name: planned.reason for planned in plan.stages if planned.reason}


def test_at_first_everything_will_run_in_an_order_that_works(pipeline):
    plan = make_plan(pipeline(), kinds=KINDS)
    assert states(plan) == dict.fromkeys(("data", "right", "left", "scores"), "will run")
    assert list(states(plan)) == ["data", "right", "left", "scores"]
    assert set(reasons(plan).values()) == {"never run"}


def test_when_everything_is_done_nothing_is_left_to_do(pipeline):
    run(make_plan(pipeline(), kinds=KINDS))
    plan = make_plan(pipeline(), kinds=KINDS)
    assert set(states(plan).values()) == {"done"}
    assert plan.work() == [] and reasons(plan) == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"left": {"steps": 7}}, {"left": "left.steps 5 -> 7", "scores": "left changed"}),
        ({"right": {"optimizer": Optimizer(rate=0.25)}}, {"right": "right.optimizer.rate 0.5 -> 0.25"}),
        (
            {"data": {"samples": 4}},
            {"data": "data.samples 3 -> 4", "left": "data changed", "right": "data changed", "scores": "left changed"},
        ),
        ({"scores": {"data": "right"}}, {"scores": "scores.data left -> right"}),
        ({"scores": {"data": "right", "steps": 6}}, {"scores": "scores.data left -> right, scores.steps 5 -> 6"}),
        ({"scores": {"run": "alter"}}, {"scores": "scores.run change -> alter"}),
        ({"left": {"threads": 2}, "data": {"path": "/x"}}, {}),
        (
            {"right": {"steps": 1, "optimizer": Optimizer(name="sgd" * 16, rate=1.0), "data": "left"}},
            {"right": f"right.data data -> left, right.steps 5 -> 1, right.optimizer.name adam -> {('sgd' * 16)[:37]}... and 1 more"},
        ),
    ],
)
def test_a_change_reruns_the_stage_and_what_depends_on_it_and_nothing_else(pipeline, changes, expected):
    run(make_plan(pipeline(), kinds=KINDS))
    plan = make_plan(pipeline(**changes), kinds=KINDS)
    assert reasons(plan) == expected
    assert {name for name, state in states(plan).items() if state == "will run"} == expected.keys()


def test_a_new_version_of_a_stage_is_a_reason(pipeline):
    run(make_plan(pipeline(), kinds=KINDS))
    kinds = {**KINDS, "make": kind("make", Make, version=2)}
    assert reasons(make_plan(pipeline(), kinds=kinds))["data"] == "stage version 1 -> 2"


def test_changed_data_from_outside_is_a_reason(pipeline):
    def outside(content):
        return {**KINDS, "make": kind("make", Make, outside=lambda settings, digest: {"folder": content})}

    first = make_plan(pipeline(), kinds=outside("a")).stage("data")
    begin(first.folder, first.kind, first.name, first.settings, {}, first.fingerprint, first.outside)
    assert reasons(make_plan(pipeline(), kinds=outside("b")))["data"] == "folder changed outside"


def test_the_reason_compares_with_the_newest_artifact(pipeline):
    for number, steps in enumerate((5, 7, 6)):
        plan = make_plan(pipeline(left={"steps": steps}), kinds=KINDS)
        run(plan)
        stamp = 1_000_000_000 + (1, 3, 2)[number]
        os.utime(plan.stage("left").folder / "stage.json", (stamp, stamp))
    assert reasons(make_plan(pipeline(left={"steps": 9}), kinds=KINDS))["left"] == "left.steps 7 -> 9"


def test_a_setting_that_appeared_or_vanished_is_a_reason(pipeline):
    plan = make_plan(pipeline(), kinds=KINDS)
    run(plan)
    record = plan.stage("data").folder / "stage.json"
    record.write_text(record.read_text().replace('"samples"', '"sample"'))
    assert reasons(make_plan(pipeline(data={"samples": 4}), kinds=KINDS))["data"] == "data.samples absent -> 4, data.sample 3 -> absent"


def test_a_stage_that_was_stopped_will_resume_and_says_where(pipeline):
    plan = make_plan(pipeline(), kinds=KINDS)
    stage = plan.stage("data")
    begin(stage.folder, stage.kind, stage.name, stage.settings, {}, stage.fingerprint)
    assert reasons(make_plan(pipeline(), kinds=KINDS))["data"] == "begun, not finished"
    ProgressFile(stage.folder, 0)(2, 3, "samples", {})
    again = make_plan(pipeline(), kinds=KINDS)
    assert states(again)["data"] == "will resume"
    assert reasons(again)["data"] == "stopped at 2 of 3 samples"


@pytest.mark.parametrize(
    ("selection", "work"),
    [
        ({"only": ["data"]}, ["data"]),
        ({"until": ["left"]}, ["data", "left"]),
        ({"until": ["left", "right"]}, ["data", "right", "left"]),
        ({"start": ["data"]}, ["data", "right", "left", "scores"]),
        ({"start": ["data"], "until": ["scores"]}, ["data", "left", "scores"]),
    ],
)
def test_a_part_of_the_stages_is_selected(pipeline, selection, work):
    plan = make_plan(pipeline(), **selection, kinds=KINDS)
    assert [planned.stage.name for planned in plan.work()] == work
    assert all(planned.state == "unselected" for planned in plan.stages if planned.stage.name not in work)


def test_a_selected_stage_that_is_done_stays_done(pipeline):
    run(make_plan(pipeline(), kinds=KINDS), "data")
    plan = make_plan(pipeline(), start=["data"], until=["left"], kinds=KINDS)
    assert states(plan) == {"data": "done", "right": "unselected", "left": "will run", "scores": "unselected"}


def test_a_selection_whose_inputs_are_not_there_is_refused(pipeline):
    with pytest.raises(ConfigError, match="left needs data, which is not done and not selected; begin with --from data"):
        make_plan(pipeline(), start=["left"], kinds=KINDS)


@pytest.mark.parametrize("option", ["only", "start", "until", "force"])
def test_an_unknown_stage_is_refused_with_the_nearest_name(pipeline, option):
    with pytest.raises(ConfigError, match=r"there is no stage called 'lefft'; did you mean left\?"):
        make_plan(pipeline(), **{option: ["lefft"]}, kinds=KINDS)


def test_force_makes_a_stage_again_and_all_that_depend_on_it(pipeline):
    run(make_plan(pipeline(), kinds=KINDS))
    plan = make_plan(pipeline(), force=["left"], kinds=KINDS)
    assert reasons(plan) == {"left": "--force", "scores": "left made again"}
    assert [planned.stage.name for planned in plan.stages if planned.forced] == ["left", "scores"]


def test_force_does_not_begin_an_unfinished_stage_from_scratch(pipeline):
    plan = make_plan(pipeline(), kinds=KINDS)
    stage = plan.stage("data")
    begin(stage.folder, stage.kind, stage.name, stage.settings, {}, stage.fingerprint)
    assert not any(planned.forced for planned in make_plan(pipeline(), force=["data"], kinds=KINDS).stages)


@pytest.mark.parametrize("damage", ["unlink", "truncate", "record"])
def test_a_damaged_artifact_is_named_with_the_way_out(pipeline, damage):
    plan = make_plan(pipeline(), kinds=KINDS)
    run(plan)
    made = plan.stage("left").folder / "made.txt"
    if damage == "unlink":
        made.unlink()
    elif damage == "truncate":
        made.write_text("m")
    else:
        (made.parent / "DONE.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"left is damaged: .*; worldloom run FILE --force left makes it again"):
        make_plan(pipeline(), kinds=KINDS)
    assert states(make_plan(pipeline(), force=["left"], kinds=KINDS))["left"] == "will run"


def test_what_will_be_written_is_estimated_from_what_comes_before(pipeline):
    def make(settings, inputs):
        return Estimate(samples=settings.samples, bytes=1000 * settings.samples)

    def change(settings, inputs):
        return inputs["data"]._replace(bytes=10)

    kinds = {**KINDS, "make": replace(KINDS["make"], estimate=make), "change": replace(KINDS["change"], estimate=change)}
    plan = make_plan(pipeline(data={"samples": 17}), kinds=kinds)
    assert {planned.stage.name: planned.estimate[:3:2] for planned in plan.stages} == {
        "data": (17, 17_000),
        "left": (17, 10),
        "right": (17, 10),
        "scores": (17, 10),
    }
    run(plan, "data")
    assert make_plan(pipeline(data={"samples": 17}), kinds=kinds).stages[0].estimate.bytes == len("made")  # as it is, once it is done
    assert make_plan(pipeline(), kinds=KINDS).stages[0].estimate == Estimate()


def test_a_stage_that_will_run_again_says_what_it_took_last_time(pipeline):
    plan = make_plan(pipeline(), kinds=KINDS)
    run(plan, "data")
    assert make_plan(pipeline(data={"samples": 4}), kinds=KINDS).stages[0].seconds is None
    (plan.stage("data").folder / "logs" / "times.jsonl").write_text('{"seconds": 1.5}\n{"seconds": 2}\n')
    assert make_plan(pipeline(data={"samples": 4}), kinds=KINDS).stages[0].seconds == 3.5
    assert make_plan(pipeline(), kinds=KINDS).stages[0].seconds is None


def test_the_plan_keeps_the_pipeline_as_it_is_run(pipeline):
    plan = make_plan(pipeline(data={"samples": 17}), kinds=KINDS)
    assert plan.name == "test"
    assert "samples: 17" in plan.text
    assert [stage.name for stage in plan.all_stages()] == ["data", "right", "left", "scores"]
