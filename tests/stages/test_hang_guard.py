"""What a guard against hanging leaves behind; that it ends a rank that hangs is tested with the training loop."""

import pytest

from worldloom.stages.hang_guard import hang_guard
from worldloom.stages.worker import Interrupted


def test_a_training_that_was_stopped_did_not_hang_and_leaves_no_word_of_it(tmp_path):
    with pytest.raises(Interrupted), hang_guard(tmp_path / "logs", 1, 60.0) as alive:
        alive()
        assert (tmp_path / "logs" / "hung-rank-1.txt").exists()
        raise Interrupted
    assert not list((tmp_path / "logs").iterdir())
