"""Lines of metrics: one a step, whatever was interrupted."""

import pytest

from worldloom.stages.metrics import Metrics, read


def write(logs, start, steps):
    metrics = Metrics(logs, start)
    for step in steps:
        metrics.write(step, 0.5 * step, {"loss": 1 / 3 / step})
    metrics.close()


def test_numbers_come_back_to_the_last_bit(tmp_path):
    write(tmp_path, 0, [1, 2])
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "time": 0.5, "loss": 1 / 3}, {"step": 2, "time": 1.0, "loss": 1 / 6}]


def test_lines_behind_the_checkpoint_are_written_again_once(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, 2, [3, 4, 5])
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_torn_last_line_is_dropped(tmp_path):
    write(tmp_path, 0, [1, 2])
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')
    write(tmp_path, 2, [3])
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_without_a_file_there_are_no_lines(tmp_path):
    assert read(tmp_path / "metrics.jsonl") == []


def test_tensorboard_gets_the_same(tmp_path):
    write(tmp_path, 0, [1, 2])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step"\n{"step": 2}\n')
    with pytest.raises(ValueError):
        read(tmp_path / "metrics.jsonl")
