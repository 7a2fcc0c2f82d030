"""What a guard against hanging leaves behind; that it ends a rank that hangs is tested with the training loop."""

import pytest

from worldloom.stages.hang_guard import forget_hung_ranks, hang_guard, hung_ranks
from worldloom.stages.worker import Interrupted


def test_a_training_that_was_stopped_did_not_hang_and_leaves_no_word_of_it(tmp_path):
    with pytest.raises(Interrupted), hang_guard(tmp_path / "logs", 1, 60.0) as alive:
        alive()
        assert (tmp_path / "logs" / "hung-rank-1.txt").exists()
        raise Interrupted
    assert not list((tmp_path / "logs").iterdir())


def test_who_hung_has_left_words_and_who_was_killed_an_empty_file(tmp_path):
    for rank, words in ((0, ""), (2, "Thread 0x1 in _sleep"), (11, "Thread 0x2")):
        (tmp_path / f"hung-rank-{rank}.txt").write_text(words)
    (tmp_path / "hung-rank-x.txt").write_text("no rank")
    assert hung_ranks(tmp_path) == [2, 11] and hung_ranks(tmp_path / "nowhere") == []
    forget_hung_ranks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["hung-rank-x.txt"] and hung_ranks(tmp_path) == []
