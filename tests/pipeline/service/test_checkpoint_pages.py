"""What trainings made at their checkpoints, as the page shows it."""

import json

import pytest

from worldloom.pipeline.service.checkpoint_pages import PROMPTS, checkpoint_page
from worldloom.pipeline.service.run_pages import Absent, Runs
from worldloom.stages import train_tokenizer, train_world_model
from worldloom.stages.artifact import Artifact, execute
from worldloom.stages.train_tokenizer import TrainTokenizer
from worldloom.stages.train_world_model import Model, TrainWorldModel
from worldloom.stages.worker import Worker
from worldloom.tokenizers.image_settings import VqVae
from worldloom.tokenizers.quantizers.settings import Ema

SHORT = {"steps": 2, "warmup": 0, "log_every": 1}


@pytest.fixture(scope="module")
def runs(tiny_root):
    """A run whose tokenizer and world have learnt for two steps."""
    data, tokens = (Artifact.open(tiny_root / "artifacts" / name / "0123456789abcdef") for name in ("data", "tokens"))
    parts = VqVae(codebook_size=17, downsample=8, width=4, blocks=1, quantizer=Ema(code_width=3))
    tokenizer = TrainTokenizer(run="train_tokenizer", data="data", stream="view", tokenizer=parts, batch_size=4, **SHORT)
    small = Model(width=16, depth=1, heads=2, ff=24)
    world = TrainWorldModel(run="train_world_model", tokens="tokens", model=small, rows=2, row_length=64, **SHORT)
    made = [
        execute(train_tokenizer.STAGE, "two_steps", tokenizer, {"data": data}, tiny_root / "artifacts" / "two_steps" / "f0", Worker()),
        execute(train_world_model.STAGE, "two_more", world, {"tokens": tokens}, tiny_root / "artifacts" / "two_more" / "f0", Worker()),
    ]
    place = tiny_root / "runs" / "learning"
    place.mkdir()
    (place / "artifacts.json").write_text(json.dumps({one.name: one.folder.relative_to(tiny_root).as_posix() for one in made}))
    return Runs({"mine": place})


def test_a_worlds_checkpoint_answers_captions_and_the_oracle_judges(runs):
    assert runs.stage("mine", "two_more").checkpoints == (0, 2)
    page = checkpoint_page(runs, "mine", "two_more", 2)
    assert page.step == 2 and len(page.samples) == 5 <= PROMPTS  # as many as are held out
    for sample in page.samples:
        assert sample.caption and sample.verdict in ("right", "wrong")
        assert sample.value.picture is not None and sample.value.picture.startswith("data:image/png")
    assert checkpoint_page(runs, "mine", "two_more", 2) is page  # nothing is made twice


def test_a_tokenizers_checkpoint_shows_what_comes_back(runs):
    page = checkpoint_page(runs, "mine", "two_steps", 2)
    assert len(page.samples) == 5
    assert all(sample.detail.startswith("PSNR ") and sample.verdict is None for sample in page.samples)


def test_a_checkpoint_that_is_not_there_is_absent(runs):
    with pytest.raises(Absent, match="two_more has no checkpoint of step 1; it has 0, 2"):
        checkpoint_page(runs, "mine", "two_more", 1)
    with pytest.raises(Absent, match="the run mine has no stage 'no'"):
        checkpoint_page(runs, "mine", "no", 1)
