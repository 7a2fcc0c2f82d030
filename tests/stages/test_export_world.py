"""A world exported from its run loads in transformers, with a tokenizer that gives sentencepiece's own ids."""

from pathlib import Path

import numpy as np
import pytest

from worldloom.stages.artifact import Artifact
from worldloom.stages.export_world import export_world
from worldloom.stages.open_world import open_world
from worldloom.world_model.qwen3 import load_qwen3

TEXTS = ["a red circle", "  two  spaces", "\ttab\n", "é ü 漢字 🎈", "</s> <bos> <view> <unk>", "e\u0301", ""]


@pytest.fixture(scope="module")
def folder(tiny_world: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "hf"
    files = export_world(tiny_world, out)
    assert files == [
        *("README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"),
        "worldloom.json",
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


def test_a_folder_with_files_in_it_is_refused(folder: Path, tiny_world: Artifact) -> None:
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        export_world(tiny_world, folder)
