"""One shard: same bytes, same values through webdataset and through the index, and damage is found."""

import gc
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.stages.rejects import InputRejected
from worldloom.stages.shards import MISSING, IndexedShard, Row, ShardDamaged, ShardWriter, write_index

# webdataset leaves the files that it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")

SAMPLES = {
    "a": {"caption.txt": b"one", "frame.png": b"\x00" * 511},
    "b/c": {"caption.txt": b"two", "frame.png": b"\x01" * 512},
    "d": {"caption.txt": b"three", "frame.png": b"\x02" * 513},
}


def write(folder, samples=SAMPLES):
    stream = io.BytesIO()
    writer = ShardWriter(stream)
    rows = {key: writer.add(key, members) for key, members in samples.items()}
    writer.close()
    (folder / "x.tar").write_bytes(stream.getvalue())
    for extension in sorted({extension for members in samples.values() for extension in members}):
        column = [rows[key].get(extension, MISSING) for key in samples]
        with open(folder / f"{extension}.idx.npy", "wb") as file:
            write_index(file, list(samples), column)
    return folder / "x.tar"


def read_by_webdataset(path):
    source = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return {sample["__key__"]: {name: value for name, value in sample.items() if not name.startswith("__")} for sample in source}


def test_webdataset_reads_what_was_written(tmp_path):
    assert read_by_webdataset(write(tmp_path)) == SAMPLES


def test_the_index_reads_what_webdataset_reads(tmp_path):
    tar = write(tmp_path)
    for extension in ("caption.txt", "frame.png"):
        shard = IndexedShard(tar, tmp_path / f"{extension}.idx.npy")
        assert shard.keys == list(SAMPLES)
        assert [bytes(shard.content(i)) for i in range(len(shard))] == [members[extension] for members in SAMPLES.values()]


@settings(max_examples=15, deadline=None)
@given(
    contents=st.dictionaries(
        st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,30}\Z"), st.binary(min_size=1, max_size=1600), min_size=1, max_size=5
    )
)
def test_any_content_comes_back_whole(contents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shard")
    samples = {key: {"x.bin": contents[key]} for key in sorted(contents)}
    shard = IndexedShard(write(folder, samples), folder / "x.bin.idx.npy")
    assert [bytes(shard.content(i)) for i in range(len(shard))] == [members["x.bin"] for members in samples.values()]


def test_the_same_samples_give_the_same_bytes(tmp_path, monkeypatch):
    first = write(tmp_path).read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert write(tmp_path).read_bytes() == first
    assert b"root" not in first


def test_a_sample_that_lacks_a_stream_is_a_row_of_zeros(tmp_path):
    tar = write(tmp_path, {"a": {"x.txt": b"1", "y.txt": b"2"}, "b": {"x.txt": b"3"}})
    shard = IndexedShard(tar, tmp_path / "y.txt.idx.npy")
    assert len(shard) == 2
    assert shard.present.tolist() == [True, False]
    assert shard.content(1) is None


def test_an_abandoned_shard_writes_nothing_more(tmp_path):
    stream = io.BytesIO()
    writer = ShardWriter(stream)
    writer.add("a", {"x": b"1"})
    writer.abandon()
    stream.close()
    del writer  # tarfile would end the tar here
    gc.collect()


def test_an_empty_shard_can_be_written_and_read(tmp_path):
    stream = io.BytesIO()
    ShardWriter(stream).close()
    (tmp_path / "x.tar").write_bytes(stream.getvalue())
    with open(tmp_path / "x.idx.npy", "wb") as file:
        write_index(file, [], [])
    assert len(IndexedShard(tmp_path / "x.tar", tmp_path / "x.idx.npy")) == 0


def test_keys_must_rise():
    writer = ShardWriter(io.BytesIO())
    writer.add("b", {"x": b"1"})
    for key in ("b", "a"):
        with pytest.raises(InputRejected, match="key_duplicate"):
            writer.add(key, {"x": b"1"})


def test_a_key_that_no_tar_header_holds_is_refused_before_anything_is_written():
    stream = io.BytesIO()
    writer = ShardWriter(stream)
    with pytest.raises(InputRejected, match=r"key_invalid: .* too long for a tar"):
        writer.add("a" * 120, {"x": b"1"})
    writer.add("a", {"x": b"1"})


def test_a_member_without_bytes_is_refused():
    with pytest.raises(InputRejected, match=r"empty_input: a.x has no bytes"):
        ShardWriter(io.BytesIO()).add("a", {"x": b""})


def test_every_flipped_bit_in_a_sample_is_found(tmp_path):
    tar = write(tmp_path)
    whole = tar.read_bytes()
    shard = IndexedShard(tar, tmp_path / "frame.png.idx.npy")
    place = int(shard.table["offset"][1])
    for position in (place, place + 300, place + 511):
        tar.write_bytes(whole[:position] + bytes([whole[position] ^ 8]) + whole[position + 1 :])
        with pytest.raises(ShardDamaged, match=r"shard_corrupt: sample 'b/c' .* has changed"):
            IndexedShard(tar, tmp_path / "frame.png.idx.npy").check()
    tar.write_bytes(whole)
    IndexedShard(tar, tmp_path / "frame.png.idx.npy").check()


@pytest.mark.parametrize("left", [0, 1, 512, 1000, 3 * 512])
def test_a_cut_shard_is_found_on_opening(tmp_path, left):
    tar = write(tmp_path)
    tar.write_bytes(tar.read_bytes()[:left])
    with pytest.raises(ShardDamaged, match="shard_truncated"):
        IndexedShard(tar, tmp_path / "frame.png.idx.npy")


def test_webdataset_alone_would_not_notice_a_cut_between_members(tmp_path):
    # The reason why reading goes through the index; a webdataset that notices is welcome to break this test.
    tar = write(tmp_path)
    tar.write_bytes(tar.read_bytes()[: 4 * 512])
    assert list(read_by_webdataset(tar)) == ["a"]


@pytest.mark.parametrize("kept", [0, 5, 10, 100, -7])
def test_a_cut_index_is_found(tmp_path, kept):
    tar, index = write(tmp_path), tmp_path / "frame.png.idx.npy"
    index.write_bytes(index.read_bytes()[:kept])
    with pytest.raises(ShardDamaged, match=r"shard_corrupt: .* cannot be read as an index"):
        IndexedShard(tar, index)


@pytest.mark.parametrize("other", [np.zeros(3), np.zeros((2, 2), [("offset", "u8")])])
def test_another_array_is_no_index(tmp_path, other):
    tar, index = write(tmp_path), tmp_path / "frame.png.idx.npy"
    np.save(index, other)
    with pytest.raises(ShardDamaged, match=r"shard_corrupt: .* cannot be read as an index"):
        IndexedShard(tar, index)


def test_opening_a_shard_keeps_no_file_open(tmp_path):
    tar = write(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    shards = [IndexedShard(tar, tmp_path / "frame.png.idx.npy") for _ in range(7)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert bytes(shards[-1].content(0)) == SAMPLES["a"]["frame.png"]


def test_a_mapped_shard_cannot_be_written_to(tmp_path):
    shard = IndexedShard(write(tmp_path), tmp_path / "frame.png.idx.npy")
    with pytest.raises(ValueError, match="read-only"):
        shard.elements[0] = 1
    assert shard.content(0).readonly


def test_rows_name_the_exact_bytes(tmp_path):
    content = write(tmp_path).read_bytes()
    table = np.load(tmp_path / "frame.png.idx.npy", allow_pickle=False)
    for key, entry in zip(SAMPLES, table, strict=True):
        row = Row(*(int(entry[name]) for name in Row._fields))
        expected = SAMPLES[key]["frame.png"]
        assert content[row.offset : row.offset + row.bytes] == expected
        assert (row.length, row.crc32) == (len(expected), zlib.crc32(expected))


def test_a_long_path_that_one_header_holds_has_one_header(tmp_path):
    key = "/".join(["k" * 90] * 2)
    path = write(tmp_path, {key: {"words.txt": b"a"}})
    assert IndexedShard(path, tmp_path / "words.txt.idx.npy").keys == [key]
    assert path.stat().st_size == 10_240 and path.read_bytes()[512:513] == b"a"
