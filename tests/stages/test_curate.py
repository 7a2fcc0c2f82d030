"""Embedding and curating a small dataset with planted duplicates, by an encoder that never learnt anything."""

import json
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from worldloom.stages import curate, embed_dataset
from worldloom.stages.alignment import Views, view_signatures
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.commit import Commits
from worldloom.stages.curate import Curate
from worldloom.stages.dataset import Dataset
from worldloom.stages.dataset_writer import RawShard, write_dataset_json
from worldloom.stages.duplicates import BINS, LINK, Chosen, Small, firsts, gather, group
from worldloom.stages.embed_dataset import EmbedDataset
from worldloom.stages.eye import open_eye
from worldloom.stages.features import FeatureSet
from worldloom.stages.kind import StageKind
from worldloom.stages.seen import Seen
from worldloom.stages.settings import DatasetRef, ImageStream, StageSettings, TextStream
from worldloom.stages.stream_image import encode as encode_image
from worldloom.stages.worker import Interrupted, Worker
from worldloom.tokenizers.text import train_text
from worldloom.world_model.encoders.build import build_coca, build_encoder
from worldloom.world_model.encoders.joined import save_coca
from worldloom.world_model.encoders.load import save_pretrained
from worldloom.world_model.encoders.settings import TextSideSettings, VitSettings

SIDE = 32
STREAMS = {"note": TextStream(kind="text"), "view": ImageStream(kind="image", size=SIDE)}
Samples = Mapping[str, Mapping[str, NDArray[np.uint8] | None]]  # split/shard -> key -> picture


class Made(StageSettings):
    run: Literal["made"]


class Untrained(StageSettings):
    run: Literal["untrained"]
    data: DatasetRef
    stream: str


def stage(kind: str, produces: str, settings: type[StageSettings], write: Callable[[Path], None]) -> StageKind:
    return StageKind(kind, settings, lambda given, inputs, out, worker: write(out), lambda *_: {}, produces, 1, "shards")


def dataset(root: Path, name: str, samples: Samples) -> Artifact:
    """Every sample has its key as a note, unless it begins with "mute", and the picture given; None: it lacks that stream."""

    def write(out: Path) -> None:
        commits, splits = Commits.of(out), dict[str, list[tuple[str, int]]]()
        for task, contents in samples.items():
            split, shard = task.split("/")
            with commits.attempt(task) as attempt:
                with RawShard(attempt, split, shard, STREAMS) as raw:
                    for key, picture in contents.items():
                        shown = {} if picture is None else {"view": encode_image(picture, STREAMS["view"])}
                        said = {} if key.startswith("mute") else {"note": key.encode()}
                        raw.add(key, {**said, **shown})
                attempt.commit(raw.keys)
            splits.setdefault(split, []).append((shard, len(contents)))
        commits.finish(list(samples))
        write_dataset_json(out, STREAMS, splits)

    return execute(stage("made", "dataset", Made, write), name, Made(run="made"), {}, root / "artifacts" / name / f"{name}0", Worker())


def encoder(root: Path, data: Artifact, name: str = "eye", seed: int = 0, reads_texts: bool = False) -> Artifact:
    def write(out: Path) -> None:
        about = VitSettings(patch=8, width=24, depth=3, heads=2, grid=(4, 4), pooling="mean")
        made = build_encoder(about, torch.Generator().manual_seed(seed))
        save_pretrained(out / "encoder", made, about)
        if reads_texts:
            side = TextSideSettings(width=12, depth=2, heads=2, length=8, queries=3)
            tokenizer = train_text([*"abcdefghi"], 300)
            save_coca(out, build_coca(made, side, tokenizer.codebook_size, torch.Generator().manual_seed(2)), side)
            tokenizer.save_pretrained(out / "coca" / "tokenizer")

    settings = Untrained(run="untrained", data=data.name, stream="view")
    kind = stage("untrained", "encoder", Untrained, write)
    return execute(kind, name, settings, {"data": data}, root / "artifacts" / name / f"{name}0", Worker())


def embed(root: Path, data: Artifact, eye: Artifact, name: str = "seen", worker: Worker | None = None, **changes: Any) -> Artifact:
    settings = EmbedDataset(run="embed_dataset", data=data.name, encoder=eye.name, stream="view", batch_size=3, **changes)
    inputs = {"data": data, "encoder": eye}
    return execute(embed_dataset.STAGE, name, settings, inputs, root / "artifacts" / name / f"{name}0", worker or Worker())


def curated(
    root: Path, data: Artifact, seen: Artifact, worker: Worker | None = None, others: Mapping[str, Artifact] | None = None, **changes: Any
) -> Artifact:
    settings = Curate.model_validate({"run": "curate", "data": data.name, "features": seen.name, **changes})
    inputs = {"data": data, "features": seen, **(others or {})}
    return execute(curate.STAGE, "clean", settings, inputs, root / "artifacts" / "clean" / "f0", worker or Worker())


def picture(seed: int) -> NDArray[np.uint8]:
    """Blots of colour."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (1, 3, 5, 5)))
    return torch.nn.functional.interpolate(coarse, size=SIDE, mode="bicubic").clamp(0, 255).round().byte()[0].permute(1, 2, 0).numpy()


def crop(x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(x).resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(1, 2, 29, 30)))


PLANTED: Samples = {
    "train/shard-000000": {"a": picture(0), "b": picture(1), "c": picture(0), "d": None, "e": picture(2)[:, ::-1], "f": picture(3)},
    "train/shard-000001": {"g": crop(picture(1)), "h": picture(4), "i": picture(5)},
    "held_out/shard-000000": {"p": picture(2), "q": picture(6)},
}
LEFT = {"train": ["a", "b", "d", "f", "h", "i"], "held_out": ["p", "q"]}


def ledger(made: Artifact) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for name in made.files() if name.startswith("removed/") for line in made.content(name).splitlines()]
    return {line["key"]: line for line in lines}


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Artifact, Artifact, Artifact]:
    data = dataset(tmp_path, "data", PLANTED)
    eye = encoder(tmp_path, data)
    return data, eye, embed(tmp_path, data, eye)


def test_features_are_those_of_each_picture_alone(planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, eye, seen = planted
    features = FeatureSet(seen, ("held_out", "train"))
    opened = open_eye(eye)
    assert len(features) == 10 and features.width == 24
    places = [("held_out", 0), ("held_out", 1), *(("train", n) for n in (0, 1, 2, 4, 5, 6, 7, 8))]
    for number, (split, sample) in enumerate(places):
        place = features.place(number)
        assert Dataset(data).reader(split, place.shard, "view").key(place.sample) == Dataset(data).keys(split)[sample]
        with torch.inference_mode():
            own = opened.see(Dataset(data).value(split, "view", sample)[None], "pooled")[0].numpy()
        np.testing.assert_allclose(features.rows(number, number + 1)[0], own / np.linalg.norm(own), atol=1e-5)
    assert np.array_equal(features.rows(1, 9), np.concatenate([features.rows(n, n + 1) for n in range(1, 9)]))
    with pytest.raises(IndexError, match="there is no picture 10, these are 10"):
        features.place(10)


def test_tokens_are_kept_in_half_precision(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, eye, _ = planted
    tokens = FeatureSet(embed(tmp_path, data, eye, "tokens", keep="tokens"))
    kept = tokens.shard("train", "shard-000001")
    assert kept.shape == (3, 16, 24) and kept.dtype == np.float16 and tokens.tokens == 16
    with pytest.raises(ValueError, match="tokens keeps 16 vectors of a picture, and pictures are compared by one; set its keep to pooled"):
        curated(tmp_path, data, embed(tmp_path, data, eye, "tokens", keep="tokens"))


def test_features_that_are_no_numbers_are_refused(
    tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, eye, _ = planted
    monkeypatch.setattr(embed_dataset, "embedded", lambda eye, pictures, *_: np.where(np.arange(len(pictures))[:, None] == 1, np.nan, 0.0))
    with pytest.raises(ValueError, match=r"eye sees numbers that are not finite in (train/b|held_out/q); train it anew"):
        embed(tmp_path, data, eye, "broken")


def test_one_of_each_group_stays_and_the_ledger_says_which(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, _, seen = planted
    made = curated(tmp_path, data, seen, near={"similarity": -1})
    left = Dataset(made)
    assert {split: left.keys(split) for split in left.splits} == LEFT
    assert [left.value("train", "note", i) for i in range(6)] == LEFT["train"]
    assert np.array_equal(left.value("train", "view", 1), picture(1)) and left.value("train", "view", 2) is None
    gone = ledger(made)
    assert {key: (line["reason"], line["kept"]) for key, line in gone.items()} == {
        "c": ("exact_duplicate", "train/a"),
        "e": ("near_duplicate", "held_out/p"),
        "g": ("near_duplicate", "train/b"),
    }
    assert gone["e"]["flipped"] and gone["e"]["concordance"] > 0.99 and not gone["g"]["flipped"]
    np.testing.assert_allclose(gone["g"]["box"], np.array([1, 2, 29, 30]) / SIDE, atol=0.04)
    figures = json.loads(made.content("figures.json"))
    assert figures["view.search_recall"] == 1 and figures["view.kept"] == 7 and figures["view.near_duplicate"] == 2
    assert made.counts == {"samples": 8, "exact_duplicate": 1, "near_duplicate": 2, "far_from_reference": 0, "caption_does_not_fit": 0}
    titles = [block.get("title") for block in json.loads(made.content("card.json"))["blocks"]]
    assert titles[-1] == "Most alike of those that both stay" and len(titles) == 6


@pytest.mark.parametrize("stopping_at", [1, 2])
def test_stopped_and_started_again_it_leaves_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: tuple[Artifact, Artifact, Artifact], stopping_at: int
) -> None:
    data, eye, seen = planted
    monkeypatch.setattr(curate, "QUERIES", 3)
    whole = curated(tmp_path / "whole", data, seen)
    calls: list[int] = []
    stopping = replace(Worker(), stopping=lambda: calls.append(0) or len(calls) > stopping_at)  # type: ignore[func-returns-value]
    with pytest.raises(Interrupted):
        embed(tmp_path / "twice", data, eye, worker=stopping)
    calls.clear()
    assert embed(tmp_path / "twice", data, eye).manifest == seen.manifest
    with pytest.raises(Interrupted):
        curated(tmp_path / "twice", data, seen, stopping)
    assert curated(tmp_path / "twice", data, seen).manifest == whole.manifest


def test_two_workers_leave_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: tuple[Artifact, Artifact, Artifact]
) -> None:
    data, _, seen = planted
    monkeypatch.setattr(curate, "QUERIES", 2)
    settings = Curate.model_validate(
        {"run": "curate", "data": "data", "features": "seen", "search": {"type": "cells", "cells": 2, "probes": 2}}
    )
    made = []
    for name, workers in (("one", 1), ("two", 2)):
        kind = replace(
            curate.STAGE,
            run=lambda given, inputs, out, worker, workers=workers: [
                curate.run(given, inputs, out, Worker(rank, workers)) for rank in reversed(range(workers))
            ],
        )
        made.append(execute(kind, "clean", settings, {"data": data, "features": seen}, tmp_path / name / "f0", Worker()))
    assert made[0].manifest == made[1].manifest and Dataset(made[0]).keys("train") == LEFT["train"]


def test_lookalikes_are_found_by_whoever_looks_at_small_pictures(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, _, seen = planted
    blind = {"similarity": 1.0, "neighbours": 3}
    assert set(ledger(curated(tmp_path / "with", data, seen, near=blind))) == {"c", "e", "g"}
    assert set(ledger(curated(tmp_path / "without", data, seen, near={**blind, "lookalikes": False}))) == {"c"}


def test_small_pictures_are_those_that_the_views_are_compared_with(planted: tuple[Artifact, Artifact, Artifact]) -> None:
    features = FeatureSet(planted[2], ("held_out", "train"))
    small = Small(features, np.array([0, 3, 8])).rows(0, 3)
    assert small.shape == (3, 192)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-5)
    pictures = Seen(features, Dataset(planted[0])).pictures(np.array([0, 3, 8]))
    views = view_signatures(pictures, 0.7, 8)
    assert views.shape[1] == 2 * len(Views(0.7, 8).boxes)
    whole, mirrored = views[:, 0], views[:, len(Views(0.7, 8).boxes)]
    assert ((whole * small).sum(1) > 0.99).all()
    turned = view_signatures(pictures[:, :, ::-1], 0.7, 8)[:, 0]
    assert ((turned * mirrored).sum(1) > 0.999).all() and not np.allclose(whole, mirrored, atol=0.1)


def test_pairs_whose_captions_do_not_fit_go(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, _, _ = planted
    reader = encoder(tmp_path, data, "reader", reads_texts=True)
    joint = embed(tmp_path, data, reader, "joint", keep="joint", captions="note")
    scores = FeatureSet(joint, ("train",)).scores(0, 8)
    eye = open_eye(reader)
    for row, key in enumerate("abcefghi"):
        sample = Dataset(data).keys("train").index(key)
        with torch.inference_mode():
            picture_of = eye.see(Dataset(data).value("train", "view", sample)[None], "joint")
            cosine = torch.nn.functional.cosine_similarity(picture_of, eye.reads_texts.texts([key]))
        assert scores[row] == pytest.approx(float(cosine), abs=1e-5)
    made = curated(tmp_path, data, joint, near=None, captions={"share": 0.5})
    gone = {key for key, line in ledger(made).items() if line["reason"] == "caption_does_not_fit"}
    left = list("abefghi")  # c goes as a copy of a
    worst = sorted(left, key=lambda key: scores["abcefghi".index(key)])[:3]
    assert gone == set(worst) and "d" in Dataset(made).keys("train") and Dataset(made).keys("held_out") == ["p", "q"]
    assert "caption_does_not_fit" in made.counts and made.counts["caption_does_not_fit"] == 3


def test_captions_too_long_to_read_are_counted_and_their_pictures_stay(tmp_path: Path) -> None:
    pictures = {key: picture(place) for place, key in enumerate(("a", "b", "c", "defghabcdefghi", "mute"))}
    data = dataset(tmp_path, "data", {"train/shard-000000": pictures})
    joint = embed(tmp_path, data, encoder(tmp_path, data, "reader", reads_texts=True), "joint", keep="joint", captions="note")
    assert np.isnan(FeatureSet(joint).scores(0, 5)).tolist() == [False, False, False, True, True]
    figures = json.loads(joint.content("figures.json"))
    assert figures == {"view.embedded": 5, "view.without_caption": 1, "view.caption_too_long": 1}
    left = Dataset(curated(tmp_path, data, joint, near=None, captions={"share": 0.3})).keys("train")
    assert len(left) == 3 and {"defghabcdefghi", "mute"} < set(left)


def test_without_near_only_equal_pixels_go(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, _, seen = planted
    assert list(ledger(curated(tmp_path, data, seen, near=None))) == ["c"]


def test_features_alone_decide_where_pixels_are_not_asked(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, _, seen = planted
    features = FeatureSet(seen, ("held_out", "train"))
    cosines = features.rows(0, 10) @ features.rows(0, 10).T
    different = np.sort(cosines[np.triu(np.asarray(firsts(features))[:, None] != firsts(features)[None])])[::-1]
    bar = float(different[0] + different[2]) / 2  # the third belongs to another pair, or to the copy of one of the first
    kept = np.arange(10)
    for a, b in zip(*np.nonzero(cosines >= bar), strict=True):
        kept[kept == max(kept[a], kept[b])] = min(kept[a], kept[b])
    with pytest.raises(ValidationError, match="verify is none, so similarity decides, and it is not given; set it to the cosine of"):
        Curate.model_validate({"run": "curate", "data": "data", "features": "seen", "near": {"verify": "none"}})
    made = curated(tmp_path, data, seen, near={"verify": "none", "similarity": bar})
    assert made.counts["samples"] == 1 + len(set(kept.tolist())) < 10
    assert made.counts["near_duplicate"] >= 1


def test_what_is_near_the_reference_stays(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, eye, seen = planted
    wanted = dataset(tmp_path, "wanted", {"train/shard-000000": {"x": picture(3), "y": picture(5)}})
    near_to = embed(tmp_path, wanted, eye, "near_to")
    others = {"reference.features": near_to}
    made = curated(tmp_path / "one", data, seen, others=others, reference={"features": "near_to", "neighbours": 1})
    left = Dataset(made)
    assert left.keys("train") == ["d", "f", "i"] and left.keys("held_out") == ["p", "q"]
    gone = ledger(made)["h"]
    assert gone["reason"] == "far_from_reference" and gone["nearest"] in ("train/x", "train/y") and gone["cosine"] < 0.9999
    made = curated(
        tmp_path / "two", data, seen, others=others, reference={"features": "near_to", "neighbours": None, "similarity": 0.99999}
    )
    assert Dataset(made).keys("train") == ["d", "f", "i"]


def test_a_reference_that_says_nothing_is_refused(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, eye, seen = planted
    with pytest.raises(ValidationError, match="reference keeps nothing without neighbours and similarity"):
        Curate.model_validate({"run": "curate", "data": "d", "features": "f", "reference": {"features": "r", "neighbours": None}})
    empty = dataset(tmp_path, "empty", {"train/shard-000000": {"x": None}})
    with pytest.raises(ValueError, match="no sample of empty has the stream 'view'; there is nothing to embed"):
        embed(tmp_path, empty, eye, "none")
    other = embed(tmp_path, data, encoder(tmp_path, data, "other", seed=1), "other_seen")
    with pytest.raises(ValueError, match=r"reference\.features: near_to is seen by other, the dataset by eye; embed both by one encoder"):
        settings = Curate.model_validate({"run": "curate", "data": "data", "features": "seen", "reference": {"features": "near_to"}})
        curate.parallelism(settings, {"data": data, "features": seen, "reference.features": other})  # before a picture is compared
    wanted = dataset(tmp_path, "wanted", {"train/shard-000000": {"x": picture(9)}})
    nothing = FeatureSet(embed(tmp_path, wanted, eye, "nothing"), ("held_out",))
    with pytest.raises(ValueError, match=r"reference\.features: nothing holds no picture, so nothing is near it; embed some, or leave"):
        curate.comparable("nothing", nothing, FeatureSet(seen))
    foreign = embed(tmp_path, wanted, eye, "foreign")
    with pytest.raises(ValueError, match="features: foreign embeds wanted, not data; name a stage that embeds data"):
        curated(tmp_path / "foreign", data, foreign)


def test_captions_that_nobody_compared_are_refused(tmp_path: Path, planted: tuple[Artifact, Artifact, Artifact]) -> None:
    data, eye, seen = planted
    with pytest.raises(ValidationError, match="captions judges nothing without similarity and share"):
        Curate.model_validate({"run": "curate", "data": "d", "features": "f", "captions": {}})
    settings = Curate.model_validate({"run": "curate", "data": "data", "features": "seen", "captions": {"share": 0.5}})
    with pytest.raises(ValueError, match="captions: seen compared no captions; set its keep to joint"):
        curate.parallelism(settings, {"data": data, "features": seen})  # before a picture is compared
    with pytest.raises(ValidationError, match=r"captions \(note\) are compared with joint vectors, and keep is pooled; set it to joint"):
        embed(tmp_path, data, eye, captions="note")
    with pytest.raises(ValueError, match="eye never saw a text, so nothing compares its pictures with texts"):
        embed(tmp_path, data, eye, "joint", keep="joint", captions="note")


def test_groups_are_those_of_a_walk_over_all_links() -> None:
    generator = np.random.default_rng(4)
    first = np.arange(60)
    first[generator.integers(30, 60, 9)] = generator.integers(0, 20, 9)
    first = np.minimum(first, first[first])
    links = np.zeros(25, LINK)
    links["a"], links["b"] = np.sort(generator.integers(0, 60, (25, 2)), axis=1).T
    links["concordance"] = generator.random(25)
    near: list[set[int]] = [{n} for n in range(60)]
    for a, b in [*enumerate(first.tolist()), *zip(links["a"].tolist(), links["b"].tolist(), strict=True)]:
        both = near[a] | near[b]
        for n in both:
            near[n] = both
    found = group(first, links)
    assert found.kept.tolist() == [min(each) for each in near]
    turned = links[generator.permutation(25)]
    again = group(first, turned)
    assert np.array_equal(again.kept, found.kept)
    assert [turned[n] for n in again.linked if n >= 0] == [links[n] for n in found.linked if n >= 0]


def test_the_first_of_equal_pixels_is_the_lowest_number(planted: tuple[Artifact, Artifact, Artifact]) -> None:
    features = FeatureSet(planted[2], ("held_out", "train"))
    assert firsts(features).tolist() == [0, 1, 2, 3, 2, 5, 6, 7, 8, 9]
    rows = Chosen(features, np.array([1, 2, 6, 9]))
    assert np.array_equal(rows.rows(1, 4), features.rows(0, 10)[[2, 6, 9]])


def links_of(concordances: NDArray[np.float64], first: int = 0) -> NDArray[np.void]:
    links = np.zeros(len(concordances), LINK)
    links["a"], links["concordance"] = np.arange(first, first + len(links)), concordances
    return links


def test_links_read_in_parts_leave_what_all_of_them_together_would() -> None:
    every = links_of(np.random.default_rng(3).integers(-3, 11, 60) / 10)  # many are equally alike
    found = gather(np.split(every, [0, 5, 6, 31]), bar=0.7, spared=9)
    assert np.array_equal(found.links, every[every["concordance"] >= 0.7]) and found.pairs == 60
    below = every[every["concordance"] < 0.7]
    assert np.array_equal(found.spared, below[np.argsort(-below["concordance"], kind="stable")[:9]])
    assert np.array_equal(found.heights, np.histogram(every["concordance"].clip(0.5, 1), BINS, (0.5, 1))[0])
    nothing = gather([], bar=0.7, spared=9)
    assert len(nothing.links) == len(nothing.spared) == nothing.pairs == nothing.heights.sum() == 0


def test_pairs_that_are_far_from_one_take_no_memory() -> None:
    gather([], 0.9, 5)
    tracemalloc.start()
    found = gather((links_of(np.full(5_000, 0.3), 5_000 * task) for task in range(40)), bar=0.9, spared=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.pairs == 200_000 and found.spared["a"].tolist() == [0, 1, 2, 3, 4]
    assert peak < 40 * 5_000 * LINK.itemsize / 4
