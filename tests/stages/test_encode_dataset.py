"""Encoding a dataset: the tokenizer's own codes, the same bytes whoever makes them and however often they are stopped."""

import json

import numpy as np
import pytest
import torch
import webdataset

from worldloom.stages import stream_image
from worldloom.stages.artifact import Artifact, begin, complete, execute
from worldloom.stages.commit import Commits
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.dataset_writer import RawShard, TokenShard, write_dataset_json
from worldloom.stages.deterministic import deterministic
from worldloom.stages.encode_dataset import STAGE, EncodeDataset, encode_batch
from worldloom.stages.kind import StageKind
from worldloom.stages.settings import ImageStream, StageSettings, TextStream
from worldloom.stages.shards import ShardDamaged
from worldloom.stages.worker import Interrupted, Worker
from worldloom.tokenizers.image import ImageTokenizer, build_autoencoder
from worldloom.tokenizers.image_settings import VqVae
from worldloom.tokenizers.load import load_tokenizer
from worldloom.tokenizers.quantizers.settings import Ema
from worldloom.tokenizers.text import train_text

STREAMS = {"caption": TextStream(kind="text"), "frame": ImageStream(kind="image", size=8)}
SIZES = {"train": (5, 7, 1), "validation": (2,)}  # samples a shard
BATCH = 3


class Nothing(StageSettings):
    pass


def make(root, name, run, finish, produces):
    kind = StageKind(f"make_{name}", Nothing, run, finish, produces, 1, "shards")
    return execute(kind, name, Nothing(run=kind.name), {}, root / "artifacts" / name / "f0", Worker())


def caption(i):
    return f"picture number {i}, " + "very " * (i % 4) + "good"


def picture(i):
    return np.random.default_rng(i).integers(256, size=(8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset and two untrained tokenizers. Sample i lacks the picture where i % 5 is 4, all of the last shard but one."""
    root = tmp_path_factory.mktemp("root")

    def run(settings, inputs, out, worker):
        i = 0
        for split, counts in SIZES.items():
            for number, count in enumerate(counts):
                with Commits.of(out).attempt(f"{split}/shard-{number:06d}") as attempt:
                    with RawShard(attempt, split, f"shard-{number:06d}", STREAMS) as raw:
                        for i in range(i, i + count):  # noqa: B020 - samples are numbered across shards
                            values = {"caption": caption(i).encode(), "frame": stream_image.encode(picture(i), STREAMS["frame"])}
                            raw.add(f"s{i:03d}", values if i % 5 != 4 else {"caption": values["caption"]})
                        i += 1
                    attempt.commit(raw.keys, (), raw.counts)

    def finish(settings, inputs, out):
        splits = {split: [(f"shard-{number:06d}", count) for number, count in enumerate(counts)] for split, counts in SIZES.items()}
        Commits.of(out).finish([f"{split}/{name}" for split, shards in splits.items() for name, _ in shards])
        write_dataset_json(out, STREAMS, splits)
        return {}

    make(root, "data", run, finish, "dataset")
    settings = VqVae(codebook_size=300, downsample=4, width=4, blocks=1, quantizer=Ema(code_width=3, place_after=-1))
    frame = ImageTokenizer(build_autoencoder(settings, seed=0), settings, height=8, width=8)
    text = train_text((caption(i) for i in range(40)), vocab_size=300)
    for name, tokenizer in (("frame_codes", frame), ("caption_codes", text)):
        make(root, name, lambda s, i, out, w, t=tokenizer: t.save_pretrained(out / "tokenizer"), lambda *_: {}, "tokenizer")
    return root


def settings_for(**changes):
    tokenizers = {"caption": "caption_codes", "frame": "frame_codes"}
    return EncodeDataset(run="encode_dataset", data="data", tokenizers=tokenizers, batch_size=BATCH, **changes)


def inputs_of(root):
    names = {"data": "data", "tokenizers.caption": "caption_codes", "tokenizers.frame": "frame_codes"}
    return {field: Artifact.open(root / "artifacts" / name / "f0") for field, name in names.items()}


def encoded(root, name, worker=None):
    return execute(STAGE, name, settings_for(), inputs_of(root), root / "artifacts" / name / "f0", worker or Worker())


@pytest.fixture(scope="module")
def artifact(root):
    return encoded(root, "tokens")


def test_codes_are_the_tokenizers_own(root, artifact):
    data, tokens = Dataset(artifact.input("data")), Tokens(artifact)
    tokenizers = {stream: load_tokenizer(artifact.input(f"tokenizers.{stream}").folder / "tokenizer") for stream in STREAMS}
    for split in data.splits:
        assert tokens.keys(split) == data.keys(split)
        for stream, tokenizer in tokenizers.items():
            for i in range(data.samples(split)):
                value = data.value(split, stream, i)
                found = tokens.codes(split, stream, i)
                expected = [] if value is None else np.asarray(tokenizer.encode(data.batch(split, stream, [i]))[0]).ravel()
                assert np.array_equal(found, expected)


def test_the_description_says_what_is_there(root, artifact):
    about = json.loads(artifact.path("tokens/dataset.json").read_text())
    inputs = inputs_of(root)
    frame = about["streams"]["frame"]
    assert {name: frame[name] for name in ("kind", "codebook_size", "shape", "dtype", "max_length")} == {
        "kind": "image",
        "codebook_size": 300,
        "shape": [2, 2],
        "dtype": "uint16",
        "max_length": 4,
    }
    assert frame["tokenizer"] == load_tokenizer(inputs["tokenizers.frame"].folder / "tokenizer").fingerprint
    lengths = Tokens(artifact).lengths("train", "caption")
    assert about["streams"]["caption"]["max_length"] == lengths.max() > lengths.min() > 0
    assert about["splits"]["train"]["samples"] == 13
    assert about["splits"]["train"]["streams"]["frame"] == {"samples": 11, "codes": 44}
    assert about["splits"]["train"]["streams"]["caption"] == {"samples": 13, "codes": int(lengths.sum())}
    for split, described in about["splits"].items():
        for shard in described["shards"]:
            for stream, digests in shard["streams"].items():
                name = f"tokens/{split}/{stream}/{shard['name']}.tar"
                assert artifact.manifest[name] == {"bytes": digests["bytes"], "sha256": digests["sha256"]}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed file:ResourceWarning")
def test_webdataset_reads_the_tokens(artifact):
    tokens = Tokens(artifact)
    for stream, ndim in (("frame", 2), ("caption", 1)):
        path = artifact.path(f"tokens/train/{stream}/shard-000001.tar")
        for sample in webdataset.WebDataset(str(path), shardshuffle=False).decode():
            i = tokens.keys("train").index(sample["__key__"])
            assert sample["npy"].ndim == ndim
            assert np.array_equal(sample["npy"].ravel(), tokens.codes("train", stream, i))


def test_the_number_of_workers_changes_no_byte(root, artifact):
    out = root / "artifacts" / "many" / "f0"
    begin(out, STAGE, "tokens", settings_for(), inputs_of(root), "f0")
    for rank in (2, 0, 1):
        STAGE.run(settings_for(), inputs_of(root), out, Worker(rank, 3, threads=rank + 1))
    complete(out, STAGE.finish(settings_for(), inputs_of(root), out))
    assert (out / "DONE.json").read_bytes() == (artifact.folder / "DONE.json").read_bytes()


@pytest.mark.parametrize(("asked", "kept"), [(0, 0), (1, 5), (2, 5), (4, 12)])
def test_going_on_after_a_stop_changes_no_byte(root, artifact, asked, kept):
    answers = iter([False] * asked + [True])
    name = f"stopped-{asked}"
    with pytest.raises(Interrupted):
        encoded(root, name, Worker(stopping=lambda: next(answers)))
    out = root / "artifacts" / name / "f0"
    data = Dataset(inputs_of(root)["data"])
    shards = [f"{split}/{shard}" for split in data.splits for shard in data.shards(split)]
    assert sum(found.n_in for found in map(Commits.of(out).find, shards) if found) == kept
    seen = []
    again = encoded(root, name, Worker(report=lambda done, total, unit, notes: seen.append((done, total, unit))))
    assert (again.folder / "DONE.json").read_bytes() == (artifact.folder / "DONE.json").read_bytes()
    assert seen[-1] == (15, 15, "samples")


def test_shards_are_taken_one_by_one_so_that_other_workers_get_some(root):
    reports, before_each = [], []

    class Slow(Worker):
        def share(self, items):
            for item in items:
                before_each.append(len(reports))
                yield item

    encoded(root, "slow", Slow(report=lambda *said: reports.append(said)))
    assert before_each[-1] > 0


def test_a_samples_codes_depend_on_no_neighbour(root):
    tokenizer = load_tokenizer(root / "artifacts" / "frame_codes" / "f0" / "tokenizer")
    with deterministic(threads=1):
        alone = encode_batch(tokenizer, [picture(0)])[0]
        for place in range(16):
            neighbours = [picture(100 + other) for other in range(16)]
            neighbours[place] = picture(0)
            assert np.array_equal(encode_batch(tokenizer, neighbours)[place], alone)


def test_missing_values_stay_in_their_places(root):
    tokenizer = load_tokenizer(root / "artifacts" / "frame_codes" / "f0" / "tokenizer")
    found = encode_batch(tokenizer, [None, picture(0), None, picture(1)])
    assert [codes is None for codes in found] == [True, False, True, False]
    assert encode_batch(tokenizer, [None, None]) == [None, None]


def test_torch_is_left_as_it_was(root, artifact):
    before = (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.is_inference_mode_enabled())
    with deterministic(threads=1):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.is_inference_mode_enabled()) == before


def test_a_tokenizer_for_a_stream_that_is_not_there_is_refused(root):
    settings = EncodeDataset(run="encode_dataset", data="data", tokenizers={"depth": "frame_codes"})
    inputs = inputs_of(root)
    with pytest.raises(ValueError, match=r"tokenizers\.depth: data has no stream 'depth'; it has caption, frame"):
        STAGE.run(settings, {**inputs, "tokenizers.depth": inputs["tokenizers.frame"]}, begun(root, settings), Worker())


def test_a_tokenizer_of_another_kind_is_refused(root):
    settings = EncodeDataset(run="encode_dataset", data="data", tokenizers={"caption": "frame_codes"})
    inputs = inputs_of(root)
    with pytest.raises(ValueError, match=r"tokenizers\.caption: frame_codes encodes image, the stream is text"):
        STAGE.run(settings, {**inputs, "tokenizers.caption": inputs["tokenizers.frame"]}, begun(root, settings), Worker())


def begun(root, settings):
    out = root / "artifacts" / "refused" / "-".join(settings.tokenizers)
    begin(out, STAGE, "refused", settings, {}, out.name)
    return out


def test_one_stream_can_be_encoded_alone(root, artifact):
    settings = EncodeDataset(run="encode_dataset", data="data", tokenizers={"frame": "frame_codes"}, batch_size=BATCH)
    inputs = {field: given for field, given in inputs_of(root).items() if field != "tokenizers.caption"}
    alone = execute(STAGE, "alone", settings, inputs, root / "artifacts" / "alone" / "f0", Worker())
    for name in alone.files():
        if "/frame/" in name:
            assert alone.manifest[name] == artifact.manifest[name]


def test_a_damaged_shard_stops_the_stage_and_is_named(root):
    path = root / "artifacts" / "data" / "f0" / "data" / "train" / "shard-000001.tar"
    whole = path.read_bytes()
    path.chmod(0o644)
    try:
        path.write_bytes(whole.replace(b"picture number 7", b"picture number 8"))
        with pytest.raises(ShardDamaged, match=r"sample 's007' of .*shard-000001\.tar has changed"):
            encoded(root, "damaged")
    finally:
        path.write_bytes(whole)


def test_a_value_that_cannot_be_decoded_is_refused_with_its_sample(tmp_path):
    def run(settings, inputs, out, worker):
        with Commits.of(out).attempt("train/shard-000000") as attempt:
            with RawShard(attempt, "train", "shard-000000", {"caption": STREAMS["caption"]}) as raw:
                for i in range(8):
                    raw.add(f"s{i}", {"caption": caption(i).encode() if i != 5 else b"caf\xe9"})
            attempt.commit(raw.keys, (), raw.counts)

    def finish(settings, inputs, out):
        Commits.of(out).finish(["train/shard-000000"])
        write_dataset_json(out, {"caption": STREAMS["caption"]}, {"train": [("shard-000000", 8)]})
        return {}

    data = make(tmp_path, "data", run, finish, "dataset")
    text = train_text((caption(i) for i in range(40)), vocab_size=300)
    codes = make(tmp_path, "codes", lambda s, i, out, w: text.save_pretrained(out / "tokenizer"), lambda *_: {}, "tokenizer")
    settings = EncodeDataset(run="encode_dataset", data="data", tokenizers={"caption": "codes"}, batch_size=3, max_reject_share=0.2)
    out = tmp_path / "artifacts" / "tokens" / "f0"
    artifact = execute(STAGE, "tokens", settings, {"data": data, "tokenizers.caption": codes}, out, Worker())
    assert Tokens(artifact).keys("train") == [f"s{i}" for i in range(8) if i != 5]
    entry = json.loads(artifact.path("rejects/train/shard-000000.jsonl").read_text())
    assert (entry["key"], entry["code"]) == ("s5", "text_not_utf8")
    assert artifact.counts["rejected"] == 1


def test_a_failing_disk_leaves_no_half_shard(root, artifact, monkeypatch):
    name, out = "full", root / "artifacts" / "full" / "f0"
    write = TokenShard.add

    def full(self, key, codes):
        if key == "s007":
            raise OSError(28, "No space left on device")
        write(self, key, codes)

    monkeypatch.setattr(TokenShard, "add", full)
    with pytest.raises(OSError, match="No space left"):
        encoded(root, name)
    assert Commits.of(out).find("train/shard-000000") is not None
    assert Commits.of(out).find("train/shard-000001") is None
    monkeypatch.setattr(TokenShard, "add", write)
    assert (encoded(root, name).folder / "DONE.json").read_bytes() == (artifact.folder / "DONE.json").read_bytes()
