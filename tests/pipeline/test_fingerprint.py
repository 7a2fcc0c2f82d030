import errno
import os
import time
from typing import Annotated, Literal

import pytest

from worldloom.pipeline import fingerprint as module
from worldloom.pipeline.fingerprint import Digests, fingerprint
from worldloom.stages.disk import digest
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import NOT_IN_OUTPUT, StageSettings


class Draw(StageSettings):
    run: Literal["draw"] = "draw"
    samples: int = 3
    rate: float = 1.0
    threads: Annotated[int, NOT_IN_OUTPUT] = 1


def kind(version=1, name="draw"):
    return StageKind(name, Draw, lambda *_: None, lambda *_: {}, "dataset", version, "shards")


BASE = {"name": "data", "kind": kind(), "settings": Draw(), "inputs": {"a": "0" * 64}, "outside": {"folder": "1" * 64}}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"settings": Draw(threads=2)}, True),
        ({"settings": Draw(samples=3, rate=1.0)}, True),
        ({"settings": Draw(samples=4)}, False),
        ({"settings": Draw(rate=1.5)}, False),
        ({"name": "other"}, False),
        ({"kind": kind(version=2)}, False),
        ({"kind": kind(name="paint")}, False),
        ({"inputs": {"a": "2" * 64}}, False),
        ({"inputs": {"b": "0" * 64}}, False),
        ({"inputs": {}}, False),
        ({"outside": {"folder": "3" * 64}}, False),
    ],
)
def test_it_changes_with_what_can_change_the_output_and_with_nothing_else(changes, same):
    assert (fingerprint(**{**BASE, **changes}) == fingerprint(**BASE)) is same


def test_it_is_the_same_on_every_machine_and_in_every_release():
    assert fingerprint("data", kind(), Draw(), {}, {}) == "63b09e2196fb4d1d19df1dd6a475f6452f2ceee8b5f2ecbebfea34f7d317553d"


def aged(path):
    """The file as if nobody had touched it for a while; its ctime cannot be set, so the test's clock goes ahead instead."""
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


@pytest.fixture
def later(monkeypatch):
    now = time.time() + 60
    monkeypatch.setattr(module.time, "time", lambda: now)


@pytest.fixture
def hashed(monkeypatch):
    """The files that were read."""
    names = []
    monkeypatch.setattr(module, "digest", lambda path: names.append(path.name) or digest(path))
    return names


def test_a_file_is_hashed_once_and_again_only_after_a_change(tmp_path, later, hashed):
    file, cache = tmp_path / "x.bin", tmp_path / "cache" / "digests.json"
    file.write_bytes(b"one")
    digests = Digests(cache)
    first = digests(aged(file))
    digests.save()
    again = Digests(cache)
    assert again(file) == first == digest(file)
    assert hashed == ["x.bin"]
    file.write_bytes(b"two")  # the same size
    assert again(aged(file)) != first  # and the same mtime: the ctime gives it away
    assert hashed == ["x.bin", "x.bin"]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, hashed):
    file = tmp_path / "x.bin"
    file.write_bytes(b"one")
    digests = Digests(tmp_path / "digests.json")
    digests(file), digests(file)
    digests.save()
    assert hashed == ["x.bin", "x.bin"]
    assert not (tmp_path / "digests.json").exists()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, later, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("worldloom.pipeline.fingerprint.write_file", full)
    (tmp_path / "x").write_bytes(b"one")
    digests = Digests(tmp_path / "digests.json")
    assert digests(aged(tmp_path / "x")) == digest(tmp_path / "x")
    digests.save()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": []}'])
def test_a_damaged_cache_is_an_empty_one(tmp_path, content, later):
    (tmp_path / "digests.json").write_text(content)
    (tmp_path / "x").write_bytes(b"one")
    assert Digests(tmp_path / "digests.json")(tmp_path / "x") == digest(tmp_path / "x")
