import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from worldloom.pipeline.strict_yaml import MAX_BYTES, MAX_DEPTH, YamlError, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("12:30:45", "12:30:45"),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-4", 1e-4),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'17'", "17"),
        ('"null"', "null"),
        ("9223372036854775807", 2**63 - 1),
        ("- 1\n- [2, {a: x}]", [1, [2, {"a": "x"}]]),
        ("{1: a, null: b, true: c}", {"1": "a", "null": "b", "true": "c"}),
        ("a: |\n  no\n", {"a": "no\n"}),
        ("a:\n", {"a": None}),
    ],
)
def test_scalars_follow_yaml_1_2_and_keys_are_text(text, value):
    read = read_yaml(text).value
    assert read == value
    assert type(read) is type(value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab ${}:#'\"\n-17e.no"),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text("abc-1", min_size=1), children, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_json_means_the_same_as_yaml(value):
    text = json.dumps(value)
    if "${" in text:
        return
    assert read_yaml(text).value == value


def test_the_line_of_every_key_and_item_is_known():
    document = read_yaml("name: x\nstages:\n  data: {run: make,\n    samples: 7}\n  list:\n  - 1\n  - 2\n")
    assert document.lines[("name",)] == 1
    assert document.lines[("stages", "data")] == 3
    assert document.lines[("stages", "data", "samples")] == 4
    assert document.lines[("stages", "list", 1)] == 7


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("a: &x 1\nb: 2", 1, "anchors"),
        ("a: 1\nb: *x", 2, "aliases"),
        ("a: 1\nb: 2\na: 3", 3, "the key 'a' stands here a second time; it is on line 1 already"),
        ("a: !!python/object:os.system x", 1, "tags"),
        ("a: !!str 7", 1, "tags"),
        ("a: 1\n---\nb: 2", 2, "one document"),
        ("a: 1\n  b: 2", 2, "not YAML"),
        ("a: [1, 2", 1, "not YAML"),
        ("\ta: 1", 1, "not YAML"),
        ("a: \x00", 1, "not YAML"),
        ("[a]: 1", 1, "a key must be plain text"),
        ("x: 1\n? {a: 1}\n: 1", 2, "a key must be plain text"),
        ("a: .inf", 1, "must be finite"),
        ("a: .nan", 1, "must be finite"),
        ("a: 1e999", 1, "must be finite"),
        ("a: 9223372036854775808", 1, "fit 64 bits"),
        ("a: " + "9" * 5000, 1, "fit 64 bits"),
        ("[" * (MAX_DEPTH + 1), 1, f"nested more than {MAX_DEPTH} deep"),
        ("[" * 100_000, 1, f"nested more than {MAX_DEPTH} deep|not YAML"),
        ("#" * (MAX_BYTES + 1), 1, f"{MAX_BYTES + 1} bytes"),
        ("a: ${HOME}", 1, r"only \$\{env:NAME\} is filled in"),
        ("a: 1\nb: ${env:NOT_THERE}", 2, "the environment variable NOT_THERE is not set"),
    ],
)
def test_what_is_not_accepted_is_refused_with_its_line(text, line, rule):
    with pytest.raises(YamlError, match=rule) as refused:
        read_yaml(text, environment={})
    assert refused.value.line in (line, line + 1)


def test_variables_fill_values_and_never_keys():
    environment = {"STEPS": "30", "HERE": "/data: x"}
    text = "${env:STEPS}: 1\nsteps: ${env:STEPS}\nquoted: '${env:STEPS}'\nfolder: ${env:HERE}/in"
    assert read_yaml(text, environment).value == {"${env:STEPS}": 1, "steps": 30, "quoted": "30", "folder": "/data: x/in"}


def test_without_the_c_parser_the_same_is_read(monkeypatch):
    monkeypatch.setattr("worldloom.pipeline.strict_yaml._Loader", yaml.SafeLoader)
    assert read_yaml("a: [1, {b: no}]\nc: 'x'").value == {"a": [1, {"b": "no"}], "c": "x"}
    with pytest.raises(YamlError, match="not YAML"):
        read_yaml("a: [1")
