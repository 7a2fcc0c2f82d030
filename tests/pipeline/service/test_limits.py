"""Limits are numbers, from the environment or as they are by default."""

import pytest

from worldloom.pipeline.service.limits import Limits, limits_of


def test_limits_come_from_the_environment_and_a_wrong_one_is_named():
    assert limits_of({"WORLDLOOM_BODY_BYTES": "1000"}).body_bytes == 1000 and limits_of({}) == Limits()
    with pytest.raises(ValueError, match="WORLDLOOM_QUEUED=-1: input should be greater than 0"):
        limits_of({"WORLDLOOM_QUEUED": "-1"})
