import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from worldloom.pipeline.catalogue import STAGES
from worldloom.pipeline.config import Pipeline, dump_pipeline, parse_pipeline, read_pipeline
from worldloom.pipeline.problems import ConfigError
from worldloom.pipeline.profiles import Profile
from worldloom.stages.make_shapes import MakeShapes
from worldloom.stages.settings import ImageStream, TextStream
from worldloom.world_model.reserved import RESERVED

GOOD = """\
name: small
root: out
streams:
  caption: {kind: text}
  frame: {kind: image, size: 16}
stages:
  tokens: {run: encode_dataset, data: data, tokenizers: {caption: words, frame: codes}}
  data: {run: make_shapes, samples: 8}
  words: {run: train_text_tokenizer, data: data, stream: caption}
  codes:
    run: train_tokenizer
    data: data
    stream: frame
    tokenizer: {type: vqgan, codebook_size: 64}
    betas: [0.9, 0.95]
profiles:
  laptop: {executor: ray}
  wide: {executor: ray, train: {workers: 3}}
"""


def refused(text, *overrides):
    with pytest.raises(ConfigError) as error:
        parse_pipeline(text, "p.yaml", overrides)
    return list(error.value.problems)


def test_a_file_gives_stages_with_typed_settings_and_the_streams_of_the_file():
    pipeline = parse_pipeline(GOOD)
    data = pipeline.stages["data"]
    assert isinstance(data, MakeShapes)
    assert (data.samples, data.streams["frame"].size) == (8, 16)
    assert list(pipeline.stages) == ["tokens", "data", "words", "codes"]
    assert pipeline.profile(None).executor == "ray"
    assert pipeline.profile("wide").train.workers == 3


def test_without_profiles_the_defaults_hold():
    text = GOOD[: GOOD.index("profiles:")]
    assert parse_pipeline(text).profile(None) == Profile()


@pytest.mark.parametrize("name", RESERVED)
def test_a_stream_with_a_name_that_means_something_else_is_refused(name):
    (problem,) = refused(GOOD.replace("  caption: {kind: text}", f"  caption: {{kind: text}}\n  {name}: {{kind: text}}"))
    assert re.search(rf"p\.yaml:3: streams: .*no stream can be called {name}: .* call it {name}s, or something else", problem)


def test_an_unknown_profile_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no profile called 'labtop'; did you mean laptop\?"):
        parse_pipeline(GOOD).profile("labtop")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("data.samples=9", lambda p: p.stages["data"].samples == 9),
        ("stages.data.samples=9", lambda p: p.stages["data"].samples == 9),
        ("root=a b/c", lambda p: p.root == "a b/c"),
        ("streams.frame.size=24", lambda p: p.stages["data"].streams["frame"].size == 24),
        ("codes.tokenizer.codebook_size=128", lambda p: p.stages["codes"].tokenizer.codebook_size == 128),
        ("codes.tokenizer={type: vqvae}", lambda p: p.stages["codes"].tokenizer.type == "vqvae"),
        ("codes.learning_rate=1e-4", lambda p: p.stages["codes"].learning_rate == 1e-4),
        ("codes.betas=[0.5, 0.9]", lambda p: p.stages["codes"].betas == (0.5, 0.9)),
        ("profiles.slow.workers=1", lambda p: p.profile("slow").workers == 1),
        ("profiles.wide.train.zero=2", lambda p: (p.profile("wide").train.zero, p.profile("wide").train.workers) == (2, 3)),
        ("name=a=b", None),
    ],
)
def test_overrides_reach_every_setting(override, read):
    if read is None:
        assert "got 'a=b'" in refused(GOOD, override)[0]
    else:
        assert read(parse_pipeline(GOOD, overrides=[override]))


def test_the_last_override_of_a_setting_wins():
    assert parse_pipeline(GOOD, overrides=["data.samples=9", "data.samples=10"]).stages["data"].samples == 10


CASES = {
    "unknown setting": (("samples: 8", "sampels: 8"), "p.yaml:8: data.sampels: there is no such setting; did you mean samples?"),
    "unknown setting in a union": (
        ("codebook_size: 64", "codebok_size: 64"),
        "p.yaml:14: codes.tokenizer.codebok_size: there is no such setting; did you mean codebook_size?",
    ),
    "unknown setting at the top": (("root: out", "rot: out"), "p.yaml:2: rot: there is no such setting; did you mean root?"),
    "nothing near": (("samples: 8", "zzz: 8"), "p.yaml:8: data.zzz: there is no such setting; known: .*samples"),
    "wrong type of a pair": (("size: 16", "size: [8, x]"), r"p.yaml:5: streams.frame.size.1: should be a valid integer, got 'x'"),
    "neither a number nor a pair": (("size: 16", "size: big"), "p.yaml:5: streams.frame.size: should be a valid integer, got 'big'"),
    "wrong type": (("samples: 8", "samples: many"), "p.yaml:8: data.samples: should be a valid integer, got 'many'"),
    "yaml 1.1 boolean": (("samples: 8", "samples: yes"), "p.yaml:8: data.samples: should be a valid integer, got 'yes'"),
    "number in quotes": (("samples: 8", "samples: '8'"), "p.yaml:8: data.samples: should be a valid integer, got '8'"),
    "out of range": (("size: 16", "size: 7"), "p.yaml:5: streams.frame.size: should be greater than or equal to 8, got 7"),
    "rule of a model": (
        ("codebook_size: 64", "downsample: 5"),
        r"p.yaml:14: codes.tokenizer: downsample must be a power of two \(2, 4, 8 ...\), got 5",
    ),
    "missing setting": (("stream: caption", "vocab_size: 300"), "p.yaml:9: words: the setting stream is missing"),
    "missing name": (("name: small\n", ""), "p.yaml: the setting name is missing"),
    "unknown kind of stage": (
        ("make_shapes", "make_shaeps"),
        "p.yaml:8: data.run: there is no kind of stage called 'make_shaeps'; did you mean ",
    ),
    "kind of stage is no text": (("make_shapes", "7"), "p.yaml:8: data.run: there is no kind of stage called 7; known: "),
    "no kind of stage": (
        ("run: make_shapes, ", ""),
        "p.yaml:8: data: the setting run is missing; it names the kind of stage: .*make_shapes",
    ),
    "unknown kind of stream": (
        ("kind: text", "kind: txet"),
        "p.yaml:4: streams.caption.kind: 'txet' is not a known kind; did you mean text?",
    ),
    "no kind of stream": (("{kind: text}", "{}"), "p.yaml:4: streams.caption: the setting kind is missing"),
    "unknown type of tokenizer": (
        ("type: vqgan", "type: vqgna"),
        "p.yaml:14: codes.tokenizer.type: 'vqgna' is not a known type; did you mean vqgan?",
    ),
    "stage is no mapping": (("{run: make_shapes, samples: 8}", "make_shapes"), "p.yaml:8: data: should be a mapping"),
    "bad stage name": (("  words:", "  Words:"), "p.yaml:9: Words: a name starts with a small letter or a digit"),
    "reserved stage name": (("  words:", "  root:"), "p.yaml:9: root: no stage can be called root"),
    "bad stream name": (("  frame: {kind", "  Frame: {kind"), "p.yaml:5: streams.Frame: a name starts with a small letter"),
    "bad pipeline name": (("name: small", "name: so small"), "p.yaml:1: name: should be small letters.*, got 'so small'"),
    "object store": (("root: out", "root: s3://bucket/out"), "p.yaml:2: root: should be a folder of this machine"),
    "profile": (("workers: 3", "wrokers: 3"), "p.yaml:18: profiles.wide.train.wrokers: there is no such setting; did you mean workers?"),
    "misspelt stages": (("stages:", "stges:"), "p.yaml:6: stges: there is no such setting; did you mean stages?"),
    "too high a ZeRO": (("workers: 3", "zero: 4"), "p.yaml:18: profiles.wide.train.zero: should be less than or equal to 3, got 4"),
    "dangling name": (
        ("frame: codes", "frame: code"),
        "p.yaml:7: tokens.tokenizers.frame: there is no stage called 'code'; did you mean codes?",
    ),
    "wrong kind of input": (
        ("frame: codes", "frame: data"),
        r"p.yaml:7: tokens.tokenizers.frame: a tokenizer is needed, and data \(make_shapes\) makes a dataset; these do: words, codes",
    ),
    "itself": (("data: data, tokenizers", "data: tokens, tokenizers"), "p.yaml:7: tokens.data: a dataset is needed, and tokens"),
    "unknown stream": (
        ("stream: caption", "stream: captain"),
        "p.yaml:9: words.stream: the dataset has no stream called 'captain'; did you mean caption?",
    ),
    "unknown stream as a key": (
        ("frame: codes}", "frmae: codes}"),
        "p.yaml:7: tokens.tokenizers.frmae: the dataset has no stream called 'frmae'; did you",
    ),
    "stream of another kind": (
        ("stream: caption", "stream: frame"),
        "p.yaml:9: words.stream: a stream of kind text is needed, and frame is of kind image",
    ),
    "doubled key": (("samples: 8", "samples: 8, samples: 9"), "p.yaml:8: the key 'samples' stands here a second time"),
    "not YAML": (("samples: 8}", "samples: 8"), "p.yaml:[89]: not YAML"),
    "no stages": ((GOOD[GOOD.index("stages:") : GOOD.index("profiles:")], ""), "p.yaml: stages are missing"),
}


def test_a_rule_between_settings_names_the_override_that_broke_it():
    assert refused(GOOD, "codes.tokenizer.downsample=5")[0].endswith("got 5 (with codes.tokenizer.downsample=5)")


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said_with_line_field_value_and_rule(case):
    (old, new), expected = CASES[case]
    assert old in GOOD
    found = refused(GOOD.replace(old, new, 1))
    pattern = expected if "\\" in expected or ".*" in expected or "[89]" in expected else re.escape(expected)
    assert re.match(pattern, found[0]), found
    assert len(found) == (2 if case in ("unknown setting at the top", "misspelt stages") else 1), found


@pytest.mark.parametrize(
    ("stream", "overrides", "expected"),
    [
        ("frame: {kind: image, size: 20}", [], r"20 x 20 pixels of 'frame' cannot be divided into cells of 8"),
        ("frame: {kind: image, size: 16}", ["codes.tokenizer={type: codec}"], r"'codec' does not learn 'frame', which is of kind image"),
        (
            "frame: {kind: image, size: 16}",
            ["codes.tokenizer.time_stride=2"],
            r"\(2\) is for clips, and 'frame' is of pictures",
        ),
        ("frame: {kind: video, size: 20, frames: 5, frame_rate: 8}", [], r"20 x 20 pixels of 'frame' cannot be divided into cells of 8"),
        (
            "frame: {kind: audio, sample_rate: 8000, seconds: 2, channels: 2}",
            ["codes.tokenizer={type: mel}"],
            r"'mel' reads mono sounds, 'frame' has 2 channels",
        ),
    ],
)
def test_a_tokenizer_that_cannot_learn_its_stream_is_refused_before_anything_runs(stream, overrides, expected):
    (problem,) = refused(GOOD.replace("frame: {kind: image, size: 16}", stream), *overrides)
    assert re.search(rf"codes: tokenizer\.\w+.*{expected}", problem), problem


def test_everything_that_is_wrong_is_found_at_once():
    text = GOOD.replace("samples: 8", "samples: x").replace("size: 16", "size: 1").replace("workers: 3", "wrokers: 3")
    assert len(refused(text)) == 3
    with pytest.raises(ConfigError, match=r"\(and 2 more: worldloom validate lists them\)"):
        parse_pipeline(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sampels=9", "override data.sampels=9: data.sampels: there is no such setting; did you mean samples?"),
        ("data.samples=x", "override data.samples=x: data.samples: should be a valid integer, got 'x'"),
        ("data.samples=", "override data.samples=: data.samples: should be a valid integer, got nothing (null)"),
        ("streams.frame.kind=vid", "override streams.frame.kind=vid: streams.frame.kind: 'vid' is not a known kind; did you mean video?"),
        ("dta.samples=9", "override dta.samples=9: there is no stage called 'dta'; did you mean data?"),
        ("data.samples.x=9", "override data.samples.x=9: data.samples is 8 and holds no settings"),
        ("codes.betas=[0.5]", "override codes.betas=[0.5]: codes.betas: item 2 is missing"),
        ("codes.betas=0.5", "override codes.betas=0.5: codes.betas: should be a valid array, got 0.5"),
        ("codes.schedule=cosin", "override codes.schedule=cosin: codes.schedule: 'cosin' is not known; did you mean cosine?"),
        (
            "profiles.laptop.executor=x",
            "override profiles.laptop.executor=x: profiles.laptop.executor: 'x' is not known; known: inline, ray",
        ),
        ("codes.tokenizer.downsample=5", "p.yaml:14: codes.tokenizer: downsample must be a power of two"),
        ("data.samples=[", "override data.samples=[: not YAML"),
        ("samples", "'samples' is no override; write stage.setting=value, as in world.steps=3000"),
        (".samples=3", "'.samples=3' is no override"),
        (f"data{2000 * '.a'}=1", "override data...: 2001 names deep; settings lie at most 32 deep"),
        (
            "tokens.data=words",
            "override tokens.data=words: tokens.data: a dataset is needed, and words (train_text_tokenizer) makes a tokenizer",
        ),
    ],
)
def test_a_wrong_override_is_named(override, message):
    assert refused(GOOD, override)[0].startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; worldloom init writes a file to start from"),
        (b"# nothing\n", "is empty"),
        (b"- a\n- b\n", "a pipeline is a mapping"),
        (b"just text", "a pipeline is a mapping"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b"a" * 300_000, "has 300000 bytes; a pipeline file has at most 262144"),
        (b"\x00\x01", "not YAML"),
    ],
)
def test_a_file_that_is_no_pipeline_is_refused(tmp_path, content, message):
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_pipeline(tmp_path / "p.yaml")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not there"):
        read_pipeline(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_pipeline(tmp_path)


def test_the_environment_fills_in_values(monkeypatch, tmp_path):
    monkeypatch.setenv("RUNS", str(tmp_path))
    assert parse_pipeline(GOOD.replace("root: out", "root: ${env:RUNS}/x")).folder == tmp_path / "x"
    monkeypatch.delenv("RUNS")
    assert refused(GOOD.replace("root: out", "root: ${env:RUNS}/x")) == [
        "p.yaml:2: the environment variable RUNS is not set; set it, or write the value in place of ${env:RUNS}"
    ]


def test_a_pipeline_written_out_reads_back_to_the_same():
    pipeline = parse_pipeline(GOOD, overrides=["codes.learning_rate=1e-4", "codes.deepspeed={a: {b: [1, null]}}"])
    assert parse_pipeline(dump_pipeline(pipeline)) == pipeline


def test_python_builds_the_same_pipeline():
    streams = {"caption": TextStream(kind="text"), "frame": ImageStream(kind="image", size=16)}
    data = MakeShapes(run="make_shapes", streams=streams, samples=8)
    pipeline = Pipeline(name="small", root="out", streams=streams, stages={"data": data}).checked()
    text = "\n".join(line for line in GOOD.splitlines()[:8] if "tokens" not in line)
    assert parse_pipeline(text) == pipeline


def test_a_pipeline_built_in_python_is_checked_too():
    with pytest.raises(ConfigError, match="there is no stage called 'data'"):
        Pipeline(
            name="x",
            root="out",
            stages={"words": STAGES["train_text_tokenizer"].settings(run="train_text_tokenizer", data="data", stream="t")},
        ).checked()


def test_the_example_files_are_valid(request):
    for path in sorted((request.config.rootpath / "examples").glob("*.yaml")):
        kinds = {stage["run"] for stage in yaml.safe_load(path.read_text())["stages"].values()}
        if kinds <= STAGES.keys():
            read_pipeline(path)


def test_a_stage_that_brings_its_own_streams_keeps_them():
    own = "{caption: {kind: text}, frame: {kind: image, size: 24}}"
    assert parse_pipeline(GOOD, overrides=[f"data.streams={own}"]).stages["data"].streams["frame"].size == 24


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["data", "vqgan", "text", "", "é"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["run", "kind", "type", "x", "", "1"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_stands_in_a_file_gives_a_pipeline_or_one_line(data):
    tree = yaml.safe_load(GOOD)
    branch = tree
    while True:
        keys = list(branch) if isinstance(branch, dict) else list(range(len(branch)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(branch[key], dict | list) or not branch[key] or data.draw(st.booleans()):
            break
        branch = branch[key]
    branch[key] = data.draw(json_values)
    try:
        parse_pipeline(json.dumps(tree), "p.yaml")
    except ConfigError as error:
        assert str(error).startswith("p.yaml") and "\n" not in str(error)
        assert "pydantic" not in str(error).lower()
