import threading
from pathlib import Path

import pytest

from worldloom.pipeline.claims import Claims

ITEMS = ("a", "b", "c", "d", "e")


def test_together_the_workers_take_every_item_once(tmp_path):
    taken = []

    def work(rank):
        taken.extend((item, rank) for item in Claims(tmp_path, rank, 3).share(ITEMS * 20))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item for item, _ in taken) == sorted(ITEMS * 20)


def test_workers_begin_apart_and_one_that_is_alone_takes_all(tmp_path):
    first, second = Claims(tmp_path, 0, 2).share(ITEMS), Claims(tmp_path, 1, 2).share(ITEMS)
    assert (next(first), next(second)) == ("a", "c")
    assert list(second) == ["d", "e", "b"]
    assert list(first) == []


def test_lists_are_kept_apart(tmp_path):
    claims = Claims(tmp_path, 0, 1)
    assert list(claims.share(ITEMS[:2])) == ["a", "b"]
    assert list(claims.share(ITEMS[:3])) == ["a", "b", "c"]


def test_what_a_dead_worker_had_claimed_is_given_out_again(tmp_path):
    dead, other = Claims(tmp_path, 0, 2), Claims(tmp_path, 1, 2)
    taken = dead.share(ITEMS)
    assert [next(taken), next(taken)] == ["a", "b"]
    assert next(other.share(ITEMS)) == "c"
    again = Claims(tmp_path, 0, 2)
    again.give_back()
    assert list(again.share(ITEMS)) == ["a", "b", "d", "e"]


def test_a_worker_that_outlived_its_run_ends(tmp_path):
    claims = Claims(tmp_path / "gone", 0, 1)
    with pytest.raises(FileNotFoundError):
        list(claims.share(ITEMS))


def test_a_claim_that_another_worker_gives_back_meanwhile_is_passed_over(tmp_path, monkeypatch):
    for name, rank in (("0-0", 1), ("0-1", 1), ("0-2", 0)):
        (tmp_path / name).write_text(str(rank), encoding="ascii")
    read, gone = Path.read_text, []

    def taken_away(path, *args, **kwargs):
        if not gone:  # the first that is looked at goes between the listing and the reading
            gone.append(path.name)
            path.unlink()
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", taken_away)
    Claims(tmp_path, 1, 2).give_back()
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"0-2"} - set(gone)
