import errno
import io
import json
import os
from typing import NamedTuple

import pytest

from worldloom.stages import disk
from worldloom.stages.commit import CommitError, Commits, NonDeterministicOutput, TooManyRejects

SHARDS = ("train/shard-000000", "train/shard-000001")
CALLS = ("create", "write", "fsync", "link_new", "replace", "unlink", "fsync_folder")


class Refused(NamedTuple):
    """What a stage says of a sample that it refused; the shape of `Rejected`."""

    key: str
    code: str
    detail: str
    sha256: str


REFUSED = Refused("bad", "empty_input", "no bytes", "0" * 64)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """A process that dies takes nothing from the page cache with it: only the order of calls matters here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def commits(tmp_path):
    return make(tmp_path / "out")


def make(out):
    for folder in ("staging/attempts", "staging/commits", "objects"):
        disk.make_folder(out / folder)
    (out / "stage.json").write_text('{"fingerprint": "f00d"}')
    return Commits.of(out)


def write_shard(commits, shard, content=None, rejects=(), keys=None):
    with commits.attempt(shard) as attempt:
        with attempt.create(f"data/{shard}.tar") as file:
            file.write((content or shard).encode())
            file.write(b"\0" * 3)
        attempt.create(f"data/{shard}.idx.npy").write(b"index of " + shard.encode())
        return attempt.commit(keys or [f"{shard}/{n}".replace("/", "-") for n in (1, 0)], rejects, {"codes": 7})


def write_all(out):
    """What a worker and then the finish do; goes on where an earlier try stopped."""
    commits = make(out)
    commits.clear_attempts()
    for shard in SHARDS:
        if commits.find(shard) is None:
            write_shard(commits, shard, rejects=[REFUSED] if shard == SHARDS[1] else [])
    return commits.finish(SHARDS, max_reject_share=0.5, planned_samples=5)


def tree(out):
    """Final names and their bytes."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for folder in ("data", "rejects")
        for path in sorted((out / folder).rglob("*.*"))
    }


def test_a_committed_shard_has_its_files_counts_and_keys(commits):
    made = write_shard(commits, SHARDS[0], rejects=[REFUSED])
    assert commits.find(SHARDS[0]) == made
    assert (made.n_in, made.n_out, made.n_rejected, made.counts) == (3, 2, 1, {"codes": 7})
    assert (made.first_key, made.last_key) == ("train-shard-000000-0", "train-shard-000000-1")
    stored = made.files["data/train/shard-000000.tar"]
    assert (commits.objects / stored.sha256).read_bytes() == b"train/shard-000000\0\0\0"
    assert stored.bytes == 21
    assert disk.digest(commits.objects / stored.sha256) == stored.sha256


def test_nothing_is_done_without_a_commit(commits):
    with commits.attempt(SHARDS[0]) as attempt:
        attempt.create("data/x.tar").write(b"half")
    assert commits.find(SHARDS[0]) is None
    assert list(commits.attempts.iterdir()) == []
    with pytest.raises(CommitError, match="shard train/shard-000000 was never committed; run again"):
        commits.finish(SHARDS)


def test_finishing_gives_final_names_and_adds_up(tmp_path):
    totals = write_all(tmp_path / "out")
    assert (totals.n_in, totals.n_out, totals.n_rejected, totals.counts) == (5, 4, 1, {"codes": 14})
    assert sorted(tree(tmp_path / "out")) == [
        "data/train/shard-000000.idx.npy",
        "data/train/shard-000000.tar",
        "data/train/shard-000001.idx.npy",
        "data/train/shard-000001.tar",
        "rejects/train/shard-000001.jsonl",
    ]
    assert json.loads((tmp_path / "out/rejects/train/shard-000001.jsonl").read_text()) == REFUSED._asdict()


def test_finishing_twice_changes_nothing(tmp_path):
    first, before = write_all(tmp_path / "out"), tree(tmp_path / "out")
    assert write_all(tmp_path / "out") == first
    assert tree(tmp_path / "out") == before


def killed_at(out, number, lose_order=False):
    """Runs `write_all` in a process of its own that dies just before its call `number` of the disk; the calls made if it lived."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        made = 0

        def counted(call):
            def count(*arguments):
                nonlocal made
                if made == number:
                    os._exit(9)
                made += 1
                return call(*arguments)

            return count

        status = 1
        try:
            for name in CALLS:
                setattr(disk, name, counted(getattr(disk, name)))
            if lose_order:
                commit_before_data()
            write_all(out)
            os.write(writing, str(made).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return int(said) if code == 0 else None


def test_killed_before_every_call_of_the_disk_it_recovers_to_the_same_bytes(tmp_path):
    expected = write_all(tmp_path / "whole")
    calls = killed_at(tmp_path / "counting", number=-1)
    assert calls > 60
    for number in range(calls):
        out = tmp_path / f"killed-{number}"
        assert killed_at(out, number) is None
        totals = write_all(out)
        assert tree(out) == tree(tmp_path / "whole"), f"killed before call {number} of {calls}"
        assert totals[:4] == expected[:4]
        assert not list((out / "staging/attempts").iterdir())
        assert not (out / "staging/quarantine").exists()


def commit_before_data():
    """The bug that the test above must find: the record is linked although the objects are not."""
    from worldloom.stages.commit import Attempt, StoredFile

    def store_later(self, file):
        file.make_durable()
        return StoredFile(file.sha256, file.bytes)

    Attempt._store = store_later


def test_a_commit_before_its_data_is_noticed(tmp_path):
    """Control: with the bug the run fails, or what it leaves is found damaged and made again."""
    calls = killed_at(tmp_path / "counting", number=-1)
    for number in range(calls):
        out = tmp_path / f"killed-{number}"
        with pytest.raises(AssertionError):
            assert killed_at(out, number, lose_order=True) is None
            raise AssertionError
        write_all(out)
        if (out / "staging/quarantine").exists():
            return
    raise AssertionError("no crash showed the bug")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["create", "write", "fsync", "link_new", "fsync_folder"])
def test_every_error_of_the_disk_ends_the_try_without_a_commit_or_after_it(tmp_path, monkeypatch, call, error):
    write_all(tmp_path / "whole")
    real = getattr(disk, call)
    number = 0
    while True:
        out, left = tmp_path / f"out-{number}", number
        commits = make(out)

        def failing(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(error, os.strerror(error), "name")
            return real(*arguments)

        monkeypatch.setattr(disk, call, failing)
        try:
            write_shard(commits, SHARDS[0])
        except OSError as caught:
            assert caught.errno == error
        else:
            break
        finally:
            monkeypatch.setattr(disk, call, real)
        assert list(commits.attempts.iterdir()) == []
        write_all(out)
        assert tree(out) == tree(tmp_path / "whole")
        number += 1
    assert number >= 3


def test_a_file_is_never_synced_again_after_an_error(commits, monkeypatch):
    synced = []

    def fail(file):
        synced.append(file.name)
        raise OSError(errno.EIO, "Input/output error", file.name)

    monkeypatch.setattr(disk, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_shard(commits, SHARDS[0])
    assert len(synced) == len(set(synced)) == 1


def test_the_same_shard_made_twice_is_one_commit(commits):
    first = write_shard(commits, SHARDS[0])
    assert write_shard(commits, SHARDS[0]) == first


def test_a_shard_made_twice_with_other_bytes_fails_and_keeps_the_first(commits):
    first = write_shard(commits, SHARDS[0], "one")
    with pytest.raises(NonDeterministicOutput, match=r"train/shard-000000 was made twice and data/train/shard-000000.tar differs"):
        write_shard(commits, SHARDS[0], "two")
    assert commits.find(SHARDS[0]) == first
    contents = {path.read_bytes() for path in commits.objects.iterdir()}
    assert {b"one\0\0\0", b"two\0\0\0"} <= contents  # both stay, to be compared


def test_a_shard_made_twice_with_other_keys_fails(commits):
    write_shard(commits, SHARDS[0], keys=["a"])
    with pytest.raises(NonDeterministicOutput, match="the list of keys differs"):
        write_shard(commits, SHARDS[0], keys=["b"])


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"sha256": 1}', None])
def test_a_damaged_record_goes_to_quarantine_and_the_shard_is_made_again(commits, damage):
    made = write_shard(commits, SHARDS[0])
    record = commits.records / f"{SHARDS[0]}.json"
    record.write_bytes(record.read_bytes().replace(b'"n_in":2', b'"n_in":3') if damage is None else damage)
    assert commits.find(SHARDS[0]) is None
    assert len(list(commits.quarantine.iterdir())) == 1
    assert write_shard(commits, SHARDS[0]) == made


def test_a_record_damaged_while_its_shard_is_made_again_is_replaced(commits):
    made = write_shard(commits, SHARDS[0])
    (commits.records / f"{SHARDS[0]}.json").write_bytes(b"rubbish")
    assert write_shard(commits, SHARDS[0]) == made
    assert commits.find(SHARDS[0]) == made


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_object_that_is_not_whole_makes_its_shard_missing(commits, damage):
    made = write_shard(commits, SHARDS[0])
    stored = commits.objects / made.files[f"data/{SHARDS[0]}.tar"].sha256
    if damage == "cut":
        os.truncate(stored, 4)
    else:
        stored.unlink()
    assert commits.find(SHARDS[0]) is None
    assert not (commits.records / f"{SHARDS[0]}.json").exists()
    assert write_shard(commits, SHARDS[0]) == made


def test_an_object_with_wrong_bytes_is_replaced(commits):
    made = write_shard(commits, SHARDS[0])
    stored = commits.objects / made.files[f"data/{SHARDS[0]}.tar"].sha256
    right = stored.read_bytes()
    stored.write_bytes(b"x" * len(right))
    write_shard(commits, SHARDS[0])
    assert stored.read_bytes() == right
    assert [path.read_bytes() for path in commits.quarantine.iterdir()] == [b"x" * len(right)]


def test_a_final_name_with_other_bytes_is_replaced(tmp_path):
    write_all(tmp_path / "out")
    before = tree(tmp_path / "out")
    final = tmp_path / "out/data/train/shard-000000.tar"
    final.unlink()
    final.write_bytes(b"stranger")
    write_all(tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_a_key_twice_in_one_shard_is_refused(commits):
    with pytest.raises(CommitError, match="holds key 'a' twice"):
        write_shard(commits, SHARDS[0], keys=["a", "b", "a"])


@pytest.mark.parametrize(("first", "second"), [(["a", "c"], ["b", "c"]), (["a"], ["a"])])
def test_a_key_in_two_shards_of_a_split_is_refused(commits, first, second):
    write_shard(commits, SHARDS[0], keys=first)
    write_shard(commits, SHARDS[1], keys=second)
    with pytest.raises(CommitError, match=f"key '{second[-1]}' stands in train/shard-000000 and again in train/shard-000001"):
        commits.finish(SHARDS)


def test_splits_may_share_keys_and_ranges_may_overlap(commits):
    write_shard(commits, "train/shard-000000", keys=["a", "c"])
    write_shard(commits, "train/shard-000001", keys=["b", "d"])
    write_shard(commits, "held_out/shard-000000", keys=["a", "c"])
    assert commits.finish([*SHARDS, "held_out/shard-000000"]).n_out == 6


def test_samples_that_are_missing_are_noticed(commits):
    write_shard(commits, SHARDS[0])
    with pytest.raises(CommitError, match="4 samples were planned, the shards account for 2"):
        commits.finish(SHARDS[:1], planned_samples=4)


def test_too_many_rejects_say_how_many_why_and_where(commits):
    write_shard(commits, SHARDS[0], rejects=[REFUSED])
    with pytest.raises(
        TooManyRejects, match=r"1 of 3 samples .* than the 1.00% allowed: empty_input \(1\); .*/rejects; .* max_reject_share"
    ):
        commits.finish(SHARDS[:1])
    assert (commits.out / "rejects/train/shard-000000.jsonl").exists()


def test_rejects_up_to_the_limit_pass(commits):
    write_shard(commits, SHARDS[0], rejects=[REFUSED])
    assert commits.finish(SHARDS[:1], max_reject_share=1 / 3).n_rejected == 1


def test_a_straggler_whose_attempt_was_cleared_cannot_commit(commits):
    with commits.attempt(SHARDS[0]) as attempt:
        attempt.create("data/x.tar").write(b"late")
        commits.clear_attempts()  # what the next run does first
        with pytest.raises(FileNotFoundError):
            attempt.commit(["a"])
    assert commits.find(SHARDS[0]) is None


def test_a_commit_of_another_artifact_does_not_count(commits):
    write_shard(commits, SHARDS[0])
    assert Commits(commits.out, "beef").find(SHARDS[0]) is None


def test_a_file_of_an_attempt_is_a_stream_like_any_other(commits):
    with commits.attempt(SHARDS[0]) as attempt:
        file = attempt.create("x")
        assert isinstance(file, io.RawIOBase)
        file.write(memoryview(b"abcde")[1:3])
        assert file.tell() == 2
        assert file.writable()
