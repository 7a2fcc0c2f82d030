import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from worldloom.pipeline.cli import main
from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.sample import Asked, Sample, sample_command, sample_lines
from worldloom.stages import open_world
from worldloom.stages.artifact import Artifact, ArtifactError
from worldloom.stages.open_world import OpenWorld
from worldloom.world_model.grammar import Grammar
from worldloom.world_model.transformer import WorldModel

CAPTION = "a red circle at the top left"


def ask(run: Path, stage: str | None = None, tokens: str | None = None, **asked: Any) -> list[Sample]:
    return sample_command(run, Asked(**asked), stage, tokens)


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_caption_gives_a_picture_of_the_streams_own_size(tiny_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.png"
    (sample,) = ask(tiny_root, caption=CAPTION, out=out)
    assert sample == Sample({}, {"view": out}, True)
    assert _pixels(out).shape == (16, 16, 3)


def test_the_same_seed_gives_the_same_picture_and_scale_only_repeats_its_pixels(tiny_root: Path, tmp_path: Path) -> None:
    for name, scale, seed in (("a", 1, 7), ("b", 3, 7), ("c", 1, 8)):
        ask(tiny_root, caption=CAPTION, out=tmp_path / f"{name}.png", seed=seed, scale=scale, temperature={"": 1.0})
    a, b, c = (_pixels(tmp_path / f"{name}.png") for name in "abc")
    assert b.shape == (48, 48, 3) and (b[::3, ::3] == a).all() and (b[2::3, 2::3] == a).all()
    assert (a != c).any()


def test_sample_number_n_is_the_sample_of_seed_plus_n(tiny_root: Path, tmp_path: Path) -> None:
    several = ask(tiny_root, caption=CAPTION, out=tmp_path / "x.png", count=3, seed=4, temperature={"": 1.0})
    assert [sample.files["view"].name for sample in several] == ["x-000.png", "x-001.png", "x-002.png"]
    ask(tiny_root, caption=CAPTION, out=tmp_path / "y.png", seed=6, temperature={"": 1.0})
    assert (_pixels(tmp_path / "x-002.png") == _pixels(tmp_path / "y.png")).all()


def test_a_set_of_tokens_that_the_world_did_not_learn_from_is_refused(tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(tiny_root), "--caption", CAPTION, "--want", "view", "--out", "x.png", "--tokens", "others"])
    assert stopped.value.code == 2 and "world did not learn from 'others'; it learnt from one set of tokens" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.fixture
def knows_hidden(tiny_world: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the world of `tiny_root` pass for one that learnt from hidden codes."""
    knows = dataclasses.replace(open_world.open_world(tiny_world), objectives=("next_token", "masked"))
    monkeypatch.setattr(open_world, "open_world", lambda *_: knows)


@pytest.mark.usefixtures("knows_hidden")
def test_codes_are_filled_in_within_a_few_steps_and_words_are_still_written_one_by_one(tiny_root: Path, tmp_path: Path) -> None:
    for name in "ab":
        (sample,) = ask(tiny_root, want=["view", "words"], out=tmp_path / name, seed=3, fill_steps=2)
        assert sample.legal and set(sample.files) == {"view", "words"}
    assert (_pixels(tmp_path / "a" / "sample-000.view.png") == _pixels(tmp_path / "b" / "sample-000.view.png")).all()
    with pytest.raises(ValueError, match="name the streams to write"):
        ask(tiny_root, out=tmp_path / "c", fill_steps=2)
    with pytest.raises(ValueError, match="fill-steps must be at least 0"):
        ask(tiny_root, out=tmp_path / "c", fill_steps=-1)


def test_a_world_that_learnt_from_hidden_codes_alone_fills_them_in_unasked(
    tiny_root: Path, tiny_world: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows = dataclasses.replace(open_world.open_world(tiny_world), objectives=("masked",))
    monkeypatch.setattr(open_world, "open_world", lambda *_: knows)
    for name, options in (("a", {}), ("b", {"fill_steps": 12}), ("c", {"fill_order": "raster"})):
        ask(tiny_root, caption=CAPTION, out=tmp_path / f"{name}.png", **options)
    assert (_pixels(tmp_path / "a.png") == _pixels(tmp_path / "b.png")).all()
    with pytest.raises(ValueError, match="learnt masked and not next tokens, so it cannot write token by token; leave fill_steps out"):
        ask(tiny_root, caption=CAPTION, out=tmp_path / "d.png", fill_steps=0)
    with pytest.raises(ValueError, match="so it cannot write words token by token; say how many codes that gets"):
        ask(tiny_root, image=tmp_path / "a.png")


@pytest.mark.usefixtures("knows_hidden")
def test_words_of_a_length_asked_for_are_filled_in_too(tiny_root: Path, tiny_world: Artifact, tmp_path: Path) -> None:
    world = open_world.open_world(tiny_world)
    choosing = open_world.Choosing(fill_steps=2, fill_lengths={"words": 3})
    (made,) = world.sample([{}], ["words", "view"], [5], choosing)
    assert {segment.stream: len(segment.codes) for segment in world.grammar.parse(made.tokens)} == {"words": 3, "view": 4}
    (sample,) = ask(tiny_root, want=["words", "view"], out=tmp_path, seed=5, fill_steps=2, fill_lengths={"words": 3}, temperature={"": 1.0})
    assert sample.texts["words"] == made.values["words"]
    for options, message in (
        ({"fill_lengths": {"words": 3}}, r"fill-length \(words\) says .* say in how many steps, with fill-steps"),
        ({"fill_lengths": {"": 3}, "fill_steps": 2}, "fill-length is given for '', which is not written; write STREAM=CODES, of words"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(tiny_root, want=["words"], **options)


@pytest.mark.usefixtures("knows_hidden")
def test_hidden_codes_are_settled_in_the_order_asked_for(tiny_root: Path, tmp_path: Path) -> None:
    def made(number: int, **options: Any) -> np.ndarray:
        (sample,) = ask(tiny_root, want=["view"], out=tmp_path / f"{number}.png", seed=3, temperature={"": 1.0}, **options)
        return _pixels(sample.files["view"])

    plain, *others = (made(number, fill_steps=4, fill_order=order) for number, order in enumerate((None, "confidence", "random", "raster")))
    assert (plain == others[0]).all() and any((plain != other).any() for other in others)
    with pytest.raises(ValueError, match=r"fill-order \(raster\) says which hidden codes are settled first; say in how many steps"):
        made(9, fill_order="raster")


@pytest.fixture
def knows_spans(tiny_world: Artifact, monkeypatch: pytest.MonkeyPatch) -> OpenWorld:
    """The world of `tiny_root`, with sentinels."""
    world = open_world.open_world(tiny_world)
    ids = dataclasses.replace(world.vocabulary, sentinels=2)
    shape = dataclasses.replace(world.model.shape, vocab_size=ids.size)
    knows = dataclasses.replace(world, model=WorldModel(shape, torch.Generator().manual_seed(0)), grammar=Grammar(ids))
    monkeypatch.setattr(open_world, "open_world", lambda *_: knows)
    return knows


def test_holes_in_what_is_given_are_filled_and_only_that_is_written(knows_spans: OpenWorld, tiny_root: Path, tmp_path: Path) -> None:
    picture = knows_spans.dataset.value("train", "view", 0)
    Image.fromarray(picture).save(tmp_path / "a.png")
    arguments = ["--caption", CAPTION, "--image", str(tmp_path / "a.png"), "--out", str(tmp_path / "b.png"), "-n", "2", "--seed", "7"]
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(tiny_root), *arguments, "--infill", "view=0:1", "--infill", "view=2:4", "--temperature", "1"])
    assert stopped.value.code == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b-000.png", "b-001.png"]
    given = [{"words": CAPTION, "view": picture}] * 2
    expected = knows_spans.infill(given, [{"view": [0, 2, 3]}] * 2, [7, 8], open_world.Choosing(temperature=1.0))
    for number, one in enumerate(expected):
        assert (_pixels(tmp_path / f"b-00{number}.png") == one.values["view"]).all()
    (told,) = ask(tiny_root, caption=CAPTION, image=tmp_path / "a.png", infill={"words": [1]}, seed=7)
    assert list(told.texts) == ["words"] and told.files == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"infill": {"view": [0]}}, "infill changes view, which is not given; give its value, or leave it to be written whole"),
        (
            {"infill": {"words": [0]}, "want": ["words"]},
            "infill writes codes of what is given anew, .* leave out want, fill-steps and guidance",
        ),
        ({"infill": {"words": [0]}, "fill_steps": 2}, "leave out want, fill-steps and guidance"),
        ({"infill": {"words": [0]}, "guidance": 2.0}, "leave out want, fill-steps and guidance"),
        ({"infill": {"words": [0]}}, "this world knows 0 sentinels; train it with the objective span"),
    ],
)
def test_holes_that_cannot_be_filled_are_refused(tiny_root: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(tiny_root, caption=CAPTION, out=tmp_path / "x.png", **options)


def test_each_stream_has_its_own_temperature(tiny_root: Path, tmp_path: Path) -> None:
    for number, rules in enumerate(({"": 1.0, "words": 0.0}, {"words": 0.0, "order": 1.0}, {"": 0.0, "view": 1.0})):
        told = {
            ask(tiny_root, want=["words", "view"], out=tmp_path / f"{number}-{seed}", seed=seed, temperature=rules)[0].texts["words"]
            for seed in range(3)
        }
        assert len(told) == 1
    pictures = [_pixels(tmp_path / f"0-{seed}" / "sample-000.view.png") for seed in range(3)]
    assert any((picture != pictures[0]).any() for picture in pictures)


def test_a_picture_gives_words_and_no_file(tiny_root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.jpg")
    (sample,) = ask(tiny_root, image=tmp_path / "photo.jpg")
    assert list(sample.texts) == ["words"] and sample.files == {}
    assert sample_lines([sample]) == [sample.texts["words"]]


def test_nothing_gives_everything_into_a_folder(tiny_root: Path, tmp_path: Path) -> None:
    samples = ask(tiny_root, out=tmp_path / "many", want=["words", "view"], count=2)
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [
        *("sample-000.view.png", "sample-000.words.txt", "sample-001.view.png", "sample-001.words.txt"),
    ]
    written = (tmp_path / "many" / "sample-001.words.txt").read_text(encoding="utf-8")
    assert written == samples[1].texts["words"] + "\n"
    assert all(sample.legal for sample in ask(tiny_root, out=tmp_path / "free", count=3, temperature={"": 1.0}))


def test_a_run_is_named_by_its_root_its_folder_or_the_link_to_the_latest(tiny_root: Path, tmp_path: Path) -> None:
    for number, run in enumerate((tiny_root, tiny_root / "runs" / "first", tiny_root / "runs" / "latest")):
        ask(run, caption=CAPTION, out=tmp_path / f"{number}.png")
    assert (_pixels(tmp_path / "0.png") == _pixels(tmp_path / "2.png")).all()


def test_values_are_given_by_stream_name_too(tiny_root: Path, tmp_path: Path) -> None:
    ask(tiny_root, caption=CAPTION, out=tmp_path / "a.png")
    ask(tiny_root, give={"words": CAPTION}, out=tmp_path / "b.png", want=["view"], stage="world")
    assert (_pixels(tmp_path / "a.png") == _pixels(tmp_path / "b.png")).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"want": ["sound"]}, "no stream 'sound' to want; it has view, words"),
        ({"give": {"sound": "x"}}, "no stream 'sound'; it has view, words"),
        ({"want": ["words"]}, "words is both given and wanted"),
        ({"out": None}, "say where what is no text goes: --out picture.png"),
        ({"out": Path("picture.gif")}, "picture.gif does not end in .png"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"scale": 65}, "scale must be from 1 to 64, got 65"),
        ({"temperature": {"": -0.5}}, "temperature must be at least 0, got -0.5"),
        ({"top_p": {"": 0.0}}, "top-p must be above 0 and at most 1, got 0.0"),
        ({"temperature": {"sound": 1.0}}, "temperature is given for 'sound'; this world has view, words, order"),
        ({"top_p": {"view": 2.0}}, "top-p must be above 0 and at most 1, got 2.0"),
        ({"top_k": {"": -1}}, "top-k must be at least 0"),
        ({"guidance": -1.0}, "guidance must be at least 0"),
        ({"caption": "long " * 90}, "this words is .* codes long, and the world has seen at most"),
        ({"stage": "word"}, "the run has no stage 'word'; it has data, words_codes, view_codes, tokens, world"),
        ({"stage": "tokens"}, "the stage tokens leaves a tokens, not a world model"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tiny_root: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(**{"run": tiny_root, "caption": CAPTION, "out": tmp_path / "x.png", **options})


def test_a_file_that_is_no_picture_is_named(tiny_root: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone.png is not there"):
        ask(tiny_root, image=tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text.png cannot be read as view .image.: type_mismatch"):
        ask(tiny_root, image=tmp_path / "text.png")


def test_a_missing_and_an_unfinished_run_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is not there"):
        ask(tmp_path / "nowhere", caption=CAPTION)
    with pytest.raises(ConfigError, match="holds no run"):
        ask(tmp_path, caption=CAPTION)
    run = tmp_path / "runs" / "latest"
    run.mkdir(parents=True)
    (run / "artifacts.json").write_text('{"data": "artifacts/data/00", "world": "artifacts/world/00"}')
    with pytest.raises(ArtifactError, match=r"no world model in .* yet: finished are no stages"):
        ask(tmp_path, caption=CAPTION)
    world = tmp_path / "artifacts" / "world" / "00"
    world.mkdir(parents=True)
    (world / "stage.json").write_text('{"format": 1, "produces": "world_model"}')
    with pytest.raises(ArtifactError, match=r"has no DONE.json: the stage has not finished"):
        ask(tmp_path, caption=CAPTION)
