"""Models as they were at a checkpoint: the last one holds what the training kept in the end, an earlier one something else."""

import shutil

import numpy as np
import pytest
import torch

from worldloom.stages import train_tokenizer, train_world_model
from worldloom.stages.artifact import Artifact, ArtifactError, execute
from worldloom.stages.open_checkpoint import tokenizer_at, world_at
from worldloom.stages.open_tokenizer import open_tokenizer
from worldloom.stages.open_world import Choosing, open_world
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.train_world_model import Model, TrainWorldModel
from worldloom.stages.worker import Worker
from worldloom.tokenizers.image_settings import VqVae
from worldloom.tokenizers.quantizers.settings import Ema

SHORT = {"steps": 4, "save_every": 2, "keep": 9, "warmup": 0, "log_every": 1}


def begun(artifact):
    """The same artifact as it is while it is being made: no DONE.json."""
    copy = artifact.folder.parent / f"{artifact.folder.name}-begun"
    if not copy.exists():
        shutil.copytree(artifact.folder, copy)
        (copy / "DONE.json").unlink()
    with pytest.raises(ArtifactError, match="has not finished"):
        Artifact.open(copy)
    return Artifact.begun(copy)


@pytest.fixture(scope="module", params=[None, 0.5], ids=["masters", "averages"])
def world(request, tiny_root):
    small = Model(width=16, depth=1, heads=2, ff=24)
    settings = TrainWorldModel(
        run="train_world_model", tokens="tokens", model=small, rows=2, row_length=64, learning_rate=0.01, ema=request.param, **SHORT
    )
    tokens = Artifact.open(tiny_root / "artifacts" / "tokens" / "0123456789abcdef")
    folder = tiny_root / "artifacts" / "learnt" / f"f{request.param}"
    return execute(train_world_model.STAGE, "learnt", settings, {"tokens": tokens}, folder, Worker())


def test_the_last_checkpoint_of_a_world_is_the_world(world):
    kept, there = open_world(world), world_at(begun(world), 4)
    for name, tensor in kept.model.state_dict().items():
        if name == "output":  # to which the world has added one vector for each set of ids
            added = (tensor - there.model.state_dict()[name]).round(decimals=3)
            assert len(added.unique(dim=0)) < len(added) / 2
        else:
            assert torch.equal(tensor, there.model.state_dict()[name]), name
    assert there.grammar.vocabulary == kept.grammar.vocabulary
    one, other = (each.sample([{"words": "a red circle"}], ["view"], [3], Choosing())[0] for each in (kept, there))
    assert one.tokens.tolist() == other.tokens.tolist()


def test_an_earlier_checkpoint_is_another_world(world):
    before, after = (world_at(world, step).model.state_dict() for step in (2, 4))
    assert not torch.equal(before["embedding"], after["embedding"])


def test_a_checkpoint_that_is_not_there_or_damaged_is_refused(world):
    with pytest.raises(ValueError, match=r"learnt has no checkpoint of step 3 that could be read: MANIFEST\.json is missing"):
        world_at(world, 3)
    copy = begun(world)
    path = copy.folder / "checkpoints" / "step-00000002" / "engines" / "world" / "rank-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"the content of engines/world/rank-0\.safetensors has changed"):
        world_at(copy, 2)


def test_the_last_checkpoint_of_a_tokenizer_is_the_tokenizer(tiny_root):
    parts = VqVae(codebook_size=17, downsample=8, width=4, blocks=1, quantizer=Ema(code_width=3))
    settings = TrainTokenizer(run="train_tokenizer", data="data", stream="view", tokenizer=parts, batch_size=4, learning_rate=0.01, **SHORT)
    data = Artifact.open(tiny_root / "artifacts" / "data" / "0123456789abcdef")
    made = execute(train_tokenizer.STAGE, "taught", settings, {"data": data}, tiny_root / "artifacts" / "taught" / "f0", Worker())
    kept = open_tokenizer(made.folder / "tokenizer")
    there, dataset, stream = tokenizer_at(begun(made), 4)
    pictures = dataset.batch("train", stream, np.arange(5))
    assert np.array_equal(kept.encode(pictures), there.encode(pictures))
    assert np.array_equal(kept.decode(kept.encode(pictures)), there.decode(there.encode(pictures)))
    earlier = tokenizer_at(made, 2)[0]
    assert not np.array_equal(earlier.decode(earlier.encode(pictures)), there.decode(there.encode(pictures)))
