"""A world that sees pictures ahead of its tokens, from features on disk to samples."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from worldloom.pipeline.cli import app
from worldloom.stages import embed_dataset, evaluate_world_model, train_world_model
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.card import png
from worldloom.stages.dataset import Dataset, Tokens
from worldloom.stages.embed_dataset import EmbedDataset
from worldloom.stages.evaluate_world_model import EvaluateWorldModel
from worldloom.stages.eye import open_eye
from worldloom.stages.kind import StageKind
from worldloom.stages.open_world import SEEN, Choosing, open_world
from worldloom.stages.settings import DatasetRef, StageSettings
from worldloom.stages.sights import Sights
from worldloom.stages.token_batches import TokenBatches
from worldloom.stages.train_world_model import TrainWorldModel
from worldloom.stages.worker import Interrupted, Worker
from worldloom.world_model.encoders.build import build_encoder
from worldloom.world_model.encoders.load import save_pretrained
from worldloom.world_model.encoders.settings import VitSettings
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.vocabulary import Vocabulary

DONE = "0123456789abcdef"


class Untrained(StageSettings):
    run: Literal["untrained"]
    data: DatasetRef
    stream: str


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run with an encoder and the features of every picture, four vectors each."""
    copied = shutil.copytree(tiny_root, tmp_path / "run", symlinks=True)

    def write(settings: Any, inputs: Mapping[str, Artifact], out: Path, worker: Worker) -> None:
        about = VitSettings(patch=8, width=12, depth=2, heads=2, grid=(2, 2), pooling="mean")
        save_pretrained(out / "encoder", build_encoder(about, torch.Generator().manual_seed(1)), about)

    kind = StageKind("untrained", Untrained, write, lambda *_: {}, "encoder", 1, "gang")
    eye = execute(kind, "eye", Untrained(run="untrained", data="data", stream="view"), {"data": data(copied)}, at(copied, "eye"), Worker())
    settings = EmbedDataset(run="embed_dataset", data="data", encoder="eye", stream="view", keep="tokens", batch_size=5)
    execute(embed_dataset.STAGE, "looked", settings, {"data": data(copied), "encoder": eye}, at(copied, "looked"), Worker())
    return copied


def at(root: Path, name: str) -> Path:
    return root / "artifacts" / name / DONE


def data(root: Path) -> Artifact:
    return Artifact.open(at(root, "data"))


def sights_of(root: Path) -> Sights:
    return Sights(Artifact.open(at(root, "looked")), Tokens(Artifact.open(at(root, "tokens"))))


def train(root: Path, name: str = "seer", worker: Worker | None = None, **changes: Any) -> Artifact:
    settings = TrainWorldModel.model_validate(
        {
            **{"run": "train_world_model", "tokens": "tokens", "sees": {"features": "looked", "unseen": 0.25}, "steps": 6, "warmup": 2},
            **{"model": {"width": 16, "depth": 1, "heads": 2}, "rows": 2, "row_length": 96, "log_every": 1, "save_every": 2},
            **{"precision": "fp32", "objectives": {"next_token": 0.6, "masked": 0.4}, **changes},
        }
    )
    inputs = {"tokens": Artifact.open(at(root, "tokens")), "sees.features": Artifact.open(at(root, "looked"))}
    return execute(train_world_model.STAGE, name, settings, inputs, at(root, name), worker or Worker())


def test_each_sample_is_seen_by_its_own_features(root: Path) -> None:
    sights, dataset, eye = sights_of(root), Dataset(data(root)), open_eye(Artifact.open(at(root, "eye")))
    assert (sights.count, sights.width) == (4, 12)
    for split in ("train", "held_out"):
        samples = np.arange(dataset.samples(split))[::-1]
        seen = sights.of(split, samples)
        for number, sample in enumerate(samples.tolist()):
            with torch.inference_mode():
                own = eye.see(dataset.value(split, "view", sample)[None], "tokens")[0].numpy()
            np.testing.assert_allclose(seen[number], own, atol=2e-3)


def test_batches_hold_what_their_samples_show_whoever_takes_them(root: Path) -> None:
    tokens, sights = Tokens(Artifact.open(at(root, "tokens"))), sights_of(root)
    streams = {name: stream._asdict() for name, stream in tokens.streams.items()}
    ids = Vocabulary.of(streams, tokens.clock, 0, sights.count)

    def batches(rank: int = 0, ranks: int = 1, unseen: float = 0.0) -> TokenBatches:
        return TokenBatches(tokens, Grammar(ids), "train", 4, 96, 3, rank, ranks, None, sights, unseen)

    whole, _ = next(batches().after(None))
    assert whole.seen is not None and len(whole.seen) == 4 * len(whole.places)
    np.testing.assert_array_equal(whole.seen.reshape(-1, 4, 12), sights.of("train", batches().sample(whole.places)))
    parts = [next(batches(rank, 2).after(None))[0] for rank in range(2)]
    assert sorted(np.concatenate([part.places for part in parts])) == sorted(whole.places)
    for part in parts:
        np.testing.assert_array_equal(part.seen, sights.of("train", batches().sample(part.places)).reshape(-1, 12))
    taken = whole.take(np.array([2, 0]))
    ahead = taken.woven.tokens[taken.woven.tokens >= ids.size] - ids.size
    assert ahead.tolist() == [8, 9, 10, 11, 0, 1, 2, 3] and taken.seen is whole.seen
    some, _ = next(batches(unseen=0.5).after(None))
    gone = np.isnan(some.seen).reshape(len(some.places), -1)
    assert (gone.all(1) | ~gone.any(1)).all() and 0 < gone.all(1).sum() < len(gone)
    assert np.array_equal(some.woven.tokens, whole.woven.tokens)
    with pytest.raises(ValueError, match=r"makes \d+ tokens, a row has 20"):
        TokenBatches(tokens, Grammar(ids), "train", 4, 20, 3, sights=sights)


def test_stopped_and_started_again_it_learns_the_same(root: Path, tmp_path: Path) -> None:
    whole = train(root)
    other = shutil.copytree(root, tmp_path / "again", symlinks=True)
    shutil.rmtree(other / "artifacts" / "seer")
    steps: list[int] = []
    stopping = replace(Worker(), report=lambda done, *rest: steps.append(done), stopping=lambda: steps[-1:] == [3])
    with pytest.raises(Interrupted):
        train(other, worker=stopping)
    assert train(other).manifest == whole.manifest
    blind = train(root, "blind", sees=None)
    assert blind.manifest["world/model.safetensors"] != whole.manifest["world/model.safetensors"]
    assert whole.counts["parameters"] == blind.counts["parameters"] + 16 * 12 + 16


def test_a_world_is_measured_with_and_without_and_asked_with_a_picture(root: Path, tmp_path: Path) -> None:
    seer = train(root)
    settings = EvaluateWorldModel(
        run="evaluate_world_model", world="seer", prompts=2, unconditional=2, most_codes=20, shown=1, varied=1, answers=2
    )
    scores = execute(evaluate_world_model.STAGE, "scores", settings, {"world": seer}, at(root, "scores"), Worker())
    figures = json.loads(scores.content("figures.json"))
    for name in ("words", "view", "masked.view"):
        seen, unseen = figures[f"world.bits_per_token.{name}"], figures[f"world.bits_per_token_unseen.{name}"]
        assert seen > 0 and unseen > 0 and seen != unseen
    world = open_world(seer)
    picture = Dataset(data(root)).value("train", "view", 0)
    rows = [{SEEN: picture}, {}, {SEEN: picture, "view": picture}]
    heard: list[int] = []
    made = world.sample(rows, [["words"]] * 3, [1, 1, 1], Choosing(), lambda row, tokens: heard.append(max(tokens)))
    assert all(one.legal and "words" in one.values and one.tokens.max() < world.vocabulary.size for one in made)
    assert max(heard) < world.vocabulary.size and len(world.decoder.embedding) == world.vocabulary.size + 4
    with pytest.raises(ValueError, match="was asked for, but the sample has it already"):
        world.sample(rows[2:], ["view"], [1], Choosing())
    with pytest.raises(ValueError, match="its hole must lie within them"):
        world.infill(rows[2:], [{"view": range(4, 5)}], [1], Choosing())
    assert len(world.decoder.embedding) == world.vocabulary.size + 4  # what a request saw is forgotten, however it ends
    alone = world.sample(rows[:1], ["words"], [1], Choosing())
    assert np.array_equal(alone[0].tokens, made[0].tokens)
    filled = world.sample(rows, [["view"], ["view"], ["words"]], [1, 1, 1], Choosing(fill_steps=2))
    assert all(one.legal for one in filled)
    file = tmp_path / "asked.png"
    file.write_bytes(png(picture))
    for path in {path.resolve() for path in root.glob("runs/*/artifacts.json")}:
        places = json.loads(path.read_bytes()) | {"seer": str(seer.folder.relative_to(root.absolute()))}
        path.write_text(json.dumps(places))
    result = CliRunner().invoke(app, ["sample", str(root), "--see", str(file), "--want", "words", "--stage", "seer"])
    assert result.exit_code == 0 and result.stdout.strip()
    blind = CliRunner().invoke(app, ["sample", str(root), "--see", str(file), "--want", "words", "--stage", "world"])
    assert "this world sees nothing ahead of its tokens, so --see is of no use" in str(blind.exception)
    with pytest.raises(ValueError, match="this world sees nothing ahead of its tokens; give the picture as a stream"):
        open_world(Artifact.open(at(root, "world"))).sample(rows[:1], ["words"], [1], Choosing())


def test_settings_and_features_that_do_not_fit_are_refused(root: Path) -> None:
    with pytest.raises(ValidationError, match=r"sees\.features \(looked\) are of one dataset, and tokens names 2 sets"):
        TrainWorldModel.model_validate({"run": "train_world_model", "tokens": {"a": 1.0, "b": 1.0}, "sees": {"features": "looked"}})
    looked = Artifact.open(at(root, "looked"))
    foreign = replace(looked, inputs={**looked.inputs, "data": {"stage": "other", "fingerprint": "ff"}})
    with pytest.raises(ValueError, match=r"sees\.features: looked embeds other, the tokens are of data; embed data"):
        Sights(foreign, Tokens(Artifact.open(at(root, "tokens"))))
