"""Datasets as read: the same samples whatever way they are asked for."""

import numpy as np
import pytest
import webdataset

from worldloom.stages import disk, stream_image
from worldloom.stages.artifact import ArtifactError, execute
from worldloom.stages.commit import Commits
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.dataset_writer import RawShard, TokenShard, code_type, write_dataset_json
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import ImageStream, StageSettings, TextStream
from worldloom.stages.shards import ShardDamaged
from worldloom.stages.worker import Worker

# webdataset leaves the files that it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")

STREAMS = {"caption": TextStream(kind="text"), "frame": ImageStream(kind="image", size=9)}
SIZES = {"train": (3, 5, 2), "validation": (4,)}  # samples a shard


class Nothing(StageSettings):
    pass


def make(folder, run, finish, produces):
    kind = StageKind("make_something", Nothing, run, finish, produces, 1, "shards")
    return execute(kind, "data", Nothing(run="make_something"), {}, folder / "artifacts" / "data" / "f0", Worker())


def picture(number):
    return np.full((9, 9, 3), number, np.uint8)


def plan(sizes=SIZES):
    return [(split, f"shard-{number:06d}", count) for split, counts in sizes.items() for number, count in enumerate(counts)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Sample i of a split has the key <split>-<i>, caption "text i" and a picture of colour i; every third one lacks the picture."""

    def run(settings, inputs, out, worker):
        first = dict.fromkeys(SIZES, 0)
        for split, name, count in plan():
            with Commits.of(out).attempt(f"{split}/{name}") as attempt:
                with RawShard(attempt, split, name, STREAMS) as shard:
                    for i in range(first[split], first[split] + count):
                        values = {"caption": f"text {i}".encode(), "frame": stream_image.encode(picture(i), STREAMS["frame"])}
                        shard.add(f"{split}-{i:03d}", values if i % 3 else {"caption": values["caption"]})
                attempt.commit(shard.keys, (), shard.counts)
            first[split] += count

    def finish(settings, inputs, out):
        totals = Commits.of(out).finish([f"{split}/{name}" for split, name, _ in plan()])
        write_dataset_json(out, STREAMS, {split: [(n, c) for s, n, c in plan() if s == split] for split in SIZES}, oracle="shapes")
        return totals.counts

    return make(tmp_path_factory.mktemp("raw"), run, finish, "dataset")


def codes_of(stream, i, bound=1 << 16):
    """Sample i's codes: six of the frame's, as many of the caption's as i, none of either in every seventh."""
    generator = np.random.default_rng(i)
    if i % 7 == 6:
        return None
    return generator.integers(bound, size=(2, 3) if stream == "frame" else i)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    def run(settings, inputs, out, worker):
        first = dict.fromkeys(SIZES, 0)
        for split, name, count in plan():
            with Commits.of(out).attempt(f"{split}/{name}") as attempt:
                for stream, size in (("frame", 1 << 16), ("caption", 1 << 18)):
                    with TokenShard(attempt, split, stream, name, size) as shard:
                        for i in range(first[split], first[split] + count):
                            shard.add(f"{split}-{i:03d}", codes_of(stream, i))
                attempt.commit([f"{split}-{i:03d}" for i in range(first[split], first[split] + count)], (), {})
            first[split] += count

    def finish(settings, inputs, out):
        Commits.of(out).finish([f"{split}/{name}" for split, name, _ in plan()])
        streams = {
            "frame": {"kind": "image", "codebook_size": 1 << 16, "shape": [2, 3], "dtype": "uint16", "tokenizer": "f", "max_length": 6},
            "caption": {"kind": "text", "codebook_size": 1 << 18, "shape": None, "dtype": "uint32", "tokenizer": "c", "max_length": 9},
        }
        splits = {
            split: {"shards": [{"name": n, "samples": c} for s, n, c in plan() if s == split], "samples": sum(SIZES[split])}
            for split in SIZES
        }
        disk.write_file(out / "tokens" / "dataset.json", disk.canonical_json({"format": 1, "streams": streams, "splits": splits}))
        return {}

    return make(tmp_path_factory.mktemp("tokens"), run, finish, "tokens")


def test_a_raw_dataset_says_what_it_holds(raw):
    data = Dataset(raw)
    assert data.streams == STREAMS
    assert data.splits == ("train", "validation")
    assert (data.samples("train"), data.samples("validation"), data.samples("held_out")) == (10, 4, 0)
    assert data.shards("train") == ("shard-000000", "shard-000001", "shard-000002")
    assert data.shard_samples("train", "shard-000001") == 5
    assert data.oracle == "shapes"
    assert data.keys("train") == [f"train-{i:03d}" for i in range(10)]


def test_samples_are_numbered_across_shards(raw):
    data = Dataset(raw)
    assert [data.value("train", "caption", i) for i in range(10)] == [f"text {i}" for i in range(10)]
    for i in range(10):
        value = data.value("train", "frame", i)
        assert value is None if i % 3 == 0 else np.array_equal(value, picture(i))


def test_values_and_batches_leave_out_what_is_missing(raw):
    data = Dataset(raw)
    assert [value[0, 0, 0] for value in data.values("train", "frame")] == [1, 2, 4, 5, 7, 8]
    assert data.batch("train", "frame", [8, 3, 1]).shape == (2, 9, 9, 3)
    assert data.batch("train", "caption", np.array([8, 3])) == ["text 8", "text 3"]


@pytest.mark.parametrize("i", [-1, 10])
def test_a_sample_beyond_the_split_is_refused(raw, i):
    with pytest.raises(IndexError, match=f"there is no sample {i}, the split has 10"):
        Dataset(raw).value("train", "caption", i)


def test_codes_are_stored_in_the_smallest_type_that_holds_them(tokens):
    for stream, kind in (("frame", "uint16"), ("caption", "uint32")):
        assert Tokens(tokens).codes("train", stream, 1).dtype == kind


@pytest.mark.parametrize(("size", "kind"), [(1, "uint16"), (512, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (1 << 18, "uint32")])
def test_the_type_changes_where_sixteen_bits_end(size, kind):
    assert code_type(size) == kind
    assert np.iinfo(kind).max >= size - 1


def test_a_codebook_beyond_32_bits_is_refused():
    with pytest.raises(ValueError, match="cannot be stored"):
        code_type((1 << 32) + 1)


def test_every_way_of_reading_gives_the_same_codes(tokens):
    read = Tokens(tokens)
    for stream in read.streams:
        for split in read.splits:
            n = read.samples(split)
            expected = [np.empty(0) if codes_of(stream, i) is None else codes_of(stream, i).ravel() for i in range(n)]
            assert read.lengths(split, stream).tolist() == [len(codes) for codes in expected]
            assert all(np.array_equal(read.codes(split, stream, i), expected[i]) for i in range(n))
            order = np.random.default_rng(0).integers(n, size=23)
            gathered = read.gather(split, stream, order)
            assert gathered.values.dtype == read.streams[stream].dtype
            for row, i in zip(gathered.rows(), order, strict=True):
                assert np.array_equal(row, expected[i])


def test_rows_are_gathered_codes_of_fixed_shape(tokens):
    read = Tokens(tokens)
    order = np.array([9, 0, 3, 3, 8])
    rows = read.rows("train", "frame", order)
    assert rows.shape == (5, 6)
    assert np.array_equal(rows.ravel(), read.gather("train", "frame", order).values)


def test_rows_refuse_what_has_no_fixed_shape_or_is_missing(tokens):
    read = Tokens(tokens)
    with pytest.raises(ValueError, match="differ in length; use gather"):
        read.rows("train", "caption", [1])
    with pytest.raises(ValueError, match="some samples lack 'frame'; use gather"):
        read.rows("train", "frame", [1, 6])
    with pytest.raises(IndexError, match="there is no sample 10, the split has 10"):
        read.rows("train", "frame", [1, 10])


def test_gathering_nothing_gives_nothing(tokens):
    read = Tokens(tokens)
    assert read.gather("train", "caption", []).rows() == []
    assert read.rows("train", "frame", []).shape == (0, 6)


def test_webdataset_decodes_the_same_codes_in_their_shape(tokens):
    path = tokens.path("tokens/train/frame/shard-000001.tar")
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"train-{i:03d}" for i in (3, 4, 5, 7)]
    for sample, i in zip(samples, (3, 4, 5, 7), strict=True):
        assert sample["npy"].shape == (2, 3)
        assert np.array_equal(sample["npy"], codes_of("frame", i))


@pytest.mark.parametrize("size", [512, 65_536, 1 << 18])
def test_a_code_beyond_the_codebook_is_refused(tmp_path, size):
    def run(settings, inputs, out, worker):
        with Commits.of(out).attempt("train/shard-000000") as attempt:
            for wrong in (size, -1):
                with (
                    pytest.raises(ValueError, match=rf"sample 'b' has codes .* the codebook holds 0 \.\. {size - 1}"),
                    TokenShard(attempt, "train", "frame", f"shard-{wrong}", size) as shard,
                ):
                    shard.add("a", np.array([0, size - 1]))
                    shard.add("b", np.array([0, wrong]))

    make(tmp_path, run, lambda settings, inputs, out: {}, "tokens")


def test_a_cut_shard_is_refused_by_name(raw, tmp_path):
    path = raw.folder / "data/train/shard-000002.tar"
    whole = path.read_bytes()
    path.chmod(0o644)
    try:
        path.write_bytes(whole[:-512])
        with pytest.raises(ArtifactError, match=r"shard-000002\.tar has .* bytes, DONE\.json says"):
            Dataset(raw).value("train", "caption", 9)
        path.write_bytes(whole.replace(b"text 9", b"text 8"))
        assert Dataset(raw).value("train", "caption", 8) == "text 8"
        with pytest.raises(ShardDamaged, match=r"sample 'train-009' of .*shard-000002\.tar has changed"):
            Dataset(raw).value("train", "caption", 9)
    finally:
        path.write_bytes(whole)


def test_shards_of_another_format_are_refused(tmp_path):
    def finish(settings, inputs, out):
        disk.write_file(out / "dataset.json", b'{"format":2}')
        return {}

    with pytest.raises(ValueError, match="has format 2, this worldloom reads format 1"):
        Dataset(make(tmp_path, lambda *_: None, finish, "dataset"))
