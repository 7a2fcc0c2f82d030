"""What a run, a stage or a folder serves, and under which names."""

import pytest

from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.service.served import find_served


def test_a_run_serves_its_tokenizers_by_stream_and_its_world(clocked_root):
    served = find_served([str(clocked_root)])
    assert [place.name for place in served.tokenizers] == ["clip", "push", "sound", "words"]
    assert served.world == clocked_root / "artifacts" / "world" / "0123456789abcdef" and served.encoders == ()
    assert served.tokenizers[0].stream["frames"] == 5, "a tokenizer of pictures serves clips as the stream has them"


def test_a_stage_and_a_folder_serve_one_tokenizer_by_its_stages_name(clocked_root):
    folder = clocked_root / "artifacts" / "clip_codes" / "0123456789abcdef" / "tokenizer"
    for name in (f"{clocked_root}:clip_codes", str(folder), str(folder.parent)):
        (place,) = find_served([name]).tokenizers
        assert (place.name, place.stage, place.folder, place.stream) == ("clip_codes", "clip_codes", folder, None)


def test_two_tokenizers_of_one_name_are_refused(tiny_root, clocked_root):
    with pytest.raises(ValueError, match="would both be called words"):
        find_served([str(tiny_root), str(clocked_root)])


def test_where_there_is_nothing_to_serve_that_is_said(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        find_served([str(tmp_path)])
