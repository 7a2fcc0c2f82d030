import json
import os
from pathlib import Path
from typing import Annotated, Literal

import pytest

from worldloom.stages import artifact, disk
from worldloom.stages.artifact import Artifact, ArtifactError, Busy, InputChanged, begin, clean, complete, discard, execute, lock
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, DatasetRef, StageSettings
from worldloom.stages.worker import Interrupted, Worker


class Write(StageSettings):
    run: Literal["write"] = "write"
    text: str = "abc"
    noise: Annotated[int, NOT_IN_OUTPUT] = 0


class Copy(StageSettings):
    run: Literal["copy"] = "copy"
    data: DatasetRef


def run(settings, inputs, out, worker):
    worker.check()
    text = settings.text if isinstance(settings, Write) else inputs["data"].content("deep/text").decode().upper()
    disk.write_file(out / "deep" / "text", text.encode())
    (out / "logs" / "when.txt").write_text(str(os.times()))


def finish(settings, inputs, out):
    return {"letters": len((out / "deep" / "text").read_bytes())}


WRITE = StageKind("write", Write, run, finish, "dataset", 1, "shards")
COPY = StageKind("copy", Copy, run, finish, "dataset", 1, "shards")


def place(tmp_path, name="data", fingerprint="f00d"):
    return tmp_path / "artifacts" / name / fingerprint


def make(tmp_path, worker=None, **settings):
    return execute(WRITE, "data", Write(**settings), {}, place(tmp_path), worker or Worker())


def test_a_stage_leaves_an_artifact_that_says_what_it_is(tmp_path):
    made = make(tmp_path)
    assert (made.name, made.kind, made.produces, made.fingerprint) == ("data", "write", "dataset", "f00d")
    assert made.settings == {"run": "write", "text": "abc", "noise": 0}
    assert made.counts == {"letters": 3}
    assert made.files() == ("deep/text",)
    assert made.path("deep/text").read_bytes() == made.content("deep/text") == b"abc"
    assert made.bytes == 3
    assert Artifact.open(place(tmp_path)) == made


def test_two_runs_leave_the_same_manifest_to_the_byte(tmp_path):
    manifests = []
    for folder in ("one", "two"):
        make(tmp_path / folder)
        manifests.append((place(tmp_path / folder) / "DONE.json").read_bytes())
    assert manifests[0] == manifests[1]
    assert str(tmp_path).encode() not in manifests[0]


def test_only_what_a_reader_needs_stays_behind(tmp_path):
    make(tmp_path)
    names = sorted(path.name for path in place(tmp_path).iterdir())
    assert names == ["DONE.json", "deep", "logs", "numerics.json", "stage.json"]


def test_an_artifact_finds_its_inputs_beside_it_wherever_the_root_lies(tmp_path):
    data = make(tmp_path / "old")
    execute(COPY, "copied", Copy(data="data"), {"data": data}, place(tmp_path / "old", "copied", "beef"), Worker())
    (tmp_path / "old").rename(tmp_path / "new")
    copied = Artifact.open(place(tmp_path / "new", "copied", "beef"))
    assert copied.content("deep/text") == b"ABC"
    assert copied.input("data").content("deep/text") == b"abc"
    with pytest.raises(ArtifactError, match="has no input 'date'; it has data"):
        copied.input("date")


def test_a_finished_stage_is_not_run_again(tmp_path, monkeypatch):
    first = make(tmp_path)
    before = os.stat(place(tmp_path) / "deep" / "text")
    assert make(tmp_path) == first
    assert os.stat(place(tmp_path) / "deep" / "text").st_mtime_ns == before.st_mtime_ns


def test_an_interrupted_stage_goes_on(tmp_path):
    with pytest.raises(Interrupted):
        make(tmp_path, Worker(stopping=lambda: True))
    with pytest.raises(ArtifactError, match=r"has no DONE.json: the stage has not finished: run the pipeline again"):
        Artifact.open(place(tmp_path))
    assert make(tmp_path).counts == {"letters": 3}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "stage.json").unlink(), "has no stage.json: it was never begun"),
        (lambda out: (out / "DONE.json").write_text("{"), r"DONE.json is damaged; remove the folder and run again"),
        (lambda out: (out / "DONE.json").write_text('{"format": 99}'), "not of format 1; it was written by another version"),
        (lambda out: (out / "DONE.json").write_text('{"format": 1, "fingerprint": "x"}'), "speak of different artifacts"),
    ],
)
def test_a_damaged_artifact_is_not_opened(tmp_path, damage, message):
    make(tmp_path)
    damage(place(tmp_path))
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(place(tmp_path))


def test_files_that_changed_are_noticed(tmp_path):
    made = make(tmp_path)
    file = place(tmp_path) / "deep" / "text"
    file.write_bytes(b"abd")
    with pytest.raises(InputChanged, match="is not what was committed"):
        made.content("deep/text")
    file.write_bytes(b"ab")
    with pytest.raises(ArtifactError, match=r"has 2 bytes, DONE.json says 3; remove .* and run again"):
        made.path("deep/text")
    file.unlink()
    with pytest.raises(ArtifactError, match="is missing; remove"):
        made.path("deep/text")
    with pytest.raises(ArtifactError, match="has no file 'shallow'"):
        made.path("shallow")


def test_a_stage_cannot_be_begun_in_the_folder_of_another(tmp_path):
    begin(place(tmp_path), WRITE, "data", Write(), {}, "f00d")
    with pytest.raises(ArtifactError, match="was begun with stage = 'data', now it is 'other'"):
        begin(place(tmp_path), WRITE, "other", Write(), {}, "f00d")


def test_settings_outside_the_output_may_change_between_two_tries(tmp_path):
    begin(place(tmp_path), WRITE, "data", Write(noise=1), {}, "f00d")
    begin(place(tmp_path), WRITE, "data", Write(noise=2), {}, "f00d")


def test_completing_twice_is_fine_and_with_another_result_is_not(tmp_path):
    out = place(tmp_path)
    begin(out, WRITE, "data", Write(), {}, "f00d")
    complete(out, {"letters": 0})
    complete(out, {"letters": 0})
    with pytest.raises(ArtifactError, match="finished before with another result"):
        complete(out, {"letters": 1})


def test_only_one_run_at_a_time_holds_an_artifact_and_the_holder_is_named(tmp_path):
    out = place(tmp_path)
    holder = f"is being worked on by process {os.getpid()} on .*; wait for it or stop it"
    with lock(out), pytest.raises(Busy, match=holder), lock(out):
        pass
    with lock(out):
        pass


def test_the_lock_of_a_dead_process_is_free(tmp_path):
    child = os.fork()
    if child == 0:
        with lock(place(tmp_path)):
            os._exit(0)
    os.waitpid(child, 0)
    with lock(place(tmp_path)):
        pass


def test_a_lock_whose_folder_was_cleaned_is_taken_anew(tmp_path, monkeypatch):
    out = place(tmp_path)
    begin(out, WRITE, "data", Write(), {}, "f00d")
    real, cleaned = artifact.fcntl.flock, []

    def clean_first(file, how):
        if not cleaned:
            cleaned.append(True)
            (out / "DONE.json").touch()
            clean(out)
        real(file, how)

    monkeypatch.setattr(artifact.fcntl, "flock", clean_first)
    with lock(out):
        assert (out / "staging" / "run.lock").exists()
        with pytest.raises(Busy), lock(out):
            pass


def test_a_discarded_artifact_is_an_unfinished_one(tmp_path):
    make(tmp_path)
    with lock(place(tmp_path)):
        discard(place(tmp_path))
    assert [path.name for path in place(tmp_path).iterdir()] == ["staging"]
    assert make(tmp_path).counts == {"letters": 3}


def test_an_unfinished_artifact_is_not_continued_where_numbers_round_differently(tmp_path):
    with pytest.raises(Interrupted):
        make(tmp_path, Worker(threads=1, stopping=lambda: True))
    with pytest.raises(
        ValueError, match="was begun with threads = 1, here it is 2, so the rest would be computed differently; go on where"
    ):
        make(tmp_path, Worker(threads=2))
    assert make(tmp_path, Worker(threads=1)).counts == {"letters": 3}
    assert make(tmp_path, Worker(threads=2)).counts == {"letters": 3}  # finished: it outlives an upgrade


def test_numerics_are_found_without_importing_what_they_name(tmp_path):
    make(tmp_path)
    block = json.loads((Path(place(tmp_path)) / "numerics.json").read_bytes())
    assert {"device", "cpu_capability", "bf16", "threads", "torch", "numpy", "pillow", "sentencepiece", "deepspeed"} == set(block)
    assert block["cpu_capability"] in ("DEFAULT", "AVX2", "AVX512", os.uname().machine)
