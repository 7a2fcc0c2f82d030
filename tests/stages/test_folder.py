"""A folder as found: which files count, their captions, keys and shares."""

import os

import pytest

from worldloom.stages.folder import Picture, combine, in_words, inputs_of, read_captions, share_out, take_inventory
from worldloom.stages.keys import is_key


def fill(folder, *files, **contents):
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents.get(path.name.replace(".", "_"), b"x"))
    return folder


def captions(inventory):
    return {picture.file: picture.caption for picture in inventory.pictures}


def test_pictures_are_found_in_all_folders_below_in_sorted_order(tmp_path):
    fill(tmp_path, "b/2.JPG", "b/1.png", "a.webp", "b/c/0.jpeg", ".hidden/x.png", "__MACOSX/x.png", "._a.png")
    inventory = take_inventory(tmp_path, "auto", 1)
    assert [picture.file for picture in inventory.pictures] == ["a.webp", "b/1.png", "b/2.JPG", "b/c/0.jpeg"]
    assert [picture.key for picture in inventory.pictures] == ["a", "b/1", "b/2", "b/c/0"]


def test_what_is_no_picture_is_listed_as_ignored(tmp_path):
    fill(tmp_path, "a.png", "notes.md", "a.txt", "b.txt")
    inventory = take_inventory(tmp_path, "auto", 1)
    assert [tuple(entry) for entry in inventory.ignored] == [("b.txt", "not a picture"), ("notes.md", "not a picture")]


def test_other_formats_of_pictures_are_refused_not_ignored(tmp_path):
    inventory = take_inventory(fill(tmp_path, "a.png", "b.gif", "c.HEIC"), "auto", 1)
    assert [picture.refused and picture.refused[0] for picture in inventory.pictures] == [None, "format_not_allowed", "format_not_allowed"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    inside, outside = fill(tmp_path / "in", "a.png", "d/b.png"), fill(tmp_path / "out", "secret.png")
    (inside / "leak.png").symlink_to(outside / "secret.png")
    (inside / "folder").symlink_to(outside)
    (inside / "gone.png").symlink_to(inside / "nothing")
    (inside / "own.png").symlink_to(inside / "d" / "b.png")
    os.mkfifo(inside / "pipe.png")
    inventory = take_inventory(inside, "auto", 1)
    assert [picture.file for picture in inventory.pictures] == ["a.png", "d/b.png", "own.png"]
    assert {entry.file for entry in inventory.ignored} == {"leak.png", "folder", "gone.png", "pipe.png"}


def test_a_folder_without_pictures_is_one_clear_error(tmp_path):
    fill(tmp_path, "a.txt", "b.csv")
    with pytest.raises(
        ValueError, match=r"holds no pictures: none of its 2 files, folders below included, ends in \.jpeg, \.jpg, \.png, \.webp"
    ):
        take_inventory(tmp_path, "auto", 1)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; give the path of a folder with pictures"):
        take_inventory(tmp_path / "nowhere", "auto", 1)


def test_auto_prefers_the_csv_then_text_files_then_folders(tmp_path):
    fill(tmp_path, "cats/a.png", "dogs/b.png", "top_left-1.png")
    assert captions(take_inventory(tmp_path, "auto", 1)) == {"cats/a.png": "cats", "dogs/b.png": "dogs", "top_left-1.png": "top left 1"}
    fill(tmp_path, "cats/a.txt")
    inventory = take_inventory(tmp_path, "auto", 1)
    assert inventory.rule == "text_file"
    assert [picture.caption_file for picture in inventory.pictures] == ["cats/a.txt", None, None]
    fill(tmp_path, "captions.csv", captions_csv=b"file,caption\ncats/a.png,a cat\n")
    assert captions(take_inventory(tmp_path, "auto", 1)) == {"cats/a.png": "a cat", "dogs/b.png": None, "top_left-1.png": None}


def test_auto_looks_below_folders_that_all_pictures_share(tmp_path):
    fill(tmp_path, "archive/Greek/alpha/1.png", "archive/Early_Aramaic/beth/1.png")
    assert set(captions(take_inventory(tmp_path, "auto", 1)).values()) == {"Greek", "Early Aramaic"}


@pytest.mark.parametrize(("parent", "expected"), [(1, "alpha"), (2, "Greek"), (3, None)])
def test_the_nth_parent_folder_is_the_caption(tmp_path, parent, expected):
    fill(tmp_path, "Greek/alpha/1.png")
    assert captions(take_inventory(tmp_path, "parent_folder", parent)) == {"Greek/alpha/1.png": expected}


def test_the_file_name_is_the_caption(tmp_path):
    fill(tmp_path, "x/a_red--car.png")
    assert captions(take_inventory(tmp_path, "file_name", 1)) == {"x/a_red--car.png": "a red car"}
    assert captions(take_inventory(tmp_path, "none", 1)) == {"x/a_red--car.png": None}


def test_a_csv_that_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"caption is csv, but the folder has no captions\.csv"):
        take_inventory(fill(tmp_path, "a.png"), "csv", 1)


def test_a_picture_that_only_the_csv_knows_is_refused(tmp_path):
    fill(tmp_path, "a.png", "captions.csv", captions_csv=b"file,caption\r\n./a.png,one\r\nb.png,two\r\n../c.png,three\r\n")
    inventory = take_inventory(tmp_path, "auto", 1)
    assert captions(inventory)["a.png"] == "one"
    assert [picture.refused[0] for picture in inventory.pictures if picture.refused] == ["file_missing", "file_missing"]
    assert inputs_of(inventory) == ["a.png", "captions.csv"]


def test_a_csv_is_read_with_quotes_marks_and_other_columns(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_bytes('\ufefffile,who,caption\na.png,me,"one, two\nthree"\n"b ""c"".png",,ü\n'.encode())
    assert read_captions(path) == {"a.png": "one, two\nthree", 'b "c".png': "ü"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"picture,caption\n", "must begin with a line that names the columns file and caption, it begins with 'picture"),
        (b"", "must begin with a line"),
        (b"file,caption\na.png,caf\xe9\n", r"is not UTF-8 \(byte 22\)"),
        (b"file,caption\na.png,1\n./a.png,2\n", "line 3 names 'a.png' a second time"),
        (b'file,caption\na.png,"' + b"x" * 140_000, r"cannot be read after line 1 .*is a quotation mark not closed\?"),
    ],
)
def test_a_bad_csv_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "captions.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_captions(path)


def test_rows_of_nothing_but_commas_are_passed_over(tmp_path):
    path = tmp_path / "captions.csv"
    path.write_bytes(b"file,caption\na.png,one\n,\n, \n")
    assert read_captions(path) == {"a.png": "one"}


def test_names_that_are_no_keys_get_one(tmp_path):
    fill(tmp_path, "a b.png", "a.b.png", "ü.png", "a/b.png", "__x.png", "A.png", "a.jpg", "x" * 200 + ".png", "d/" + "y" * 95 + ".png")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    inventory = take_inventory(tmp_path, "none", 1)
    keys = [picture.key for picture in inventory.pictures]
    assert all(is_key(key) for key in keys)
    assert len({key.lower() for key in keys}) == len(keys) == 10
    assert {"a/b", "A"} <= set(keys)
    assert all(picture.refused is None for picture in inventory.pictures)
    assert take_inventory(tmp_path, "none", 1) == inventory


def test_two_files_of_one_key_are_one_sample_and_one_refusal(tmp_path):
    inventory = take_inventory(fill(tmp_path, "a.jpg", "a.png", "a.webp"), "none", 1)
    assert [picture.refused and picture.refused[0] for picture in inventory.pictures] == [None, "key_duplicate", "key_duplicate"]


def pictures(n):
    return tuple(Picture(f"{i:03d}.png", f"{i:03d}", None, None, None) for i in range(n))


def test_every_picture_is_in_one_shard_in_order_of_keys():
    shards = share_out(pictures(57), 0.2, 10)
    assert sorted(picture.key for shard in shards for picture in shard.pictures) == [f"{i:03d}" for i in range(57)]
    for split in ("train", "validation"):
        keys = [picture.key for shard in shards if shard.split == split for picture in shard.pictures]
        assert keys == sorted(keys)
        assert [shard.name for shard in shards if shard.split == split] == [f"shard-{i:06d}" for i in range(-(-len(keys) // 10))]
    assert 3 <= sum(len(shard.pictures) for shard in shards if shard.split == "validation") <= 22


def test_a_picture_stays_in_its_split_when_others_come():
    def validation(n):
        return {picture.key for shard in share_out(pictures(n), 0.2, 10) if shard.split == "validation" for picture in shard.pictures}

    assert validation(40) == {key for key in validation(57) if int(key) < 40}


@pytest.mark.parametrize(
    ("n", "share", "sizes"), [(1, 0.5, {"train": 1}), (2, 0.01, {"train": 1, "validation": 1}), (9, 0.0, {"train": 9})]
)
def test_small_folders_keep_something_in_both_splits(n, share, sizes):
    shards = share_out(pictures(n), share, 100)
    assert {shard.split: len(shard.pictures) for shard in shards} == sizes


def test_the_digest_of_a_folder_depends_on_names_and_contents_only():
    one = combine({"a": "1", "b": "2"})
    assert one == combine({"b": "2", "a": "1"})
    assert len({one, combine({"a": "1", "b": "3"}), combine({"a": "1", "c": "2"}), combine({"a": "1"})}) == 4


def test_names_become_words():
    assert in_words("a_red--car 2") == "a red car 2"
