"""What the page asks: runs as they go on, datasets, checkpoints, and values as a tokenizer sees them."""

import base64
import fcntl
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldloom.pipeline.progress import ProgressFile
from worldloom.pipeline.service.run_pages import MOST_POINTS, Absent, Runs
from worldloom.pipeline.service.studio import names_of
from worldloom.stages.artifact import Artifact
from worldloom.stages.card import Bars, Card, Curves, Gallery, Item, Picture, Sound, Text, write_card
from worldloom.stages.dataset import Dataset, Tokens

FINGERPRINT = "0123456789abcdef"


def artifact(root, stage):
    return Artifact.open(root / "artifacts" / stage / FINGERPRINT)


# Runs


@pytest.fixture
def run(tmp_path):
    """A run of two stages, and the folder of the first: begun, not finished."""
    folder = tmp_path / "artifacts" / "learn" / FINGERPRINT
    (folder / "logs").mkdir(parents=True)
    about = {"kind": "train_things", "produces": "tokenizer", "inputs": {}, "settings": {"steps": 9, "model": {"width": 5}}}
    (folder / "stage.json").write_text(json.dumps(about))
    place = tmp_path / "runs" / "one"
    place.mkdir(parents=True)
    places = {"learn": f"artifacts/learn/{FINGERPRINT}", "then": f"artifacts/then/{FINGERPRINT}"}
    (place / "artifacts.json").write_text(json.dumps(places))
    (place.parent / "latest").symlink_to("one")
    return Runs({"mine": tmp_path}), folder


def happened(root, event, message=""):
    line = {"eventType": event, "eventTime": "2026-01-01T00:00:00+00:00", "job": {"namespace": "things", "name": "learn"}}
    with open(root / "runs" / "one" / "events.jsonl", "a") as file:
        file.write(json.dumps({**line, "facts": {"message": message}}) + "\n")


def test_a_finished_run_names_its_stages_with_what_they_read(tiny, tiny_root):
    (line,) = tiny("GET", "/v1/runs").json()["data"]
    assert (line["state"], line["done"], line["stages"]) == ("complete", 5, 5)
    page = tiny("GET", f"/v1/runs/{line['name']}").json()
    assert {one["name"]: one["inputs"] for one in page["lines"]} == {
        "data": [],
        "words_codes": ["data"],
        "view_codes": ["data"],
        "tokens": ["data", "view_codes", "words_codes"],
        "world": ["tokens"],
    }
    assert page["lines"][0]["bytes"] == artifact(tiny_root, "data").bytes


def test_a_stage_at_work_says_how_far_it_is_and_what_it_has_logged(run, tmp_path):
    runs, folder = run
    happened(tmp_path, "START")
    (folder / "staging" / "progress").mkdir(parents=True)
    ProgressFile(folder, 0)(3, 9, "steps", {"loss": 0.5})
    log = [{"step": step, "time": 1.0, "loss/one": 1 / step, "loss/two": 2.0, "psnr": 20.0 + step} for step in (1, 2, 3)]
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"step": 4, "lo')
    with open(folder / "staging" / "run.lock", "w") as lock:
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        page = runs.stage("mine", "learn")
        assert runs.lines()[0].state == runs.page("mine").lines[0].state == "running"
    assert page.progress is not None and (page.progress.done, page.progress.notes) == (3, {"loss": 0.5})
    assert [(block.title, block.lines) for block in page.blocks] == [
        ("Losses", {"loss/one": ((1, 1.0), (2, 0.5), (3, 1 / 3)), "loss/two": ((1, 2.0), (2, 2.0), (3, 2.0))}),
        ("psnr", {"psnr": ((1, 21.0), (2, 22.0), (3, 23.0))}),
    ]
    assert page.settings == {"steps": "9", "model.width": "5"}


@pytest.mark.parametrize(("event", "state"), [("FAIL", "failed"), ("ABORT", "interrupted")])
def test_a_stage_that_ended_badly_says_why(run, tmp_path, event, state):
    runs, _ = run
    happened(tmp_path, "START")
    happened(tmp_path, event, "the disk is full")
    learn, then = runs.page("mine").lines
    assert (learn.state, learn.note, then.state) == (state, "the disk is full", "waiting")


def test_a_long_curve_is_thinned_to_means_and_keeps_its_last_point(run):
    runs, folder = run
    lines = [{"step": step, "loss": float(step)} for step in range(1, 1002)]
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (block,) = runs.stage("mine", "learn").blocks
    points = block.lines["loss"]
    assert len(points) <= MOST_POINTS
    assert points[0] == (4, 2.5) and points[-1] == (1001, 1001.0)


def test_a_card_is_shown_with_numbers_for_its_files(run):
    runs, folder = run
    for name in ("pictures/a.png", "pictures/b.png", "sounds/c.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    item = Item(file="pictures/a.png", before="pictures/b.png", caption="made", verdict="wrong", detail="blue")
    sound = Sound(file="sounds/c.wav", picture="pictures/b.png", caption="heard")
    curves = Curves(series=("loss",), title="Losses")  # of a log that is not there
    blocks = (Text(text="words"), Gallery(items=(item,), title="Samples"), sound, Picture(file="pictures/a.png", caption="all"), curves)
    write_card(folder, Card(title="Things", blocks=(*blocks, Bars(values=(2.0, 1.0), title="Uses"))))
    page = runs.stage("mine", "learn")
    assert [block.type for block in page.blocks] == ["text", "gallery", "gallery", "gallery", "bars"]
    assert page.blocks[1].items == ({"file": 1, "before": 0, "caption": "made", "verdict": "wrong", "detail": "blue"},)
    assert page.blocks[2].items == ({"file": 0, "sound": 2, "caption": "heard"},)
    assert runs.file("mine", "learn", 1) == (b"pictures/a.png", "image/png")
    assert runs.file("mine", "learn", 2) == (b"sounds/c.wav", "audio/wav")
    with pytest.raises(Absent, match="shows 3 files; 3 is none of them"):
        runs.file("mine", "learn", 3)


def test_a_card_leads_nowhere_outside_of_its_artifact(run, tmp_path):
    runs, folder = run
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    pictures = [
        {"type": "picture", "file": name, "caption": ""}
        for name in ("../../../secret.png", "pictures/link.png", str(tmp_path / "secret.png"))
    ]
    (folder / "card.json").write_text(json.dumps({"title": "Evil", "blocks": pictures}))
    for number in range(3):
        with pytest.raises(Absent, match=f"file {number} of learn is missing"):
            runs.file("mine", "learn", number)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/runs/no", "there is no run 'no'; there are"),
        ("/v1/runs/{run}/stages/no", "has no stage 'no'; it has data, words_codes"),
        ("/v1/runs/{run}/stages/data/files/99", "99 is none of them"),
        ("/v1/runs/{run}/stages/world/checkpoints/3", "world has no checkpoint of step 3; it has none"),
        ("/v1/datasets/{run}/world", "has no dataset 'world'; it has data, tokens"),
        ("/v1/datasets/{run}/data/samples?split=no", "there is no split 'no' with samples; there are held_out, validation, train"),
        ("/v1/datasets/{run}/data/draw?stream=no", "there is no stream 'no'; there are"),
        ("/v1/datasets/{run}/data/use?stream=view", "data holds no codes; the stages that do: tokens"),
        ("/v1/datasets/{run}/tokens/use?stream=no", "there are no codes of 'no'; there are those of"),
    ],
)
def test_what_is_not_there_is_a_404_that_says_what_is(tiny, path, message):
    answer = tiny("GET", path.format(run=next(iter(names_of(tiny.engine.runs)))))
    assert answer.status_code == 404 and message in answer.json()["error"]["message"], answer.text


def test_runs_are_called_as_their_files_and_folders_and_told_apart():
    places = [Path(name) for name in ("a/shapes.yaml", "runs/shapes", "b/shapes.yaml", "runs/sounds")]
    assert names_of(places) == dict(zip(("shapes", "shapes-2", "shapes-3", "sounds"), places, strict=True))


# Datasets


@pytest.fixture
def base(tiny):
    return f"/v1/datasets/{next(iter(names_of(tiny.engine.runs)))}"


def test_datasets_are_listed_with_their_counts(tiny, tiny_root, base):
    data, tokens = tiny("GET", "/v1/datasets").json()["data"]
    assert (data["stage"], data["samples"], data["shards"], data["oracle"]) == ("data", 24, 4, "shapes")
    made_by = {one["name"]: one["tokenizer"] for one in tokens["kinds"]}
    assert made_by == {one["name"]: one["fingerprint"] for one in tiny("GET", "/v1/tokenizers").json()["data"]}
    page = tiny("GET", f"{base}/tokens").json()
    assert {one["name"]: [shard["samples"] for shard in one["shards"]] for one in page["splits"]}["train"] == [8, 4]
    assert next(one for one in page["streams"] if one["name"] == "view")["shape"] == [2, 2]


def test_samples_are_drawn_by_the_seed_alone(tiny, tiny_root, base):
    data = Dataset(artifact(tiny_root, "data"))
    one, same, other = (tiny("GET", f"{base}/data/samples?split=train&count=5&seed={seed}").json()["data"] for seed in (3, 3, 4))
    assert one == same != other
    for sample in one:
        assert data.keys("train")[sample["number"]] == sample["key"]
        assert sample["values"]["words"]["text"] == data.value("train", "words", sample["number"])
        picture = Image.open(io.BytesIO(base64.b64decode(sample["values"]["view"]["picture"].partition(",")[2])))
        assert np.array_equal(np.asarray(picture), data.value("train", "view", sample["number"]))


def test_samples_of_every_kind_can_be_seen_and_heard(clocked):
    base = f"/v1/datasets/{next(iter(names_of(clocked.engine.runs)))}/data"
    for sample in clocked("GET", f"{base}/samples?stream=clip&count=3").json()["data"]:
        values = sample["values"]
        assert values["clip"]["picture"].startswith("data:image/png;base64,")
        assert values["sound"]["sound"].startswith("data:audio/wav;base64,")
        assert np.array(values["push"]["rows"]).shape == (4, 1)


def test_a_value_is_drawn_as_it_lies_in_its_shard(tiny, tiny_root, base):
    data = Dataset(artifact(tiny_root, "data"))
    content = tiny("GET", f"{base}/data/draw?stream=view&seed=5").content
    assert content in [bytes(data.content("held_out", "view", i)) for i in range(data.samples("held_out"))]


@pytest.mark.parametrize("stream", ["words", "view"])
def test_use_of_codes_is_counted(tiny, tiny_root, base, stream):
    tokens = Tokens(artifact(tiny_root, "tokens"))
    codes = np.concatenate([tokens.codes("train", stream, i) for i in range(tokens.samples("train"))])
    told = tiny("GET", f"{base}/tokens/use?stream={stream}&split=train").json()
    assert told["counts"] == [np.bincount(codes, minlength=tokens.streams[stream].codebook_size).tolist()]
    assert told["samples"] == 12


def test_use_of_codes_is_counted_level_by_level(clocked, clocked_root):
    base = f"/v1/datasets/{next(iter(names_of(clocked.engine.runs)))}/tokens"
    tokens = Tokens(artifact(clocked_root, "tokens"))
    there = [i for i in range(tokens.samples("train")) if len(tokens.codes("train", "sound", i))]
    codes = np.concatenate([tokens.codes("train", "sound", i) for i in there]).reshape(-1, 2)
    told = clocked("GET", f"{base}/use?stream=sound&split=train").json()
    assert told["counts"] == [np.bincount(level, minlength=13).tolist() for level in codes.T]


def test_what_was_refused_is_counted_by_its_reason(tmp_path):
    from worldloom.pipeline.service.dataset_pages import Datasets
    from worldloom.stages import import_folder
    from worldloom.stages.artifact import execute
    from worldloom.stages.import_folder import ImportFolder
    from worldloom.stages.settings import ImageStream
    from worldloom.stages.worker import Worker

    files = tmp_path / "files"
    files.mkdir()
    for number in range(3):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(files / f"{number}.png")
    (files / "broken.png").write_bytes(b"no picture")
    settings = ImportFolder(run="import_folder", path=str(files), streams={"view": ImageStream(kind="image", size=8)}, max_reject_share=0.5)
    made = execute(import_folder.STAGE, "mine", settings, {}, tmp_path / "root" / "artifacts" / "mine" / FINGERPRINT, Worker())
    place = tmp_path / "root" / "runs" / "one"
    place.mkdir(parents=True)
    (place / "artifacts.json").write_text(json.dumps({"mine": made.folder.relative_to(tmp_path / "root").as_posix()}))
    page = Datasets(Runs({"r": place})).page("r", "mine")
    assert (page.samples, page.rejected, page.reasons) == (3, 1, {"type_mismatch": 1})
    assert page.refusals[0].key == "broken.png" and "not a picture" in page.refusals[0].detail


# Values


def test_a_picture_is_prepared_as_the_tokenizer_sees_it(tiny):
    picture = Image.linear_gradient("L").convert("RGB")
    written = io.BytesIO()
    picture.save(written, "PNG")
    answer = tiny("POST", "/v1/prepare", json={"tokenizer": "view", "input": base64.b64encode(written.getvalue()).decode()}).json()
    prepared = Image.open(io.BytesIO(base64.b64decode(answer["content"])))
    assert np.array_equal(np.asarray(prepared), np.asarray(picture.resize((16, 16), Image.Resampling.LANCZOS)))


def test_what_cannot_be_prepared_is_refused_as_by_tokenize(tiny):
    asked = {"tokenizer": "view", "input": base64.b64encode(b"no picture").decode()}
    for route in ("/v1/prepare", "/v1/tokenize"):
        answer = tiny("POST", route, json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "type_mismatch")
