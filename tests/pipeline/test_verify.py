import random
from typing import Literal

import pytest

from worldloom.pipeline.verify import verify_artifact, verify_run
from worldloom.stages.artifact import begin, execute
from worldloom.stages.commit import Commits
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import StageSettings
from worldloom.stages.worker import Worker

SHARDS = ("train/shard-000000", "train/shard-000001")


class Draw(StageSettings):
    run: Literal["draw"] = "draw"


def run(settings, inputs, out, worker):
    commits = Commits.of(out)
    for number, shard in enumerate(worker.share(SHARDS)):
        with commits.attempt(shard) as attempt:
            attempt.create(f"data/{shard}.tar").write(random.Random(number).randbytes(101 + number))
            attempt.commit([f"key-{number}"])


def finish(settings, inputs, out):
    return {"samples": Commits.of(out).finish(SHARDS).n_out}


DRAW = StageKind("draw", Draw, run, finish, "dataset", 1, "shards")


@pytest.fixture
def out(tmp_path):
    out = tmp_path / "artifacts" / "data" / "f00d"
    execute(DRAW, "data", Draw(), {}, out, Worker())
    return out


@pytest.fixture
def unfinished(tmp_path):
    out = tmp_path / "artifacts" / "data" / "f00d"
    begin(out, DRAW, "data", Draw(), {}, "f00d")
    run(Draw(), {}, out, Worker())
    return out


def test_what_was_committed_is_whole(out, tmp_path):
    verified = verify_artifact(out)
    assert (verified.files, verified.bytes, verified.finished, verified.damages) == (2, 203, True, ())
    assert verify_run(tmp_path) == []


def test_every_flipped_bit_is_found_and_the_file_is_named(out, tmp_path):
    draw = random.Random(7)
    for _ in range(40):
        path = out / "data" / f"{draw.choice(SHARDS)}.tar"
        right = path.read_bytes()
        wrong = bytearray(right)
        wrong[draw.randrange(len(right))] ^= 1 << draw.randrange(8)
        path.write_bytes(wrong)
        ((file, problem),) = verify_artifact(out).damages
        assert file == path
        assert "DONE.json says" in problem
        path.write_bytes(right)
    assert verify_run(tmp_path) == []


def test_cut_missing_swapped_and_strange_files_are_found(out, tmp_path):
    first, second = (out / "data" / f"{shard}.tar" for shard in SHARDS)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(one[:50])
    assert [damage.file for damage in verify_artifact(out).damages] == [first]
    first.write_bytes(two)
    second.write_bytes(one)
    assert [damage.file for damage in verify_artifact(out).damages] == [first, second]
    second.write_bytes(two)
    first.unlink()
    assert [damage.file for damage in verify_artifact(out).damages] == [first]
    first.write_bytes(one)
    (out / "data" / "stranger").touch()
    assert [(damage.file.name, damage.problem) for damage in verify_artifact(out).damages] == [("stranger", "is not named by DONE.json")]
    assert verify_run(tmp_path) == [f"{out / 'data' / 'stranger'}: is not named by DONE.json"]


def test_a_finished_artifact_that_has_lost_its_first_record_is_found(out, tmp_path):
    (out / "stage.json").unlink()
    (line,) = verify_run(tmp_path)
    assert "has no stage.json" in line


def test_logs_may_be_whatever_they_are(out):
    (out / "logs" / "more.txt").write_text("words")
    assert verify_artifact(out).damages == ()


def test_a_damaged_manifest_is_found(out):
    (out / "DONE.json").write_text("{")
    assert "is damaged" in verify_artifact(out).damages[0].problem


def test_an_unfinished_artifact_is_checked_against_its_commits(unfinished):
    verified = verify_artifact(unfinished)
    assert (verified.files, verified.finished, verified.damages) == (2, False, ())
    tar, gone = (unfinished / "objects" / Commits.of(unfinished).find(shard).files[f"data/{shard}.tar"].sha256 for shard in SHARDS)
    tar.write_bytes(b"x" * 101)
    gone.unlink()
    problems = [damage.problem for damage in verify_artifact(unfinished).damages]
    assert problems == [
        "is not what was committed as data/train/shard-000000.tar of shard train/shard-000000",
        "is missing; it is data/train/shard-000001.tar of shard train/shard-000001",
    ]


def test_a_damaged_record_of_an_unfinished_artifact_is_found_and_left_alone(unfinished):
    record = unfinished / "staging" / "commits" / "train" / "shard-000001.json"
    record.write_bytes(b"{}")
    assert [(damage.file, damage.problem) for damage in verify_artifact(unfinished).damages] == [(record, "is damaged")]
    assert record.exists()


def test_a_stage_record_that_cannot_be_read_is_found(unfinished):
    (unfinished / "stage.json").write_text("{")
    assert [damage.problem for damage in verify_artifact(unfinished).damages] == ["cannot be read"]
