"""Actions on disk: three formats, one value, and a code for every file that is refused."""

import io
import json

import numpy as np
import pytest
from pydantic import ValidationError

from worldloom.stages.npy import read_npy, write_npy
from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import ActionStream
from worldloom.stages.stream_action import MAX_BYTES, batch, decode, encode, form

STREAM = ActionStream(kind="action", steps=3, dimensions=2)
SINGLE = ActionStream(kind="action", steps=3)
PUSH = ActionStream(kind="action", steps=3, choices=5)
VALUE = np.array([[0.5, -1.0], [2.0, 3.0], [0.1, 0.0]], np.float32)


def npy(value: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


@pytest.mark.parametrize(("choices", "names"), [(3, ("a", "b")), (2, ("a", "a")), (None, ("a", "b"))])
def test_names_are_as_many_as_choices_and_each_is_another(choices, names) -> None:
    with pytest.raises(
        ValidationError, match=rf"must be as many as choices \({choices}\), each another; set choices to {len(set(names))}, or"
    ):
        ActionStream(kind="action", steps=3, choices=choices, names=names)
    assert ActionStream(kind="action", steps=3, choices=2, names=("a", "b")).names == ("a", "b")


def test_a_value_comes_back_and_always_in_the_same_bytes() -> None:
    assert np.array_equal(decode(encode(VALUE, STREAM), STREAM), VALUE)
    assert encode(VALUE, STREAM) == encode(np.asfortranarray(VALUE).copy(), STREAM)
    assert form(STREAM) == ((3, 2), "float32") and batch([VALUE, VALUE]).shape == (2, 3, 2)


@pytest.mark.parametrize(
    "content",
    [
        npy(VALUE.astype(np.float64)),
        npy(np.asfortranarray(VALUE)),
        json.dumps(VALUE.tolist()).encode(),
        b"0.5,-1\n2,3\n\n0.1,0\n",
    ],
    ids=["float64", "fortran", "json", "csv"],
)
def test_all_formats_give_the_same_value(content: bytes) -> None:
    assert np.array_equal(decode(memoryview(content), STREAM), VALUE)


def test_one_number_a_step_may_be_a_plain_list_and_choices_are_whole_numbers() -> None:
    assert decode(b"[1, 2, 3]", SINGLE).tolist() == [[1.0], [2.0], [3.0]]
    assert decode(npy(np.array([0, 4, 2], np.uint8)), PUSH).tolist() == [[0.0], [4.0], [2.0]]
    assert decode(npy(np.array([True, False, True])), PUSH).tolist() == [[1.0], [0.0], [1.0]]


@pytest.mark.parametrize(
    ("content", "stream", "code"),
    [
        (b"", STREAM, "empty_input"),
        (b"\xff\xd8\xff picture", STREAM, "type_mismatch"),
        (b"\x93NUMPY\x09\x00", STREAM, "type_mismatch"),
        (npy(VALUE)[:40], STREAM, "type_mismatch"),
        (npy(VALUE)[:-4], STREAM, "action_invalid"),
        (npy(VALUE[:2]), STREAM, "action_invalid"),
        (npy(np.where(VALUE > 2, np.nan, VALUE)), STREAM, "action_invalid"),
        (npy(np.full((3, 2), 1e308)), STREAM, "action_invalid"),
        (npy(VALUE.astype(complex)), STREAM, "action_invalid"),
        (npy(np.array([["a", "b"]] * 3)), STREAM, "action_invalid"),
        (b"[[1, 2], [3]]", STREAM, "action_invalid"),
        (b"[[1, NaN], [3, 4], [5, 6]]", STREAM, "action_invalid"),
        (b"x,y\n1,2\n3,4\n", STREAM, "action_invalid"),
        (b"[" * 100_000, STREAM, "action_invalid"),
        (b"[1, 2, 5]", PUSH, "action_invalid"),
        (b"[1, 2, 0.5]", PUSH, "action_invalid"),
        (b"[1, 2, -1]", PUSH, "action_invalid"),
        (b"[1, 2, " + b"1" * 400 + b"]", PUSH, "action_invalid"),
        (b" " * (MAX_BYTES + 1), STREAM, "action_too_large"),
    ],
)
def test_other_files_are_refused_with_their_code(content: bytes, stream: ActionStream, code: str) -> None:
    with pytest.raises(InputRejected) as refused:
        decode(content, stream)
    assert refused.value.code == code


def test_a_header_that_claims_too_much_allocates_nothing() -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 2)})
    with pytest.raises(InputRejected, match="the header claims 17592186044416 bytes, at most 100"):
        read_npy(stream.getvalue(), 100, "action_invalid")


def test_nothing_is_ever_unpickled() -> None:
    content = npy(np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputRejected, match="plain numbers"):
        read_npy(content, 1000, "action_invalid")
    assert np.load(io.BytesIO(write_npy(VALUE))).tolist() == VALUE.tolist()
