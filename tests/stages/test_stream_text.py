"""Text on disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldloom.stages.rejects import InputRejected
from worldloom.stages.settings import TextStream
from worldloom.stages.stream_text import MAX_BYTES, decode, encode

STREAM = TextStream(kind="text")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_text_comes_back(text):
    assert decode(encode(text, STREAM), STREAM) == text


@pytest.mark.parametrize("text", ["\0", "a\u202eb", "\u200b", "e\u0301", "\u00e9", "<image> [MASK] </frame>", " two  spaces "])
def test_odd_characters_are_kept_as_they_are(text):
    assert decode(memoryview(text.encode()), STREAM) == text


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_input"),
        (b"a" * (MAX_BYTES + 1), "text_too_long"),
        (b"caf\xe9", "text_not_utf8"),
        ("\ud800".encode("utf-8", "surrogatepass"), "text_not_utf8"),
        ("text".encode("utf-16"), "text_not_utf8"),
    ],
)
def test_what_is_no_text_is_refused(content, code):
    with pytest.raises(InputRejected) as refused:
        decode(content, STREAM)
    assert refused.value.code == code


def test_the_longest_text_is_taken():
    assert len(decode(b"a" * MAX_BYTES, STREAM)) == MAX_BYTES
