"""A world exported from its run loads in transformers, with a tokenizer that gives sentencepiece's own ids, and is opened again by us."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from worldloom.stages import train_text_tokenizer
from worldloom.stages.artifact import Artifact
from worldloom.stages.export_world import export_world
from worldloom.stages.exported import read_export
from worldloom.stages.open_export import open_export, open_folder
from worldloom.stages.open_world import Choosing, open_world
from worldloom.stages.settings import TextStream
from worldloom.stages.train_text_tokenizer import TrainTextTokenizer
from worldloom.world_model.qwen3 import load_qwen3

TEXTS = ["a red circle", "  two  spaces", "\ttab\n", "é ü 漢字 🎈", "</s> <bos> <view> <unk>", "e\u0301", ""]


@pytest.fixture(scope="module")
def folder(tiny_world: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "hf"
    files = export_world(tiny_world, out)
    assert [name for name in files if not name.startswith("tokenizers/")] == [
        *("README.md", "config.json", "generation_config.json", "model.safetensors", "streams.json", "tokenizer.model"),
        *("tokenizer_config.json", "worldloom.json"),
    ]
    return out


def test_the_tokenizer_gives_the_ids_of_the_worlds_own_and_never_a_control(folder: Path, tiny_world: Artifact) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    world = open_world(tiny_world)
    for text, ids in zip(TEXTS, world.tokenizers["words"].encode(TEXTS), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist()
        assert theirs.decode(ids.tolist()) == text


def test_the_model_is_that_of_the_run(folder: Path, tiny_world: Artifact) -> None:
    ours, back = open_world(tiny_world), load_qwen3(folder)
    assert back.vocabulary == ours.vocabulary
    for (name, a), b in zip(ours.model.state_dict().items(), back.model.state_dict().values(), strict=True):
        assert np.array_equal(a.numpy(), b.numpy()), name


def test_the_card_says_what_the_ids_are(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| view | image | 17 | 1 | 2 x 2 |" in card and "`<view>`" in card and "library_name: transformers" in card


def test_opened_again_it_says_the_same_without_its_run(folder: Path, tiny_world: Artifact) -> None:
    ours, opened = open_world(tiny_world), open_folder(folder)
    assert (opened.name, opened.fingerprint) == (tiny_world.name, tiny_world.fingerprint)
    assert opened.world.objectives == ours.objectives and opened.world.dataset.oracle == "shapes"
    for world in (ours, opened.world):
        assert list(world.streams) == ["view", "words"] and world.dataset.streams["view"].size == 16  # type: ignore[union-attr]
    one, other = (world.sample([{"words": TEXTS[0]}] * 2, ["view"], [1, 2], Choosing()) for world in (ours, opened.world))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.values["view"], b.values["view"])
    assert opened.world.dataset.samples("train") == 0 and not opened.world.held


def test_texts_of_two_tokenizers_have_one_each_and_those_that_share_one_share_its_folder(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    streams = {"words": TextStream(kind="text"), "title": TextStream(kind="text")}
    sizes = {"words": 300, "title": 290}
    settings = {
        name: TrainTextTokenizer(run="train_text_tokenizer", data="data", stream=name, vocab_size=size) for name, size in sizes.items()
    }
    root = make_run(tmp_path / "run", streams, {name: (train_text_tokenizer.STAGE, each) for name, each in settings.items()})
    artifact, out = Artifact.open(root / "artifacts" / "world" / "0123456789abcdef"), tmp_path / "hf"
    files = export_world(artifact, out)
    assert "tokenizer.model" not in files and "tokenizer_config.json" not in files
    world, card = open_world(artifact), (out / "README.md").read_text(encoding="utf-8")
    assert "a folder for each of the 2 tokenizers: tokenizers/" in card
    for name, size in sizes.items():
        theirs = AutoTokenizer.from_pretrained(out / "tokenizers" / name)
        assert theirs(TEXTS[0])["input_ids"] == world.tokenizers[name].encode(TEXTS[:1])[0].tolist() and len(theirs) == size
    record = json.loads((root / "artifacts" / "tokens" / "0123456789abcdef" / "stage.json").read_text())
    record["inputs"]["tokenizers.title"] = record["inputs"]["tokenizers.words"]
    (root / "artifacts" / "tokens" / "0123456789abcdef" / "stage.json").write_text(json.dumps(record))
    files = export_world(artifact, tmp_path / "shared")
    assert "tokenizer.model" in files and sum(name.endswith("/config.json") for name in files) == 1
    assert {place.tokenizer for place in read_export(tmp_path / "shared").streams.values()} in ({"tokenizers/words"}, {"tokenizers/title"})


def test_what_another_version_wrote_and_a_tokenizer_of_another_kind_are_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    about = json.loads((other / "streams.json").read_text())
    changed = copy.deepcopy(about)
    changed["streams"]["view"]["tokenizer"] = "tokenizers/words"
    for wrong, message in (
        (changed, r"holds no tokenizer for view .image.; export the world again"),
        ({**about, "format": 7}, r"streams\.json: format: .*; export the world again"),
        ({**about, "streams": {"view": {**about["streams"]["view"], "tokenizer": "../view"}}}, r"streams\.view\.tokenizer: .*pattern"),
    ):
        (other / "streams.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            open_export(other)


def test_a_folder_with_files_in_it_is_refused(folder: Path, tiny_world: Artifact) -> None:
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        export_world(tiny_world, folder)
