"""Profiles reach the workers, and what cannot be is refused."""

import json

import pytest
from pydantic import ValidationError

from worldloom.pipeline.profiles import Profile, executor_of


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_how_a_gang_shares_its_memory_comes_from_the_profile(executor):
    made = executor_of(Profile.model_validate_json(json.dumps({"executor": executor, "train": {"zero": 3, "offload": "cpu"}})))
    assert (made.zero, made.offload) == (3, "cpu")


def test_nothing_is_offloaded_without_zero():
    with pytest.raises(ValidationError, match="offload: cpu moves what ZeRO shares out, and zero is 0; set zero to 1, 2 or 3"):
        Profile.model_validate_json(json.dumps({"train": {"zero": 0, "offload": "cpu"}}))
