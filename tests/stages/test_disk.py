import errno
import json
import os
import threading

import pytest

from worldloom.stages import disk


def test_of_many_writers_of_one_name_exactly_one_wins(tmp_path):
    wins = []

    def race(writer):
        for name in range(50):
            source = tmp_path / f"{writer}-{name}"
            source.write_text(str(writer))
            if disk.publish(source, tmp_path / f"name-{name}"):
                wins.append((name, str(writer)))

    threads = [threading.Thread(target=race, args=(writer,)) for writer in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in wins) == list(range(50))
    assert all((tmp_path / f"name-{name}").read_text() == writer for name, writer in wins)


def test_a_taken_name_keeps_its_bytes(tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "theirs").write_bytes(b"theirs")
    assert disk.publish(tmp_path / "mine", tmp_path / "theirs") is False
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert disk.write_new_file(tmp_path / "theirs", b"mine") is False
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_a_taken_name_is_made_durable_for_whoever_made_it(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(disk, "fsync_folder", synced.append)
    (tmp_path / "one").write_bytes(b"")
    (tmp_path / "two").write_bytes(b"")
    disk.publish(tmp_path / "one", tmp_path / "two")
    assert synced == [tmp_path]


def test_writing_a_file_replaces_it_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    disk.write_file(path, b"one")
    disk.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_error_of_the_disk_leaves_the_old_content_and_no_rubbish(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    disk.write_file(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, call, fail)
    with pytest.raises(OSError, match="No space left"):
        disk.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named():
    with open("/dev/full", "wb") as full, pytest.raises(OSError, match=r"No space left on device: '/dev/full'") as caught:
        disk.write(full, b"x" * 100_000)
    assert caught.value.errno == errno.ENOSPC


def test_canonical_json_depends_on_the_value_alone():
    assert disk.canonical_json({"b": [1, 2.5], "a": "é"}) == disk.canonical_json(json.loads('{ "a": "\\u00e9", "b": [1, 2.5] }'))
    assert disk.canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


def test_canonical_json_refuses_what_json_cannot_say():
    with pytest.raises(ValueError, match="Out of range float"):
        disk.canonical_json({"loss": float("nan")})


def test_a_digest_is_the_sha256_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert disk.digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
