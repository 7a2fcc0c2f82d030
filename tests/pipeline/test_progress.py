from worldloom.pipeline import progress
from worldloom.pipeline.progress import Progress, ProgressFile, clear_progress, read_progress


def test_the_parts_of_the_workers_add_up(tmp_path):
    clear_progress(tmp_path)
    ProgressFile(tmp_path, 0)(2, 7, "shards", {})
    ProgressFile(tmp_path, 1)(3, 7, "shards", {"refused": 1.5})
    assert read_progress(tmp_path) == Progress(5, 7, "shards", {"refused": 1.5})


def test_nothing_said_is_none(tmp_path):
    assert read_progress(tmp_path) is None
    clear_progress(tmp_path)
    assert read_progress(tmp_path) is None


def test_a_worker_writes_seldom_but_never_forgets_the_end(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    clear_progress(tmp_path)
    report = ProgressFile(tmp_path, 0)
    report(1, 9, "steps", {})
    report(2, 9, "steps", {})
    assert read_progress(tmp_path).done == 1
    now[0] += progress.WRITE_EVERY
    report(3, 9, "steps", {})
    assert read_progress(tmp_path).done == 3
    report(9, 9, "steps", {})
    assert read_progress(tmp_path).done == 9


def test_an_earlier_run_is_forgotten(tmp_path):
    clear_progress(tmp_path)
    ProgressFile(tmp_path, 5)(1, 2, "steps", {})
    clear_progress(tmp_path)
    assert read_progress(tmp_path) is None


def test_a_file_that_is_cut_short_is_passed_over(tmp_path):
    clear_progress(tmp_path)
    ProgressFile(tmp_path, 0)(1, 2, "steps", {})
    (progress.folder(tmp_path) / "1.json").write_text('{"done": 1')
    (progress.folder(tmp_path) / "2.json").write_text("[]")
    assert read_progress(tmp_path).done == 1


def test_a_worker_that_outlived_its_run_may_still_speak(tmp_path):
    clear_progress(tmp_path / "out")
    report = ProgressFile(tmp_path / "out", 0)
    (progress.folder(tmp_path / "out")).rmdir()
    report(1, 2, "steps", {})
